"""The benchmarks measure what they claim to. The numbers themselves are in results/benchmark."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import evaluation, module, pipeline, report, training
from benchmarks.evaluation import repeated
from engine.data.datasets import Split
from engine.processes import startup
from tests.commands import assert_one_line
from tests.conftest import Command, write_image

CPU = torch.device("cpu")


def few(folder: Path, at_least: int) -> Split:
    return repeated(folder, min(at_least, 64))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a folder of images and limit the number that the benchmarks use."""
    for number in range(8):
        write_image(tmp_path / "images" / f"{number}.JPEG", 90, seed=number)
    for section in (pipeline, evaluation, training):
        monkeypatch.setattr(section, "repeated", few)
    return tmp_path / "images"


class Product(nn.Module):
    """x * sigmoid(x), which saves one map for backward besides its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_memory_is_counted_in_maps() -> None:
    x = torch.randn(64, 2**18).requires_grad_()  # 64 MiB, which the allocator frees immediately
    one_map = x.numel() * x.element_size()
    assert module._kept(Product(), x) == one_map
    startup._keep_freed_memory()
    freed = [torch.ones(2**18) for _ in range(600)]  # 600 MiB that the process keeps
    freed.clear()
    # At the peak: the sigmoid, the output, the gradients of both factors and the gradient through the sigmoid.
    assert module._peak(module._step(Product(), x), x, CPU) / one_map == pytest.approx(5, abs=0.1)


def test_loaders_take_turns(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter(
        [
            *(1000.0, 800.0, 750.0, 3000.0, 500.0),
            *(100.0, 90.0, 80.0, 300.0, 40.0),
            *(1200.0, 900.0, 700.0, 3000.0, 600.0),
        ]
    )
    monkeypatch.setattr(pipeline, "ROUNDS", 3)
    monkeypatch.setattr(pipeline, "_rate", lambda batches: (next(iter(batches)), next(rates))[1])
    for peer in ("timm", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, peer, None)
    rows = pipeline.measure(images, CPU)["rows"]
    assert [row["images/s"] for row in rows] == [1000.0, 800.0, 700.0, 3000.0, 500.0]
    assert rows[4]["loader"] == "torchvision's reference"
    assert rows[4]["here / this"] == 2.0  # of 2, 2.5 and 2
    assert rows[4]["here, normalized / this"] == 1.6  # of 1.6, 2.25 and 1.5


def test_loaders_give_equal_batches(images: Path) -> None:
    split = repeated(images, 64)
    shape = (pipeline.BATCH, 3, pipeline.SIZE, pipeline.SIZE)
    ours = [pipeline._loader(split, CPU).epoch(0), pipeline._second_epoch(pipeline._loader(split.cached(), CPU))]
    for loader in ours:
        assert [tuple(batch.views[0].shape) for batch in loader] == [shape, shape]
    peers = {"timm": pipeline._timm, "nvidia.dali": lambda split, _: pipeline._dali(split)}
    loaders = [
        pipeline._reference(split),
        *(loader(split, CPU) for name, loader in peers.items() if pipeline._installed(name)),
    ]
    for peer in loaders:
        assert [tuple(images.shape) for images, _ in peer] == [shape, shape]


def test_training_from_files_is_measured(images: Path) -> None:
    rows = training.measure(images, CPU)["rows"]
    assert [row["network"] for row in rows] == ["resnet18", "resnet18_cbam"]
    assert all(row["images/s"] > 0 and 0 <= row["waiting for images (%)"] < 100 for row in rows)


def test_report_keeps_sections_not_measured_again(tmp_path: Path) -> None:
    measured = {"measured": report.circumstances(CPU)}
    section = {"about": "Two loaders.", "rows": [{"loader": "a", "ms": 1.234}], **measured}
    report.write(tmp_path, "here", {"one": section, "two": section})
    again = report.write(
        tmp_path, "here", {"two": {"about": "Anew.", "rows": [{"loader": "b", "ms": 2.0}], **measured}}
    )
    assert (tmp_path / "here.md").read_text() == again
    assert "| a | 1.23 |" in again
    assert "Anew." in again
    assert list(json.loads((tmp_path / "here.json").read_text())["sections"]) == ["one", "two"]


def test_images_that_are_not_there_are_named_before_the_work(command: Command) -> None:
    done = command("scripts/benchmark.py", "--machine", "mine", "--images", "nowhere")
    assert_one_line(done, "There is no folder nowhere; set --images to a folder with full-size images.")
