"""The convolution of the spatial gate, from one or two planes to one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cbam.checks import is_transformed


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device; the meta device has none."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return nullcontext()  # entering the other one takes as long as several operations on a small map
    return torch.autocast(device, enabled=False)


@contextmanager
def _without_tf32() -> Iterator[None]:
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def _without_both(x: Tensor) -> Iterator[None]:
    with without_autocast(x), _without_tf32():
        yield


def in_full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which products have the dtype of their factors: without autocast and, on CUDA, TF32.

    torch.compile cannot trace the second: compiled operations use TF32 if the program allows it. The Triton kernels and
    the gates beside them are operators that it does not look into.
    """
    return _without_both(x) if x.is_cuda and not torch.compiler.is_compiling() else without_autocast(x)


def convolve(planes: Tensor, kernel: Tensor) -> Tensor:
    """Convolve [N, planes, H, W] with [1, planes, k, k], k odd, keeping H, W and the dtype of the planes."""
    kernel = kernel.to(planes.dtype)
    logits: Tensor = _convolve(planes, kernel) if is_transformed() else _Convolution.apply(planes, kernel)
    return logits


def convolution_gradients(gradient: Tensor, planes: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `convolve` with respect to the planes and the kernel.

    The gradient with respect to the planes is itself a convolution. On the CPU this takes a tenth of the time of
    torch's backward.
    """
    padding = [kernel.shape[-1] // 2] * 2
    of_planes = F.conv2d(gradient, kernel.flip(2, 3).transpose(0, 1), padding=padding)
    mask = [False, True, False]
    _, of_kernel, _ = torch.ops.aten.convolution_backward(
        gradient, planes, kernel, None, [1, 1], padding, [1, 1], False, [0, 0], 1, mask
    )
    return of_planes, of_kernel


def _convolve(planes: Tensor, kernel: Tensor) -> Tensor:
    with without_autocast(planes):
        return F.conv2d(planes, kernel, padding=kernel.shape[-1] // 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(planes, kernel)
        return _convolve(planes, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return convolution_gradients(gradient, *ctx.saved_tensors)
