"""Training images a second from JPEG files, against torchvision's reference recipe and timm's loader."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from benchmarks.evaluation import repeated
from benchmarks.report import Section
from engine.datasets import Split
from engine.distributed import Ranks
from engine.loader import TrainLoader, TrainSamples

WORKERS, BATCH, SIZE = 2, 32, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Dataset):
    """PIL images and labels, as torchvision's ImageFolder gives them."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.transform: Callable[[object], object] | None = None  # timm sets it

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = default_loader(self.split.path(index))
        return (image if self.transform is None else self.transform(image)), 0


def measure(images: Path, where: torch.device) -> Section:
    """Images a second from the loader's start to the last batch on the device; the best of three rounds each."""
    torch.set_num_threads(1)
    split = repeated(images, at_least=2048)
    ways: dict[str, Callable[[], Iterable]] = {
        "here": lambda: TrainLoader(TrainSamples(split, 51, SIZE, 0.08), BATCH, WORKERS, where, Ranks()).epoch(0),
        "torchvision's reference": lambda: _reference(split),
    }
    try:
        import timm  # noqa: F401

        ways["timm"] = lambda: _timm(split, where)
    except ImportError:
        pass
    best = dict.fromkeys(ways, 0.0)
    for _ in range(3):
        for name, way in ways.items():
            started = time.perf_counter()
            count = sum(len(batch[0]) for batch in way())
            best[name] = max(best[name], count / (time.perf_counter() - started))
    rows = [{"loader": name, "images/s": rate, "here / this": best["here"] / rate} for name, rate in best.items()]
    return {
        "about": f"{len(split)} full-size JPEGs to crops of {SIZE} px in batches of {BATCH}, {WORKERS} workers, wall "
        "clock from the loader's start, its workers' start included; the fastest of three rounds, taking turns. The "
        "reference and timm's loader decode with Pillow.",
        "rows": rows,
    }


def _reference(split: Split) -> DataLoader:
    """references/classification of torchvision: its ClassificationPresetTrain with the PIL backend."""
    images = Images(split)
    images.transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)


def _timm(split: Split, where: torch.device) -> Iterable:
    from timm.data import create_loader

    loader: Iterable = create_loader(
        Images(split),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=where.type == "cuda",
        num_workers=WORKERS,
        mean=MEAN,
        std=STD,
        device=where,
    )
    return loader
