"""Small data that the tests make themselves, and the entry points run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.io import write_jpeg

REPOSITORY = Path(__file__).resolve().parent.parent

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python SCRIPT ARGUMENTS` in an empty folder, without internet and with an empty weights cache."""

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"TORCH_HOME": str(tmp_path / "torch_home"), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [sys.executable, str(REPOSITORY / script), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in class folders: three classes told apart by brightness, 16 training and 7 validation images each."""
    root = tmp_path_factory.mktemp("folders")
    for split, per_class in (("train", 16), ("val", 7)):
        for label in range(3):
            for i in range(per_class):
                write_image(root / split / f"class{label}" / f"{i}.JPEG", 60 + 70 * label, seed=100 * label + i)
    return root


@pytest.fixture(scope="session")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes in Tiny ImageNet's native layout."""
    root = tmp_path_factory.mktemp("tiny")
    names = [f"n0000000{label}" for label in range(4)]
    for label, name in enumerate(names):
        for i in range(3):
            write_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", 60 * label, seed=i)
    lines = []
    for i in range(8):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", 60 * (i % 4), seed=i)
        lines.append(f"val_{i}.JPEG\t{names[i % 4]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def write_image(path: Path, brightness: int, seed: int, height: int = 40, width: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = np.clip(random.normal(brightness, 20, (3, height, width)), 0, 255).astype(np.uint8)
    write_jpeg(torch.from_numpy(pixels), str(path))


@pytest.fixture(scope="module")
def narrow_classifiers() -> Iterator[None]:
    """VGG's hidden layers of 4096 units get 64: no attention is there, and 120 million parameters take minutes."""

    class NarrowLinear(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(*(64 if width == 4096 else width for width in (inputs, outputs)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.vgg.nn, "Linear", NarrowLinear)
        yield
