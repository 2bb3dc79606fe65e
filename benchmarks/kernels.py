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


REPEATS = {"cuda": 10, "cpu": 1}  # of a pass in a CUDA graph


def shapes(device: torch.device) -> tuple[Shape, ...]:
    return CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES


def results(device: torch.device) -> Section:
    """Compare outputs and gradients with those of autograd in float64, and with a second run."""
    rows = []
    for n, c, h, w in shapes(device):
        shape = min(n, 8), c, h, w  # float64 takes memory
        row: dict[str, object] = {"shape": "x".join(map(str, shape))}
        for dtype, tolerance in TOLERANCES.items():
            found = [_accuracy(_random(shape, dtype, device, layout), device) for layout in LAYOUTS.values()]
            error, is_same = max(error for error, _ in found), all(is_same for _, is_same in found)
            name = str(dtype).removeprefix("torch.")
            row[f"{name}: error"] = f"{error:.0e}{'' if error <= tolerance else ' FAILED'}"
            row[f"{name}: same bits twice"] = "yes" if is_same else "NO"
        rows.append(row)
    return {
        "about": "Largest relative error of the refined map and the gradients of input and parameters, in the norm, "
        f"in {' and '.join(LAYOUTS)}, against autograd in float64. "
        f"Tolerances: {', '.join(f'{tol:.0e}' for tol in TOLERANCES.values())}.",
        "rows": rows,
    }


def _accuracy(x: Tensor, device: torch.device) -> tuple[float, bool]:
    """Return the largest error of a step with the kernels, and whether a second one has the same bits."""
    module = _module(x.shape[1], device)
    first, second = (_step(_fused(module), x, module) for _ in range(2))
    reference = copy.deepcopy(module).double().eval()  # by autograd
    exact = _step(partial(reference.refine, gain=GAIN), x.double(), reference)
    error = max(_relative(*pair) for pair in zip(first, exact, strict=True))
    return error, all(map(torch.equal, first, second))


def times(device: torch.device) -> Section:
    """Measure each pass, and one CBAM, relative to the time of a copy of as many bytes."""
    rounds, warm_up = ROUNDS[device.type]
    repeats = REPEATS[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for shape in shapes(device):
        for layout, memory_format in LAYOUTS.items():
            x = _random(shape, dtype, device, memory_format)
            module = _module(shape[1], device).to(dtype)
            operations = partial(module._refine_in_closed_form, gain=GAIN, fused=False)
            repeated = {name: _repeat(call, device) for name, call in {"copy": x.clone, **_passes(x)}.items()}
            steps = {
                "CBAM": partial(_step, _fused(module), x, module),
                "CBAM, operations": partial(_step, operations, x, module),
            }
            measured = take_turns({**repeated, **steps}, rounds, device, warm_up)
            seconds = {name: each.median / (repeats if name in repeated else 1) for name, each in measured.items()}
            one_transfer = seconds["copy"] / 2
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
        f"CBAM: forward and backward, {sum(TRANSFERS.values())} transfers. Medians of {rounds} rounds. A pass is "
        f"repeated {repeats} times, on CUDA as a graph, so that its launches take no time; those of CBAM do.",
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


def _repeat(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return a function that repeats a call: on CUDA, as a graph, without the launches' overhead."""

    def repeated() -> None:
        for _ in range(REPEATS[device.type]):
            call()

    if device.type != "cuda":
        return repeated
    call()  # compiles the kernels, which a capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        repeated()
    return graph.replay


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
