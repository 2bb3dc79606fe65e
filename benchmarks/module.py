"""The time of CBAM forward and backward, compared with its memory-bandwidth floor and with other implementations."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from benchmarks.clock import take_turns
from benchmarks.report import Section
from cbam import CBAM

# Stages of ResNet-50: on a GPU, all four at a training batch in bf16; on a CPU, the first two at a small batch in fp32.
CUDA_SHAPES = ((256, 256, 56, 56), (256, 512, 28, 28), (256, 1024, 14, 14), (256, 2048, 7, 7))
CPU_SHAPES = ((16, 256, 56, 56), (16, 512, 28, 28))

# Least number of passes over the feature map: forward reads it and writes the output; backward reads it and the
# output's gradient, and writes the input's.
PASSES = 5


class Refine(nn.Module):
    """CBAM with only the refined map as output, as networks use it."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.cbam = CBAM(planes)

    def forward(self, x: Tensor) -> Tensor:
        return self.cbam.refine(x)


class Usual(nn.Module):
    """CBAM as it is usually implemented, with autograd's backward."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        hidden = planes // 16
        layers = nn.Conv2d(planes, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, planes, 1, bias=False)
        self.mlp = nn.Sequential(*layers)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = torch.sigmoid(pooled) * x
        planes = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return torch.sigmoid(self.conv(planes)) * x


def measure(_: Path, device: torch.device) -> Section:
    """Measure a row for each shape and implementation."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    rows = []
    for shape in CUDA_SHAPES if on_gpu else CPU_SHAPES:
        x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        implementations = {name: module.to(device, dtype) for name, module in _modules(shape[1], on_gpu).items()}
        steps = {name: _step(module, x) for name, module in implementations.items()}
        seconds = take_turns({"copy": lambda x=x: x.detach().clone(), **steps}, 20, device)  # type: ignore[misc]
        floor = PASSES / 2 * seconds["copy"].median  # a copy reads and writes once
        for name, module in implementations.items():
            rows.append(
                {
                    "shape": "x".join(map(str, shape)),
                    "implementation": name,
                    "ms": 1e3 * seconds[name].median,
                    "spread (ms)": 1e3 * seconds[name].spread,
                    "times the floor": seconds[name].median / floor,
                    **{
                        f"{peer} / this": seconds[peer].median / seconds[name].median
                        for peer in implementations
                        if not peer.startswith("here")
                    },
                    "kept for backward (maps)": _kept(module, x) / (x.numel() * x.element_size()),
                    "peak (maps)": _peak(steps[name], x, device) / (x.numel() * x.element_size()),
                }
            )
    return {
        "about": f"Forward and backward, {str(dtype).removeprefix('torch.')}, channels_last; the median of 20 rounds "
        f"in which the implementations take turns. Floor: {PASSES} passes over the feature map at the bandwidth of a "
        "copy, measured in the same rounds. Maps: bytes divided by those of one feature map, without the input.",
        "rows": rows,
    }


def _modules(planes: int, on_gpu: bool) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    here, compiled = Refine(planes), torch.compile(Refine(planes))
    found: dict[str, nn.Module] = {"here, eager": here, "here, compiled": compiled}  # type: ignore[dict-item]
    if on_gpu:
        found["here, fused"] = Refine(planes)
        models.fuse(found["here, fused"])
    found["usual, eager"] = Usual(planes)
    try:
        from timm.layers.cbam import CbamModule
    except ImportError:
        return found
    timms = CbamModule(planes)
    return {**found, "timm, eager": timms, "timm, compiled": torch.compile(timms)}


def _step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    gradient = torch.randn_like(x)

    def step() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(gradient)

    return step


def _kept(module: nn.Module, x: Tensor) -> int:
    """Return the bytes that the forward pass saves for backward, besides the input and the parameters."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = module(x)
    del output
    return sum(kept.values())


def _peak(step: Callable[[], None], x: Tensor, device: torch.device) -> int:
    """Return the peak bytes of a step, besides its input and the gradient of its output.

    On the CPU this is accurate for maps of 32 MiB and more, because the allocator keeps smaller freed blocks. Memory
    that is free before the step is returned first, so that the step does not use it unnoticed.
    """
    x.grad = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    """Return the resident bytes of this process: VmRSS is the current value, VmHWM the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
