"""Training steps of whole networks on one GPU: speed and peak memory, without and with each implementation of CBAM."""

import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

import cbam
import models
from benchmarks.clock import take_turns
from benchmarks.report import Section

NETWORKS = ("resnet50", "mobilenet_v2")
# Name in the table: attention, fused, compiled. The first is the reference; the slowest to prepare come last.
VARIANTS = {
    "plain": ("none", False, False),
    "CBAM, eager": ("cbam", False, False),
    "CBAM, fused": ("cbam", True, False),
    "SE": ("se", False, False),
    "timm's CBAM": ("CbamModule", False, False),
    "timm's SE": ("SEModule", False, False),
    "CBAM, compiled": ("cbam", False, True),
    "CBAM, fused and compiled": ("cbam", True, True),
    "plain, compiled": ("none", False, True),
}
COLUMNS = ("images/s", "relative to plain", "peak (GB)")
TIMMS = {"CbamModule": "timm.layers.cbam", "SEModule": "timm.layers.squeeze_excite"}


def measure(images: Path, device: torch.device, deadline: float) -> Section:
    """Measure a row for each variant, until the deadline of `time.monotonic`. A variant that fails does not end it."""
    on_gpu = device.type == "cuda"
    batch, size, dtype = (256, 224, torch.bfloat16) if on_gpu else (2, 64, torch.float32)
    photographs = batch_of(images, batch, size).to(device).contiguous(memory_format=torch.channels_last)
    variants = {title: kind for title, kind in VARIANTS.items() if on_gpu or not any(kind[1:])}
    rows: dict[str, dict[str, object]] = {title: {"variant": title} for title in variants}
    for name in NETWORKS if on_gpu else NETWORKS[1:]:
        plain: float | None = None
        for title, (attention, fused, compiled) in variants.items():
            values: tuple[object, ...] = ("no time left", "-", "-")
            if time.monotonic() < deadline:
                try:
                    seconds, peak = _time(_step(name, attention, fused, compiled, photographs, dtype), device)
                    plain = seconds if title == "plain" else plain
                    values = batch / seconds, plain / seconds if plain else "-", peak / 1e9
                except Exception as error:  # timm is not installed, too little memory, an error of torch.compile
                    values = (f"{type(error).__name__}: {error}".splitlines()[0][:40], "-", "-")
            rows[title] |= {f"{name}: {column}": value for column, value in zip(COLUMNS, values, strict=True)}
    return {
        "about": f"Steps of SGD on {batch} photographs of {size} px that are on the device, "
        f"{str(dtype).removeprefix('torch.')}, channels_last; medians of {_rounds(device)} steps. Peak: of allocated "
        "memory.",
        "rows": list(rows.values()),
    }


def batch_of(images: Path, batch: int, size: int) -> Tensor:
    """Return photographs below a folder, fp32 [batch, 3, size, size] with zero mean and unit variance, repeated."""
    found = [_photograph(file, size) for file in files(images, min(batch, 64))]
    whole = torch.stack(found).repeat(-(-batch // len(found)), 1, 1, 1)[:batch]
    return (whole - whole.mean()) / whole.std()


def files(images: Path, most: int) -> list[Path]:
    """Return the first images below a folder.

    Raises:
        ModelError: if there are none.
    """

    def jpegs() -> Iterator[Path]:
        yield from (file for file in sorted(images.rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg", ".png"))

    found = [file for _, file in zip(range(most), jpegs(), strict=False)]
    if not found:
        raise models.ModelError(f"There are no images below {images.absolute()}; set --images to a folder of JPEGs.")
    return found


def _photograph(file: Path, size: int) -> Tensor:
    image = decode_image(str(file), mode=ImageReadMode.RGB)
    return transforms.resize(transforms.center_crop(image, [min(image.shape[1:])] * 2), [size, size]).float()


def _step(
    name: str, attention: str, fused: bool, compiled: bool, images: Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    torch.manual_seed(0)
    torch.compiler.reset()  # otherwise, the variants share a limit on recompilations, and stay in memory
    net = _with_timms(name, attention) if attention in TIMMS else models.build(name, attention=attention)
    net = net.to(images.device).to(memory_format=torch.channels_last)
    if fused:
        models.fuse(net)
    labels = torch.arange(len(images), device=images.device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=True)
    forward: nn.Module | Callable = torch.compile(net) if compiled else net

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _with_timms(name: str, layer: str) -> nn.Module:
    """Return a network with a layer of timm where it has CBAM."""
    module = importlib.import_module(TIMMS[layer])
    places = cbam.check(models.build(name, attention="cbam"))
    net = models.build(name)
    cbam.insert_layer(net, places, getattr(module, layer))
    return net


def _time(step: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """Return the seconds of a step, and the peak of allocated bytes (0 on the CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        step()  # chooses and compiles kernels, which takes memory too
        torch.cuda.reset_peak_memory_stats(device)
    seconds = take_turns({"step": step}, _rounds(device), device)["step"].median
    return seconds, torch.cuda.max_memory_allocated(device) if on_gpu else 0


def _rounds(device: torch.device) -> int:
    return 12 if device.type == "cuda" else 2
