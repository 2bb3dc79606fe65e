"""Detection by the entry points: training, resuming, several processes, tables."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.io import decode_image

from engine.tasks.box_predictions import BoxPredictions
from tests import scenes
from tests.commands import arguments, assert_one_line, replaced
from tests.conftest import Command
from tests.processes import Process, start_ranks

LOSSES = ("loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write(tmp_path_factory.mktemp("scenes") / "coco")


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of a detector plain, with CBAM in the backbone, and before the heads."""
    folder = tmp_path_factory.mktemp("trained")
    for more in ((), ("attention=cbam", "run.pictures=2"), ("attention=cbam", "attention.at=heads")):
        result = Process("train.py", scenes.arguments(root, *more), folder, {}).result()
        assert result.returncode == 0, result.stderr
    return folder


def run(folder: Path, name: str) -> Path:
    return folder / "runs" / "scenes" / f"faster_rcnn_small-mobilenet_v3_small{name}" / "seed51"


def record(directory: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((directory / "record.json").read_text())
    return read


def test_a_run_records_its_precision_losses_and_pictures(trained: Path) -> None:
    directory = run(trained, "_cbam")
    finished = record(directory)
    assert finished["status"] == "finished"
    assert (finished["model"], finished["detector"], finished["attention"]) == (
        *("mobilenet_v3_small", "faster_rcnn_small", "cbam"),
    )
    assert all(0 <= finished[name] <= 100 for name in ("ap", "ap50", "ap75", "ap_start"))
    assert [row["epoch"] for row in finished["history"]] == [0, 1, 2]
    assert all("val_ap" in row for row in finished["history"])
    events = EventAccumulator(str(directory)).Reload()
    tags = events.Tags()
    losses = {f"loss/{name.removeprefix('loss_')}_step" for name in LOSSES if name != "loss"}
    assert losses | {"loss/step", "accuracy/ap_val", "accuracy/ap50_val"} <= set(tags["scalars"])
    assert tags["images"] == ["ground truth (left) and detections (right)"]
    assert [file.name for file in sorted((directory / "pictures").iterdir())] == [f"epoch00{i}.png" for i in range(3)]
    assert finished["annotation_problems"]["train"][0] == "Crowds: 1 (first in train2017/2.jpg), removed."
    assert "Images without boxes: 1 (first in val2017/1.jpg), kept." in finished["annotation_problems"]["val"]


def test_detections_of_every_image_are_kept(trained: Path) -> None:
    finished = record(run(trained, ""))
    predictions = BoxPredictions.load(run(trained, "") / "predictions.npz", finished["predictions_sha256"])
    assert len(predictions.scores) == scenes.IMAGES["val"]
    assert (predictions.true_labels >= 0).sum(axis=1).tolist() == [0, 3, 2, 2, 2, 2, 2]
    assert predictions.true_ignored.sum() == 1
    assert {name: finished[name] for name in predictions.metrics()} == predictions.metrics()


def test_table_of_detectors_follows_from_detections(
    trained: Path, root: Path, command: Command, tmp_path: Path
) -> None:
    common = ("data=coco", f"data.root={root}", "data.name=scenes", "runtime.workers=0", "table.dir=table")
    done = command("evaluate.py", *common, f"run.root={trained / 'runs'}")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table" / "table.json").read_text())
    assert [row["attention"] for row in table["rows"]] == ["none", "cbam", "cbam-at.heads"]
    assert [row["baseline"] for row in table["rows"]] == [None, 0, 0]
    for row, name in zip(table["rows"], ("", "_cbam", "_cbam-at.heads"), strict=True):
        assert row["ap"] == record(run(trained, name))["ap"]
        assert row["difference"] == pytest.approx(row["ap"] - table["rows"][0]["ap"]) if name else True
    assert "AP (%)" in done.stdout
    markdown = (tmp_path / "table" / "table.md").read_text()
    assert "AP50 (%)" in (tmp_path / "table" / "details.md").read_text()
    assert command("scripts/render_table.py", "table").stdout.strip() == markdown.strip()
    file = tmp_path / "table" / "runs" / "faster_rcnn_small-mobilenet_v3_small_cbam_seed51.npz"
    arrays = dict(np.load(file))
    arrays["scores"][1, 0] /= 2
    np.savez(file, **arrays)
    assert_one_line(command("scripts/render_table.py", "table"), "do not match their recorded digest")
    assert command("scripts/verify_run.py", str(run(trained, ""))).returncode == 0


def test_a_detector_is_not_exported(trained: Path, command: Command) -> None:
    weights = f"model.weights={run(trained, '')}/checkpoint/last.pt"
    done = command("scripts/export.py", "model=mobilenet_v3_small", weights, "file=net.pt2")
    assert_one_line(done, "last.pt is a detector, which cannot be exported")


def outcome(directory: Path) -> tuple[object, ...]:
    finished = record(directory)
    return tuple(finished[key] for key in ("weights_sha256", "predictions_sha256", "history"))


@pytest.mark.parametrize("killed", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_detector_run_resumes_to_the_same_bits(killed: int, root: Path, trained: Path, tmp_path: Path) -> None:
    given = scenes.arguments(root, "run.checkpoint_every_steps=1", "run.dir=run")
    started = time.monotonic()
    assert Process("train.py", replaced(given, "run.dir=undisturbed"), tmp_path, {}).result().returncode == 0
    seconds = time.monotonic() - started
    moments = random.Random(51)
    kills, runs = 0, 0
    while kills < killed:
        process = Process("train.py", replaced(given, f"run.dir=run{runs}"), tmp_path, {})
        if process.wait(moments.uniform(0.3, 0.9) * seconds) is None:
            os.kill(process.pid, signal.SIGKILL)
            process.result()
            kills += (tmp_path / f"run{runs}" / "checkpoint" / "last.pt").exists()
        else:
            assert process.result().returncode == 0
            runs += 1
    assert Process("train.py", replaced(given, f"run.dir=run{runs}"), tmp_path, {}).result().returncode == 0
    expected = outcome(run(trained, ""))
    assert outcome(tmp_path / "undisturbed") == expected
    assert [outcome(tmp_path / f"run{number}") == expected for number in range(runs + 1)] == [True] * (runs + 1)


def test_two_ranks_train_together(root: Path, tmp_path: Path) -> None:
    given = scenes.arguments(root, "attention=cbam", "recipe.epochs=1", "run.dir=run")
    ranks = start_ranks(2, "train.py", given, tmp_path)
    first, second = (process.result() for process in ranks)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert record(tmp_path / "run")["processes"] == 2
    assert np.isfinite(record(tmp_path / "run")["ap"])


@pytest.mark.parametrize("augment", ["multi_scale", "ssd"])
def test_box_digests_do_not_depend_on_workers_or_ranks(augment: str, root: Path, tmp_path: Path) -> None:
    given = scenes.arguments(root, f"recipe.box_augment={augment}")
    digests = []
    for ranks, workers in ((1, 0), (1, 1), (1, 4), (2, 0)):
        processes = start_ranks(
            ranks, "scripts/hash_batches.py", replaced(given, f"runtime.workers={workers}"), tmp_path
        )
        first, *_ = (process.result() for process in processes)
        assert first.returncode == 0, first.stderr
        digests.append([line for line in first.stdout.splitlines() if line.startswith(("files", "epoch"))])
    assert len(digests[0]) == 3
    assert digests[0][1] != digests[0][2]
    assert digests == [digests[0]] * 4


def test_a_detector_starts_from_a_classification_run(folders: Path, root: Path, tmp_path: Path) -> None:
    classifier = arguments(folders, "model=mobilenet_v3_small_cbam", "model.weights=null", "recipe.epochs=1")
    assert Process("train.py", [*classifier, "run.dir=classifier"], tmp_path, {}).result().returncode == 0
    weights = "model.weights=classifier/checkpoint/last.pt"
    given = scenes.arguments(root, "attention=cbam", weights, "recipe.epochs=1", "run.dir=run")
    result = Process("train.py", given, tmp_path, {}).result()
    assert result.returncode == 0, result.stderr
    assert record(tmp_path / "run")["start_weights"] == "classifier/checkpoint/last.pt"


def test_a_loss_that_is_not_finite_stops_the_run(root: Path, command: Command) -> None:
    done = command("train.py", *scenes.arguments(root, "recipe.lr=1e15", "recipe.warmup_epochs=0"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert "lower recipe.lr" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data=shapes_boxes", "detector=none"], "shapes_boxes has boxes; add detector=faster_rcnn"),
        (["data=imagenet", "detector=ssd300"], "imagenet has no boxes; leave out detector=ssd300"),
        (["data=imagenet", "attention=cbam", "attention.at=heads"], "attention.at=heads needs a detector"),
        (["data=voc"], "data.classes must list the classes"),
        (["data=coco", "data.classes=[cat]"], "data.classes cannot be set for data.layout=coco"),
        (
            ["data=voc2007", "recipe.box_augment=multi_scale"],
            "recipe.box_augment=multi_scale needs detector=faster_rcnn",
        ),
        (["data=coco", "recipe=finetune"], "recipe.label_smoothing=0.1 is for classification only"),
        (["data=shapes_boxes", "recipe.mixup=0.2"], "recipe.mixup=0.2 is for classification only"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(given: list[str], said: str, command: Command) -> None:
    assert_one_line(command("train.py", *replaced(["model=resnet18", "model.weights=null"], *given)), said)


def test_a_backbone_that_does_not_fit_is_said_in_one_sentence(root: Path, command: Command) -> None:
    given = ("model=resnet18", "model.weights=null", "data=coco", f"data.root={root}", "detector=ssd300")
    assert_one_line(command("train.py", *given), "SSD300 requires a VGG, not resnet18")


def test_absent_data_set_says_where_and_what_to_do(command: Command, tmp_path: Path) -> None:
    absent = command("train.py", "model=resnet50", "data=coco")
    assert_one_line(absent, f"There is no {tmp_path}/data/coco/annotations", "or try data=shapes_boxes")


def test_detections_of_two_runs_are_drawn_beside_each_other(
    trained: Path, root: Path, command: Command, tmp_path: Path
) -> None:
    runs = f"runs={run(trained, '')},{run(trained, '_cbam')}"
    image = f"image={root / 'val2017' / '3.jpg'}"
    done = command("scripts/show_detections.py", runs, image, "file=drawn.png")
    assert done.returncode == 0, done.stderr
    assert decode_image(str(tmp_path / "drawn.png")).shape == (3, 300, 2 * 385)
    assert_one_line(command("scripts/show_detections.py", "runs=nothing", image, "file=drawn.png"), "no finished run")
