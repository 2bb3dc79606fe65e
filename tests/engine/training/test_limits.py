"""Training that runs out of memory or out of finite numbers."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import UserError
from engine.runs import checkpoint
from tests.commands import arguments, assert_one_line
from tests.conftest import Command
from tests.engine.training.test_trainer import small_net, trainer


def test_out_of_memory_says_what_to_set(folders: Path) -> None:
    greedy = trainer(folders, small_net(), accumulation_steps=2)

    def forward(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    greedy.forward = forward
    with pytest.raises(UserError, match=r"memory for 4 images at a time .*Increase recipe\.accumulation_steps"):
        list(greedy.steps())


@pytest.mark.parametrize("ending", ["weight", "running_var"])
def test_a_state_that_is_not_finite_is_not_saved(ending: str, folders: Path) -> None:
    healthy = trainer(folders, nn.Sequential(nn.BatchNorm2d(3), small_net()))
    next(healthy.steps())
    healthy.require_finite()
    name = next(name for name in healthy.model.state_dict() if name.endswith(ending))
    healthy.model.state_dict()[name][0] = torch.inf
    with pytest.raises(UserError, match=r"A weight or running statistic is not finite after step 0\."):
        healthy.require_finite()


def test_nonfinite_loss_keeps_the_last_checkpoint(command: Command, folders: Path, tmp_path: Path) -> None:
    common = [
        "model=mobilenet_v3_small",
        "model.weights=null",
        "run.dir=run",
        "recipe.lr=1e20",
        "recipe.warmup_epochs=0",
    ]
    done = command("train.py", *arguments(folders, *common, "run.checkpoint_every_steps=1"))
    assert_one_line(done, "The loss is nan at step", "learning rate", "training images")
    weights = checkpoint.load(tmp_path / "run" / "checkpoint" / "last.pt")["model"]
    assert all(value.isfinite().all() for value in weights.values())
