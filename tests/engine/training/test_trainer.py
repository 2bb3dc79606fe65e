"""The pieces of training: schedule, parameter groups, steps, checkpoints, exact evaluation."""

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.analysis import complexity
from engine.config.data import DataConfig
from engine.config.model import ModelConfig
from engine.config.recipe import RecipeConfig
from engine.config.runtime import RuntimeConfig
from engine.config.schemas import TrainConfig
from engine.data.datasets import open_dataset
from engine.data.loader import EvalLoader, TrainLoader
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.runs import checkpoint
from engine.runs.atomic_io import atomic_write
from engine.tasks.classification import Classification, ClassPredictions, EvalSamples
from engine.tasks.inference import EvalModel, evaluate
from engine.training import optim
from engine.training.trainer import Trainer

CPU = torch.device("cpu")
TASK = Classification(DataConfig(image_size=32))
RECIPE = RecipeConfig(epochs=10, batch_size=8, lr=0.4, weight_decay=1e-4, warmup_epochs=2)


def test_cosine_schedule_with_warmup() -> None:
    rates = [optim.learning_rate(RECIPE, step, steps_per_epoch=5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[30] == pytest.approx(0.2)
    assert rates[49] == pytest.approx(0.2 * (1 + math.cos(math.pi * 39 / 40)))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_step_schedule_is_the_papers() -> None:
    paper = replace(RECIPE, epochs=90, lr=0.1, warmup_epochs=0, schedule="step", step_epochs=30, step_factor=0.1)
    rates = [optim.learning_rate(paper, epoch * 7 + 6, steps_per_epoch=7) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_milestones_lower_the_rate_after_their_epochs() -> None:
    recipe = replace(RECIPE, lr=0.02, warmup_epochs=0.5, schedule="milestones", milestones=[4, 7])
    rates = [optim.learning_rate(recipe, step, steps_per_epoch=10) for step in (0, 4, 5, 39, 40, 69, 70, 99)]
    assert rates == pytest.approx([0.004, 0.02, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])


def test_norms_and_biases_do_not_decay_unless_asked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, rest = optim.build_optimizer(net, RECIPE, fused=False).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(p.shape) for p in rest["params"]] == [(4,), (4,), (4,), (2,)]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-4, 0.0)
    (everything,) = optim.build_optimizer(net, replace(RECIPE, decay_norms_and_biases=True), fused=False).param_groups
    assert len(everything["params"]) == 6


def trainer(root: Path, net: nn.Module, **recipe: object) -> Trainer:
    data = open_dataset(DataConfig("test", "folders", str(root), 3, None, image_size=32, resize=32))
    config = TrainConfig(
        model=ModelConfig("net"),
        recipe=replace(RECIPE, **recipe),
        runtime=RuntimeConfig(device="cpu", workers=0),
    )
    task = Classification(DataConfig(image_size=32, crop_scale=0.5))
    loader = TrainLoader(task.train_samples(data.train, 51), config.recipe.batch_size, 51, 0, CPU, ProcessGroup())
    return Trainer(net, task, Preprocessing(32, 32), loader, config, ProcessGroup())


def small_net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(256, 3))


def test_accumulation_gives_whole_batch_gradients(folders: Path) -> None:
    whole, parts = (
        trainer(folders, small_net(), accumulation_steps=1),
        trainer(folders, small_net(), accumulation_steps=4),
    )
    for each in (whole, parts):
        list(each.steps())
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert whole.metrics() == pytest.approx(parts.metrics(), rel=1e-4)


def test_resumed_training_has_the_same_bits_with_dropout(folders: Path, tmp_path: Path) -> None:
    straight = trainer(folders, small_net(dropout=0.5))
    for _ in range(2):
        list(straight.steps())
        straight.end_epoch()

    interrupted = trainer(folders, small_net(dropout=0.5))
    for _, _lr in zip(range(4), interrupted.steps(), strict=False):
        pass
    checkpoint.save(interrupted.state_dict(), tmp_path / "last.pt")
    torch.manual_seed(999)
    resumed = trainer(folders, small_net(dropout=0.5))
    resumed.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    assert resumed.steps_done == interrupted.steps_done > 0
    while resumed.state.epoch < 2:
        list(resumed.steps())
        resumed.end_epoch()
    assert checkpoint.sha256(resumed.model.state_dict()) == checkpoint.sha256(straight.model.state_dict())


