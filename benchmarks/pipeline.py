"""Training images/s from JPEG files, compared with torchvision's reference, timm's loader and DALI."""

import importlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from benchmarks.clock import Typical
from benchmarks.evaluation import repeated
from benchmarks.report import Section
from engine.data.augmentation import NO_AUGMENTATION, Augmentation
from engine.data.datasets import Split
from engine.data.loader import TrainLoader
from engine.data.transforms import Preprocessing, normalize
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import TrainSamples

HERE, NORMALIZED, AUGMENTED = "here", "here, normalized", "here, TrivialAugment and erasing"
ROUNDS, WORKERS, BATCH, SIZE = 5, 2, 32, 224
PREPROCESSING = Preprocessing(resize=256, crop=SIZE)


class Images(Dataset):
    """PIL images and labels, as in torchvision's ImageFolder."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.transform: Callable[[object], object] | None = None  # timm sets it

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = default_loader(self.split.path(index))
        return (image if self.transform is None else self.transform(image)), 0


def measure(images: Path, device: torch.device) -> Section:
    """Measure each loader's images/s, from its start to its last batch."""
    torch.set_num_threads(1)  # the cores are for the workers
    split = repeated(images, at_least=4096)
    loaders: dict[str, Callable[[], Iterable]] = {
        HERE: lambda: _loader(split, device).epoch(0),
        NORMALIZED: lambda: (
            (normalize(images, PREPROCESSING, torch.contiguous_format),) for (images,), *_ in loaders[HERE]()
        ),
        AUGMENTED: lambda: _loader(split, device, Augmentation("trivialaugment", erase=0.1)).epoch(0),
        "here, second epoch, images cached": lambda: _second_epoch(_loader(split.cached(), device)),
        "torchvision's reference": lambda: _reference(split),
    }
    if _installed("timm"):
        loaders["timm's defaults"] = lambda: _timm(split, device)
        loaders["timm without color jitter"] = lambda: _timm(split, device, color_jitter=None)
    if _installed("nvidia.dali"):
        loaders["DALI on the CPU"] = lambda: _dali(split)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            rates[name].append(_rate(loader()))
    rows = []
    for name, each in rates.items():
        typical = Typical.of(each)
        rows.append({"loader": name, "images/s": typical.median, "spread": typical.spread})
        for ours in (HERE, NORMALIZED):
            rows[-1][f"{ours} / this"] = Typical.of([a / b for a, b in zip(rates[ours], each, strict=True)]).median
    return {
        "about": f"{len(split)} full-size JPEGs to crops of {SIZE} px in batches of {BATCH}, {WORKERS} workers. Wall "
        "clock from the loader's start to the last batch; it includes the workers' start except in the second epoch. "
        f"Rates and ratios are medians of {ROUNDS} rounds in which the loaders take turns. Our loader returns uint8 "
        "for the device to normalize; the second row and the last column include normalization. The reference decodes "
        "with Pillow and returns normalized float32. So does timm's loader, which sends uint8 and normalizes in its "
        "prefetcher; by default it also jitters colors. DALI decodes only the crops, in as many threads, and "
        "normalizes.",
        "rows": rows,
    }


def _installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        print(f"{package} is not installed; its loader is omitted (see `bench` in pyproject.toml).", file=sys.stderr)
        return False
    return True


def _rate(batches: Iterable) -> float:
    count, started = 0, time.perf_counter()
    ended = started
    for images, *_ in batches:
        count += len(images[0]) if isinstance(images, list) else len(images)
        ended = time.perf_counter()  # excludes the shutdown of the workers after the last batch
    return count / (ended - started)


def _loader(split: Split, device: torch.device, augmentation: Augmentation = NO_AUGMENTATION) -> TrainLoader:
    samples = TrainSamples(split, 51, SIZE, 0.08, augmentation)
    return TrainLoader(samples, BATCH, 51, WORKERS, device, ProcessGroup())


def _second_epoch(loader: TrainLoader) -> Iterable:
    for _ in loader.epoch(0):
        pass
    return loader.epoch(1)


def _reference(split: Split) -> DataLoader:
    """Return torchvision's references/classification: its ClassificationPresetTrain with the PIL backend."""
    images = Images(split)
    images.transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    return DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)


def _timm(split: Split, device: torch.device, **options: object) -> Iterable:
    from timm.data import create_loader

    loader: Iterable = create_loader(
        Images(split),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        num_workers=WORKERS,
        mean=PREPROCESSING.mean,
        std=PREPROCESSING.std,
        device=device,
        **options,
    )
    return loader


def _dali(split: Split) -> Iterable:
    """Yield the batches of DALI's usual training pipeline on the CPU, which decodes only the crop."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)  # type: ignore[untyped-decorator]
    def training() -> tuple[object, object]:
        files = [split.path(index) for index in range(len(split))]
        encoded, labels = fn.readers.file(files=files, random_shuffle=True)
        crops = fn.decoders.image_random_crop(
            encoded, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(crops, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_LINEAR, antialias=True)
        mean, std = [255 * value for value in PREPROCESSING.mean], [255 * value for value in PREPROCESSING.std]
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(images, output_layout="CHW", mean=mean, std=std, mirror=mirror), labels

    pipeline = training()
    pipeline.build()
    for _ in range(len(split) // BATCH):
        images, labels = pipeline.run()
        yield torch.utils.dlpack.from_dlpack(images.as_tensor()), labels
