"""Small data that the tests make themselves, and the entry points run as a user runs them."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.io import write_jpeg

from tests.networks import NarrowLinear
from tests.processes import REPOSITORY, Process, kill_all

torch.set_num_threads(1)  # several tests run beside each other, each on tensors too small for more

Command = Callable[..., subprocess.CompletedProcess[str]]


# The files that take longest, first: what is left at the end keeps every worker busy. That of Slurm waits most of its
# time, while the others compute.
LONGEST = (
    *("test_slurm", "test_resume", "test_factory", "test_closed_form", "test_detection", "test_export", "test_sweep"),
    *("test_distributed", "test_train", "test_kernel_code", "test_calibrated_start", "test_insertion_families"),
    *("test_map_layouts", "test_first_gpu", "test_evaluation_sets", "test_repair_run", "test_paper_counts"),
    *("test_locale", "test_any_network", "test_attention_kinds", "test_evaluate", "test_verify_run", "test_packaging"),
    *("test_recipes", "test_convert_lite", "test_hash_batches", "test_tensorboard", "test_startup"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python SCRIPT ARGUMENTS` in an empty folder, without internet and with an empty weights cache."""

    def run(
        script: str, *arguments: str, prepare: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {"TORCH_HOME": str(tmp_path / "torch_home"), "CUDA_VISIBLE_DEVICES": ""}
        return Process(script, arguments, tmp_path, environment, prepare).result()

    return run


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    kill_all()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in class folders: three classes told apart by brightness, 16 training and 7 validation images each."""
    root = tmp_path_factory.mktemp("folders")
    for split, per_class, first_seed in (("train", 16, 0), ("val", 7, 50)):
        for label in range(3):
            for i in range(per_class):
                seed = first_seed + 100 * label + i
                write_image(root / split / f"class{label}" / f"{i}.JPEG", 60 + 70 * label, seed)
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


def script_module(name: str) -> ModuleType:
    """scripts/NAME.py, imported."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def write_image(path: Path, brightness: int, seed: int, height: int = 40, width: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = np.clip(random.normal(brightness, 20, (3, height, width)), 0, 255).astype(np.uint8)
    write_jpeg(torch.from_numpy(pixels), str(path))


@pytest.fixture(scope="module")
def narrow_classifiers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.vgg.nn, "Linear", NarrowLinear)
        yield


@pytest.fixture(scope="module")
def fast_initialization() -> Iterator[None]:
    """Draw 16,381 numbers for a large tensor and repeat them: a network is built in a fifth of the time.

    The number is a prime: no two rows of a weight are equal.
    """
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch.Tensor, "normal_"), (torch.Tensor, "uniform_"), (nn.init, "trunc_normal_")):
            patch.setattr(owner, name, repeated(getattr(owner, name), 16_381))
        yield


def repeated(draw: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
    """Return the function that draws for the first `count` numbers of a large tensor, and copies them to the others."""

    @torch.no_grad()
    def fill(tensor: Tensor, *given: object, **options: object) -> Tensor:
        if tensor.is_meta or tensor.numel() < 4 * count or not tensor.is_contiguous():
            return draw(tensor, *given, **options)
        flat, whole = tensor.view(-1), tensor.numel() // count * count
        block = draw(flat[:count], *given, **options).clone()
        flat[:whole].view(-1, count).copy_(block)
        flat[whole:].copy_(block[: tensor.numel() - whole])
        return tensor

    return fill