def test_nonfinite_loss_names_step_and_images(folders: Path) -> None:
    diverging = trainer(folders, small_net(), lr=1e20, warmup_epochs=0)
    list(diverging.steps())
    with pytest.raises(
        UserError, match=r"The loss is (nan|inf) at step \d \(learning rate \S+, training images \S+JPEG"
    ):
        diverging.metrics()


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1}, path)

    def fails(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"last.pt cannot be written \(No space left on device\)"):
        atomic_write(path, fails)
    assert checkpoint.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "touched"),))

    (tmp_path / "last.pt").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "touched").exists()


def test_digest_sees_every_bit_name_and_dtype() -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    digest = checkpoint.sha256(state)
    assert checkpoint.sha256(dict(reversed(state.items()))) == digest
    assert checkpoint.sha256({k: v.clone() for k, v in state.items()}) == digest
    changed = torch.nextafter(state["a"], torch.tensor(9.0))
    for other in ({"a": changed}, {"a": state["a"].double()}, {"a": state["a"][None]}):
        assert checkpoint.sha256(state | other) != digest


class Brightness(nn.Module):
    """Puts an image into one of three classes by its mean: right for the test's data set, or wrong on purpose."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        scores = -(mean[:, None] - mean.new_tensor([-1.0, 0.2, 1.4])).abs()
        return scores if self.right else -scores


def test_several_models_share_one_pass(folders: Path) -> None:
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    ways = (Preprocessing(32, 32), Preprocessing(40, 24))
    loader = EvalLoader(EvalSamples(data.val, ways), 8, 0, CPU, ProcessGroup())
    right, wrong = EvalModel(Brightness(True), ways[0]), EvalModel(Brightness(False), ways[1])
    also_right = EvalModel(Brightness(True), ways[1])
    together = evaluate(TASK, [right, wrong, also_right], loader, ways, torch.float32, ProcessGroup())
    assert [predictions.metrics()["top1"] for predictions in together] == [100.0, 0.0, 100.0]
    first, second, _ = together
    assert isinstance(first, ClassPredictions)
    assert isinstance(second, ClassPredictions)
    assert first.labels.tolist() == data.val.labels.tolist()
    assert first.ranked.shape == (21, 3)
    (single,) = evaluate(TASK, [wrong], loader, ways, torch.float32, ProcessGroup())
    assert single.sha256() == second.sha256()


def test_evaluation_shows_its_progress_on_a_terminal(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    way = Preprocessing(32, 32)
    loader = EvalLoader(EvalSamples(data.val, (way,)), 8, 0, CPU, ProcessGroup())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evaluate(TASK, [EvalModel(Brightness(True), way)], loader, [way], torch.float32, ProcessGroup())
    assert "evaluating:" in capsys.readouterr().err


def test_topk_counts_the_true_class() -> None:
    predictions = ClassPredictions(
        np.array([0, 1, 2, 3]), np.array([[0, 1], [0, 1], [2, 0], [1, 2]]), np.zeros(4, np.float32)
    )
    metrics = predictions.metrics()
    assert (metrics["top1"], metrics["top5"]) == (50.0, 75.0)
    assert predictions.hits().tolist() == [True, False, True, False]


def test_an_evaluation_that_skips_an_image_is_an_error(folders: Path) -> None:
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    way = Preprocessing(32, 32)
    loader = EvalLoader(EvalSamples(data.val, (way,)), 8, 0, CPU, ProcessGroup())
    loader.reader = list(loader.reader)[:-1]  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="every image exactly once"):
        evaluate(TASK, [EvalModel(Brightness(True), way)], loader, [way], torch.float32, ProcessGroup())


def test_gflops_are_multiply_adds() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
    assert complexity.gflops(net, 16) == pytest.approx((3 * 8 * 9 * 256 + 8 * 256 * 10) / 1e9)
    assert complexity.parameters(net) == 3 * 8 * 9 + 8 * 256 * 10 + 10
