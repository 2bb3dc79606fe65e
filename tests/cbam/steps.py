"""One step, forward and backward, of a CBAM with random parameters."""

from collections.abc import Callable

import torch
from torch import Tensor

from cbam import CBAM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GAIN = 4.0


def cbam(planes: int, **options: object) -> CBAM:
    torch.manual_seed(51)
    module = CBAM(planes, **options).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return module


def feature_map(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(52)
    values = {
        "random": torch.randn(shape),
        "zeros": torch.zeros(shape),
        "ties": torch.randint(0, 3, shape).float(),
        "negative": -1 - torch.rand(shape),
        "constant": torch.full(shape, 0.7),
    }
    return values[kind].to(DEVICE, dtype)


def results(module: CBAM, x: Tensor, gradient: Tensor, fused: bool) -> list[Tensor]:
    """Return the refined map and the gradients of the input and of every parameter."""
    return backward(module, x, gradient, lambda x: module._refine_in_closed_form(x, GAIN, fused))


def autograd_results(module: CBAM, x: Tensor, gradient: Tensor) -> list[Tensor]:
    return backward(module, x, gradient, lambda x: module.eval().refine(x, GAIN))


def backward(module: CBAM, x: Tensor, gradient: Tensor, refine: Callable[[Tensor], Tensor]) -> list[Tensor]:
    x = x.detach().requires_grad_()
    module.zero_grad()
    refined = refine(x)
    refined.backward(gradient)
    return [refined.detach(), *(gradient_of(tensor) for tensor in (x, *module.parameters()))]


def gradient_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def is_near(ours: list[Tensor], reference: list[Tensor], tolerance: float) -> bool:
    """Compare each tensor, relative to the norm of its reference; a zero reference must be matched exactly."""
    lengths = [tensor.double().norm().item() for tensor in reference]
    distances = [(a.double() - b.double()).norm().item() for a, b in zip(ours, reference, strict=True)]
    return all(d <= tolerance * length for d, length in zip(distances, lengths, strict=True))
