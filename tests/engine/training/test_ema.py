"""The moving average of the weights: torchvision's schedule, by hand, and over an interruption."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config.recipe import RecipeConfig
from engine.runs import checkpoint
from engine.training.ema import WeightAverage, effective_decay
from tests.engine.training.test_trainer import small_net, trainer

RECIPE = RecipeConfig(epochs=10, batch_size=8, lr=0.4, weight_decay=0.0, ema_decay=0.99, ema_every_steps=2)


def test_the_decay_is_adjusted_as_in_torchvision() -> None:
    assert effective_decay(RECIPE) == pytest.approx(1 - 0.01 * 8 * 2 / 10)
    published = replace(RECIPE, epochs=600, batch_size=1024, ema_decay=0.99998, ema_every_steps=32)
    assert effective_decay(published) == pytest.approx(1 - 2e-5 * 1024 * 32 / 600)
    assert effective_decay(replace(RECIPE, ema_decay=0.0, epochs=1)) == 0


def test_ten_steps_by_hand() -> None:
    """A copy during the warm-up's epoch; then every second step counts."""
    net = torch.nn.BatchNorm1d(3)
    average = WeightAverage(net, replace(RECIPE, warmup_epochs=1))
    decay, expected = effective_decay(RECIPE), torch.zeros(3)
    for step in range(10):
        epoch, step_of_epoch = divmod(step, 5)
        with torch.no_grad():
            net.weight.copy_(torch.randn(3))
            net.running_mean.copy_(net.weight)
        average.update(net, epoch, step_of_epoch)
        if step_of_epoch % 2 == 0:
            is_copy = epoch == 0 or step == 5
            expected = net.weight.detach().clone() if is_copy else decay * expected + (1 - decay) * net.weight.detach()
        for averaged in (average.model.weight, average.model.running_mean):
            torch.testing.assert_close(averaged, expected)


@pytest.mark.parametrize("decay", [0.998, 0.99985, 0.9999])
def test_class_indices_and_counters_are_not_averaged(decay: float) -> None:
    """Averaged with these decays, several of the integers below 91 would be truncated to the one before."""
    net = torch.nn.BatchNorm1d(3)
    net.register_buffer("classes", torch.arange(91))
    net.register_buffer("steps", torch.tensor(0))
    average = WeightAverage(net, replace(RECIPE, ema_decay=decay, ema_every_steps=1))
    for step in range(5):
        net.get_buffer("steps").add_(1)
        average.update(net, epoch=1, step=step)
    assert torch.equal(average.model.classes, torch.arange(91))
    assert average.model.steps == 5


def test_an_interrupted_average_continues_to_the_same_bits(folders: Path, tmp_path: Path) -> None:
    recipe = {"ema_decay": 0.9, "ema_every_steps": 2, "optimizer": "adamw", "lr": 0.01, "clip_grad_norm": 1.0}
    straight = trainer(folders, small_net(dropout=0.5), **recipe)
    list(straight.steps())
    straight.end_epoch()
    list(straight.steps())

    interrupted = trainer(folders, small_net(dropout=0.5), **recipe)
    for _, _step in zip(range(3), interrupted.steps(), strict=False):
        pass
    checkpoint.save(interrupted.state_dict(), tmp_path / "last.pt")
    resumed = trainer(folders, small_net(dropout=0.5), **recipe)
    resumed.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    list(resumed.steps())
    resumed.end_epoch()
    list(resumed.steps())
    for which in ("model", "training_model"):
        assert checkpoint.sha256(resumed.state_dict()[which]) == checkpoint.sha256(straight.state_dict()[which])
    assert resumed.state_dict()["average"] == straight.state_dict()["average"]
    assert checkpoint.sha256(straight.evaluated.state_dict()) != checkpoint.sha256(straight.model.state_dict())
