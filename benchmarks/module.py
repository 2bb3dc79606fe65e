"""CBAM forward and backward, against the least that its memory traffic allows, the usual implementation and timm's."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from benchmarks.clock import take_turns
from benchmarks.report import Section
from cbam import CBAM

# Stages of ResNet-50: on a GPU all four at a training batch in bf16, on a CPU the largest at a small one in fp32.
CUDA_SHAPES = ((256, 256, 56, 56), (256, 512, 28, 28), (256, 1024, 14, 14), (256, 2048, 7, 7))
CPU_SHAPES = ((16, 256, 56, 56), (16, 512, 28, 28))

PASSES = (
    5  # over the feature map, at least: forward reads and writes it, backward reads it and its gradient, writes one
)


class Refine(nn.Module):
    """The refined map alone, as networks use it."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.cbam = CBAM(planes)

    def forward(self, x: Tensor) -> Tensor:
        return self.cbam.refine(x)


class Usual(nn.Module):
    """CBAM as implementations of it are usually written, left to autograd."""

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
    """A row for each shape and way."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    rows = []
    for shape in CUDA_SHAPES if on_gpu else CPU_SHAPES:
        x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        ways = {name: module.to(device, dtype) for name, module in _modules(shape[1], on_gpu).items()}
        steps = {name: _step(module, x) for name, module in ways.items()}
        seconds = take_turns({"copy": lambda x=x: x.detach().clone(), **steps}, 20, device)  # type: ignore[misc]
        floor = PASSES / 2 * seconds["copy"].median  # a copy reads and writes once
        for name, module in ways.items():
            rows.append(
                {
                    "shape": "x".join(map(str, shape)),
                    "way": name,
                    "ms": 1e3 * seconds[name].median,
                    "spread (ms)": 1e3 * seconds[name].spread,
                    "times the floor": seconds[name].median / floor,
                    **{
                        f"{peer} / this": seconds[peer].median / seconds[name].median
                        for peer in ways
                        if not peer.startswith("here")
                    },
                    "kept for backward (maps)": _kept(module, x) / (x.numel() * x.element_size()),
                    "peak (maps)": _peak(steps[name], x, device) / (x.numel() * x.element_size()),
                }
            )
    return {
        "about": f"Forward and backward, {str(dtype).removeprefix('torch.')}, channels_last; the median of 20 rounds "
        f"in which the ways take turns. Floor: {PASSES} passes over the feature map at the bandwidth of a copy, "
        "measured in the same rounds. Maps: bytes over those of one feature map, the input not counted.",
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
    """Bytes of what the forward pass keeps for the backward pass, besides the input and the parameters."""
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
    """Bytes that a step needs at a time, besides its input and the gradient of its output.

    On the CPU right for maps of 32 MiB and more: smaller blocks stay with the allocator when they are freed.
    """
    x.grad = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    """Bytes of this process that are in memory: VmRSS now, VmHWM at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
