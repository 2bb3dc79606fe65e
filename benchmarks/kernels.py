"""The fused kernels of CBAM on this device: their results, their bits, and their times relative to their floor."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.clock import take_turns
from benchmarks.report import Section
from cbam import CBAM, fused_passes
from cbam.convolution import convolution_gradients

Shape = tuple[int, int, int, int]

# The stages of ResNet-50 at a training batch.
CUDA_SHAPES: tuple[Shape, ...] = ((64, 256, 56, 56), (64, 512, 28, 28), (64, 1024, 14, 14), (64, 2048, 7, 7))
CPU_SHAPES: tuple[Shape, ...] = ((1, 8, 5, 5),)  # in Triton's interpreter
ROUNDS = {"cuda": (30, 5), "cpu": (2, 0)}  # and rounds that are not counted
GAIN = 4.0
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}

# Reads and writes of the map in each pass.
TRANSFERS = {
    "pool_positions": 1,
    "pool_channels": 1,
    "scale": 2,
    "factor_gradients": 2,
    "gate_gradient": 1,
    "input_gradient": 2,
}


def shapes(device: torch.device) -> tuple[Shape, ...]:
    return CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES


def results(device: torch.device) -> Section:
    """Compare outputs and gradients with those of autograd in float64, and with a second run."""
    rows = []
    for n, c, h, w in shapes(device):
        shape = min(n, 8), c, h, w  # float64 takes memory
        for layout, memory_format in LAYOUTS.items():
            row: dict[str, object] = {"shape": "x".join(map(str, shape)), "layout": layout}
            for dtype, tolerance in TOLERANCES.items():
                x = _random(shape, dtype, device, memory_format)
                module = _module(c, device)
                first, second = (_step(_fused(module), x, module) for _ in range(2))
                reference = copy.deepcopy(module).double().eval()  # by autograd
                exact = _step(partial(reference.refine, gain=GAIN), x.double(), reference)
                error = max(_relative(*pair) for pair in zip(first, exact, strict=True))
                name = str(dtype).removeprefix("torch.")
                row[f"{name}: error"] = f"{error:.0e}{'' if error <= tolerance else ' FAILED'}"
                row[f"{name}: same bits twice"] = "yes" if all(map(torch.equal, first, second)) else "NO"
            rows.append(row)
    return {
        "about": "Largest relative error of the refined map and the gradients of input and parameters, in the norm, "
        f"against autograd in float64. Tolerances: {', '.join(f'{tol:.0e}' for tol in TOLERANCES.values())}.",
        "rows": rows,
    }


def times(device: torch.device) -> Section:
    """Measure each pass, and one CBAM, relative to the time of a copy of as many bytes."""
    rounds, warm_up = ROUNDS[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for shape in shapes(device):
        for layout, memory_format in LAYOUTS.items():
            x = _random(shape, dtype, device, memory_format)
            module = _module(shape[1], device).to(dtype)
            operations = partial(module._refine_in_closed_form, gain=GAIN, fused=False)
            calls: dict[str, Callable[[], object]] = {
                "copy": x.clone,
                **_passes(x),
                "CBAM": partial(_step, _fused(module), x, module),
            }
            calls["CBAM, operations"] = partial(_step, operations, x, module)
            seconds = {name: each.median for name, each in take_turns(calls, rounds, device, warm_up).items()}
            one_transfer = seconds.pop("copy") / 2
            row: dict[str, object] = {
                "shape": "x".join(map(str, shape)),
                "layout": layout,
                "copy (GB/s)": x.numel() * x.element_size() / one_transfer / 1e9,
            }
            for name, count in TRANSFERS.items():
                row[name] = f"{1e6 * seconds[name]:.0f} ({seconds[name] / one_transfer / count:.1f})"
            for name in ("CBAM", "CBAM, operations"):
                row[name] = f"{1e6 * seconds[name]:.0f} ({seconds[name] / one_transfer / sum(TRANSFERS.values()):.1f})"
            rows.append(row)
    return {
        "about": f"Microseconds, {str(dtype).removeprefix('torch.')}; in parentheses, relative to the floor: the time "
        "to transfer the maps that the pass reads and writes at the bandwidth of a copy, measured in the same rounds. "
        f"CBAM: forward and backward, {sum(TRANSFERS.values())} transfers. Medians of {rounds} rounds; times include "
        "the launch.",
        "rows": rows,
    }


def convolution(device: torch.device) -> Section:
    """Measure the convolution of the spatial gate and its gradients, which no kernel of this repository computes."""
    rounds, warm_up = ROUNDS[device.type]
    rows = []
    for n, _, h, w in shapes(device):
        planes, gradient = torch.randn(n, 2, h, w, device=device), torch.randn(n, 1, h, w, device=device)
        kernel = torch.randn(1, 2, 7, 7, device=device)
        aten = torch.ops.aten.convolution_backward

        def of_kernel(g: Tensor = gradient, p: Tensor = planes, k: Tensor = kernel) -> object:
            return aten(g, p, k, None, [1, 1], [3, 3], [1, 1], False, [0, 0], 1, [False, True, False])  # noqa: B023

        def unfolded(g: Tensor = gradient, p: Tensor = planes) -> Tensor:
            return (F.unfold(p, 7, padding=3) @ g.flatten(2).mT).sum(0)

        calls: dict[str, Callable[[], object]] = {
            "forward": partial(F.conv2d, planes, kernel, padding=3),
            "both gradients": partial(convolution_gradients, gradient, planes, kernel),
            "weight gradient": of_kernel,
            "weight gradient, unfolded": unfolded,
        }
        seconds = take_turns(calls, rounds, device, warm_up)
        rows.append(
            {"planes": f"{n}x2x{h}x{w}"} | {f"{name} (us)": 1e6 * each.median for name, each in seconds.items()}
        )
    return {"about": "The convolution of the spatial gate, fp32, from two planes to one.", "rows": rows}


def _passes(x: Tensor) -> dict[str, Callable[[], object]]:
    n, c, h, w = x.shape
    out = torch.empty_like(x)
    gate, spatial = torch.rand(n, c, device=x.device), torch.rand(n, 1, h, w, device=x.device)
    pooled, position = fused_passes.pool_positions(x)
    planes, channel = fused_passes.pool_channels(x, gate, out)
    gradients = x, gate, spatial, planes, channel, pooled, position, out
    return {
        "pool_positions": partial(fused_passes.pool_positions, x),
        "pool_channels": partial(fused_passes.pool_channels, x, gate, out),
        "scale": partial(fused_passes.scale, x, gate, spatial, out),
        "factor_gradients": partial(fused_passes.factor_gradients, x, x, gate, spatial, out),
        "gate_gradient": partial(fused_passes.gate_gradient, x, planes, channel),
        "input_gradient": partial(fused_passes.input_gradient, *gradients),
    }


def _random(shape: Shape, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(52))
    return values.to(device, dtype).contiguous(memory_format=memory_format)


def _module(planes: int, device: torch.device) -> CBAM:
    torch.manual_seed(51)
    module = CBAM(planes)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return module.to(device)


def _fused(module: CBAM) -> Callable[[Tensor], Tensor]:
    return partial(module._refine_in_closed_form, gain=GAIN, fused=True)


def _step(refine: Callable[[Tensor], Tensor], x: Tensor, module: CBAM) -> list[Tensor]:
    """Return the refined map and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # with TF32, autograd would not be a reference
        refined = refine(x)
        refined.backward(x.detach())
    gradients = (tensor.grad for tensor in (x, *module.parameters()))
    return [refined.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())
