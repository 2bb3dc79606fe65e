"""Maximum pooling for both gates."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cbam.checks import is_transformed

_GROUP = 32  # channels


def first_maximum_of_channels(x: Tensor) -> Tensor:
    """Return the maximum over channels, [N, C, H, W] -> [N, 1, H, W]; its gradient goes to the first that attains it.

    torch's backward scatters the gradient into a map of zeros, which torch.compile writes to memory and reads again.
    Comparing each channel with the index instead fuses with the surrounding operations: a compiled CBAM takes a third
    less time on the CPU.
    """
    if is_transformed():
        return x.max(1, keepdim=True).values
    if not torch.is_grad_enabled():
        return x.amax(1, keepdim=True)  # on the CPU, a fifth of the time of a maximum with indices
    maximum, _ = _MaximumOfChannels.apply(x)
    return maximum


def first_maximum_of_positions(x: Tensor) -> Tensor:
    """Return the maximum over positions, [N, C, H, W] -> [N, C]; its gradient goes to the first that attains it."""
    if is_transformed():
        return x.flatten(2).max(2).values
    if not torch.is_grad_enabled():
        return x.amax((2, 3))
    maximum, _ = _MaximumOfPositions.apply(x)
    return maximum


def maximum_of_positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each channel of a map [N, C, H, W] and the first position that attains it, both [N, C]."""
    if x.is_cpu and not x.is_contiguous():
        return _pool(x)
    return x.flatten(2).max(2)


def maximum_of_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum at each position of a map [N, C, H, W] and the first channel that attains it: [N, H, W]."""
    if x.is_cpu and x.is_contiguous():
        # torch takes [N, P, 1, C] for channels_last, but would copy [N, P, C, 1].
        maximum, channel = _pool(x.flatten(2).mT.unsqueeze(2))
        return maximum.view_as(x[:, 0]), channel.view_as(x[:, 0])
    if x.is_cpu and x.shape[1] >= 4 * _GROUP and x.shape[1] % _GROUP == 0:
        return _maximum_of_groups(x)
    return x.max(1)


def _maximum_of_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over channels and its first channel, for a channels_last map on the CPU.

    torch computes maxima without indices with vector instructions, but those with indices one value at a time. Only the
    maxima of groups of channels and the channels of one group need indices.
    """
    n, c, h, w = x.shape
    groups = x.permute(0, 2, 3, 1).reshape(n * h * w, c // _GROUP, _GROUP)
    maximum, group = groups.amax(2).max(1)
    row = torch.arange(0, len(groups) * groups.shape[1], groups.shape[1]) + group
    channel = group * _GROUP + groups.flatten(0, 1).index_select(0, row).argmax(1)
    return maximum.view(n, h, w), channel.view(n, h, w)


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of a channels_last [N, C, H, W] over positions: vectorized on the CPU, unlike `Tensor.max`."""
    maximum, position = F.adaptive_max_pool2d(x, 1, return_indices=True)
    return maximum.flatten(1), position.flatten(1)


def _keyed_maximum(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the maximum of x over adjacent dimensions and its first index in them, int32.

    On the CPU, torch.compile vectorizes maxima of integers, but barely vectorizes maxima with indices. The value and
    the index are packed into one integer: its upper half orders like the float, its lower half counts down. Here +0
    exceeds -0.
    """
    sizes = [x.shape[dim] for dim in dims]
    last = math.prod(sizes) - 1
    left = torch.arange(last, -1, -1, device=x.device).view(*sizes, *[1] * (x.dim() - 1 - dims[-1]))
    bits = x.float().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # the bits of a negative float count the other way
    key = ((ordered.long() << 32) | left).amax(dims)
    return x.amax(dims), (last - (key & 0xFFFFFFFF)).int()


def _is_compiling_for_cpu(x: Tensor) -> bool:
    return x.is_cpu and x.dtype != torch.float64 and torch.compiler.is_dynamo_compiling()


class _MaximumOfChannels(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        maximum, channel = _keyed_maximum(x, (1,)) if _is_compiling_for_cpu(x) else x.max(1)
        return maximum[:, None], channel[:, None].int()  # comparing 32 bits is half the work of 64

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.channels = inputs[0].shape[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        (channel,) = ctx.saved_tensors
        each = torch.arange(ctx.channels, dtype=torch.int32, device=gradient.device)[:, None, None]
        return torch.where(each == channel, gradient, 0)


class _MaximumOfPositions(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        maximum, position = _keyed_maximum(x, (2, 3)) if _is_compiling_for_cpu(x) else x.flatten(2).max(2)
        return maximum, position.int()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.size = inputs[0].shape[2:]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        (position,) = ctx.saved_tensors
        each = torch.arange(ctx.size.numel(), dtype=torch.int32, device=gradient.device).view(ctx.size)
        return torch.where(each == position[..., None, None], gradient[..., None, None], 0)
