"""The task of detection: samples, losses, detections kept for every image, and the difference of two detectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from engine.comparison.view import VIEWS
from engine.config.data import DataConfig
from engine.config.detector import DetectorConfig
from engine.config.recipe import RecipeConfig
from engine.config.runtime import RuntimeConfig
from engine.config.schemas import TrainConfig
from engine.data import box_samples
from engine.data.box_samples import PADDING, EvalTargets, images_of
from engine.data.loader import Batch, EvalLoader, TrainLoader
from engine.processes.distributed import ProcessGroup
from engine.runs import checkpoint
from engine.tasks import box_predictions
from engine.tasks.base import Task
from engine.tasks.box_predictions import BoxPredictions, VocPredictions
from engine.tasks.crossed_model import CrossedDifference
from engine.tasks.detection import Detection, VocDetection
from engine.tasks.inference import EvalModel, evaluate
from engine.training.descriptions import describe
from engine.training.trainer import Trainer
from tests import scenes

CPU = torch.device("cpu")
SIZES = DetectorConfig(
    "small", "faster_rcnn", None, None, 64, 96, channels=16, rois=16, train_proposals=40, test_proposals=40
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Detection:
    root = scenes.write(tmp_path_factory.mktemp("scenes") / "coco")
    return Detection(DataConfig("scenes", "coco", str(root), task="detection"), SIZES)


def network(classes: list[str]) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build_detector(models.DetectorSpec(**SIZES.options), "mobilenet_v3_small_cbam", classes=classes)


def batches(task: Detection, epoch: int = 0) -> list[Batch]:
    samples = task.train_samples(task.open().train, 51)
    return list(TrainLoader(samples, 4, 51, 0, CPU, ProcessGroup()).epoch(epoch))


def test_training_images_get_the_detectors_size(task: Detection) -> None:
    (first, *_), data = batches(task), task.open()
    size, boxes, labels = first.targets
    assert first.views[0].shape == (4, 3, 96, 96)
    for image, own, known, index in zip(
        images_of(first.views[0], size), boxes, labels != PADDING, first.indices, strict=True
    ):
        height, width = image.shape[1:]
        assert min(height, width) == 64
        assert known.sum() == 2
        assert own[known].max() <= max(height, width)
        assert (own[~known] == 0).all()
        for label, (x1, y1, x2, y2) in enumerate(own[known].round().int().tolist()):
            inside = image[label, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            assert inside.mean() > 0.7, data.train.path(int(index))
    assert first.views[0][0, :, int(size[0, 0]) :].sum() == 0


def test_a_step_returns_the_losses_by_name(task: Detection) -> None:
    model, (batch, *_) = network(task.open().classes), batches(task)
    loss, sums = task.training_step(model, batch, task.preprocessing(None))
    assert list(task.training_metrics) == [
        *("loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    ]
    assert sums[0].item() == pytest.approx(4 * loss.item())
    assert sums[0].item() == pytest.approx(sums[1:].sum().item())
    assert "classifier 0.500" in describe(task, {"loss": 1.0, "loss_classifier": 0.5})


def test_a_detection_does_not_depend_on_its_neighbors(task: Detection) -> None:
    data = task.open()
    model = EvalModel(network(data.classes), task.preprocessing(None))
    samples = task.eval_samples(data.val, [model.preprocessing])
    found = []
    for batch_size in (1, 7):
        loader = EvalLoader(samples, batch_size, 0, CPU, ProcessGroup())
        found += evaluate(task, [model, model], loader, [model.preprocessing], torch.float32, ProcessGroup())
    assert isinstance(found[0], BoxPredictions)
    assert (found[0].labels >= 0).any()
    assert {one.sha256() for one in found} == {found[0].sha256()}


def average_trainer(task: Detection) -> Trainer:
    recipe = RecipeConfig(epochs=1, batch_size=4, lr=0.02, weight_decay=1e-4, ema_decay=0.8, ema_every_steps=2)
    config = TrainConfig(recipe=recipe, runtime=RuntimeConfig(device="cpu", workers=0))
    data = task.open()
    loader = TrainLoader(task.train_samples(data.train, 51), 4, 51, 0, CPU, ProcessGroup())
    return Trainer(network(data.classes), task, task.preprocessing(None), loader, config, ProcessGroup())


def test_an_average_resumes_exactly_and_detects(task: Detection, tmp_path: Path) -> None:
    straight, interrupted, resumed = (average_trainer(task) for _ in range(3))
    list(straight.steps())
    for _, _step in zip(range(3), interrupted.steps(), strict=False):
        pass
    checkpoint.save(interrupted.state_dict(), tmp_path / "last.pt")
    resumed.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    list(resumed.steps())
    loader = EvalLoader(task.eval_samples(task.open().val, []), 1, 0, CPU, ProcessGroup())
    found = {}
    for name, model in (("straight", straight), ("resumed", resumed)):
        evaluated = [EvalModel(one, straight.preprocessing) for one in (model.evaluated, model.model)]
        found[name] = evaluate(task, evaluated, loader, [straight.preprocessing], torch.float32, ProcessGroup())
    average, last = (one.sha256() for one in found["straight"])
    assert average != last
    assert [one.sha256() for one in found["resumed"]] == [average, last]


def results(*found: tuple[list[list[float]], list[int], list[float]]) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
        for boxes, labels, scores in found
    ]


BOX, OTHER = [10.0, 10, 50, 50], [60.0, 60, 90, 90]


def targets(ignored: bool = False) -> EvalTargets:
    """An image with two objects and one without any."""
    boxes = torch.tensor([[BOX, OTHER], [[0.0] * 4] * 2])
    return EvalTargets(
        size=torch.full((2, 2), 100),
        boxes=boxes,
        labels=torch.tensor([[0, 1], [PADDING, PADDING]]),
        areas=torch.tensor([[1600.0, 900], [0, 0]], dtype=torch.float64),
        ignored=torch.tensor([[False, ignored], [False, False]]),
    )


def predicted(kind: type[BoxPredictions], found: list[dict[str, Tensor]], ignored: bool = False) -> BoxPredictions:
    return kind(
        **{name: array.numpy() for name, array in box_predictions.predictions_of(found, targets(ignored)).items()}
    )


def test_metrics_are_in_percent() -> None:
    perfect = predicted(BoxPredictions, results(([OTHER, BOX], [1, 0], [0.5, 0.9]), ([], [], [])))
    metrics = perfect.metrics()
    assert metrics == pytest.approx(dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium"), 100.0))
    assert perfect.scores[0, :2].tolist() == pytest.approx([0.9, 0.5])  # best first
    assert VIEWS["detection"].values(metrics)["ap_large"] is None


def test_voc_task_adds_the_devkit_metric() -> None:
    found = results(([BOX], [0], [0.9]), ([BOX], [0], [0.95]))  # a false positive above the true one
    metrics = predicted(VocPredictions, found, ignored=True).metrics()
    assert metrics["ap_11_points"] == pytest.approx(50.0)
    assert metrics["ap_area"] == pytest.approx(50.0)
    half = predicted(VocPredictions, found).metrics()
    assert half["ap_11_points"] == pytest.approx(25.0)  # the second object is missed
    assert describe(VocDetection(DataConfig()), metrics).startswith("mAP 50.00% (11 points), AP ")


def scattered(quality: float, seed: int) -> BoxPredictions:
    """Detections of 60 images with an object each, right with a probability."""
    random = np.random.default_rng(seed)
    count = 60
    right = random.random(count) < quality
    boxes = np.where(right[:, None], [BOX], [OTHER]).astype(np.float32)[:, None]
    shape = (count, 1)
    return VocPredictions(
        true_boxes=np.tile(np.array(BOX, np.float32), (count, 1, 1)),
        true_labels=np.zeros(shape, np.int64),
        true_areas=np.full(shape, 1600.0),
        true_ignored=np.zeros(shape, bool),
        boxes=boxes,
        labels=np.zeros(shape, np.int64),
        scores=random.uniform(0.1, 1, shape).astype(np.float32),
    )


def coco(predictions: BoxPredictions) -> BoxPredictions:
    return BoxPredictions(**vars(predictions))


@pytest.mark.parametrize(("kind", "primary"), [(coco, "ap"), (lambda one: one, "ap_11_points")])
def test_detector_difference_is_paired_over_images(kind: Callable, primary: str) -> None:
    good, poor = ([kind(scattered(quality, seed)) for seed in (1, 2)] for quality in (0.9, 0.5))
    ours, theirs = ([one.outcome() for one in seeds] for seeds in (good, poor))
    assert ours[0].value == pytest.approx(good[0].metrics()[primary])
    said = CrossedDifference.of(ours, theirs)
    each = [a.metrics()[primary] - b.metrics()[primary] for a, b in zip(good, poor, strict=True)]
    assert said.per_seed == pytest.approx(each)
    assert (good[0].outcome().deviations == ours[0].deviations).all()  # the same resamples
    same = CrossedDifference.of(ours, ours)
    assert (same.difference, same.half_width(), same.p_value) == (0, 0, 1)


def test_metric_of_each_class() -> None:
    found = predicted(BoxPredictions, results(([BOX], [0], [0.9]), ([], [], [])))
    assert found.per_class() == {0: (1, pytest.approx(100.0)), 1: (1, 0.0)}


def test_predictions_survive_a_file(tmp_path: Path) -> None:
    written = scattered(0.7, 3)
    written.save(tmp_path / "predictions.npz")
    read = VocPredictions.load(tmp_path / "predictions.npz", written.sha256())
    assert read.metrics() == written.metrics()


def test_cached_images_are_the_same(task: Detection) -> None:
    data = task.open()
    for split, cached in ((data.train, data.cached().train), (data.val, data.cached().val)):
        for index in (0, 1, 0, 1):
            assert torch.equal(split.image(index), cached.image(index))
    assert box_samples.BoxEvalSamples(data.val).shapes == [(62, 80)]


def test_a_task_has_few_members() -> None:
    """The science alone: texts, pictures and tables belong to training and comparison."""
    members = {name for name in (*vars(Task), *Task.__annotations__) if not name.startswith("_")}
    assert len(members) <= 12, members
