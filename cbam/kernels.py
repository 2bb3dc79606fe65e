"""Triton kernels for CUDA: the passes over the feature map of `cbam.closed_form`, with the interface of `cbam.passes`.

A feature map [N, C, H, W] is read as N x C x P with P = H W positions, contiguous or channels_last, a tile of positions
and channels at a time. Gate-sized tensors are fp32. Sums are accumulated in fp32 and in a fixed order, without atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(64)  # positions and channels of a tile: 32 values per thread fit Hopper's registers


@triton.jit
def _offsets(n, p, c, channels, positions, stride_c, stride_p):  # type: ignore[no-untyped-def]
    return n * channels * positions + p[:, None] * stride_p + c[None, :] * stride_c


@triton.jit
def _pool_positions_kernel(x, mean, maximum, position, channels, positions, stride_c, stride_p):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, positions, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = (p[:, None] < positions) & (c[None, :] < channels)
        offsets = _offsets(n, p, c, channels, positions, stride_c, stride_p)
        tile = tl.load(x + offsets, mask=inside, other=0).to(tl.float32)
        total += tl.sum(tile, axis=0)
        value, index = tl.max(tl.where(inside, tile, float("-inf")), axis=0, return_indices=True)
        higher = value > highest  # not >=: the first of equal values, as in torch
        where = tl.where(higher, start + index, where)
        highest = tl.where(higher, value, highest)
    pooled = n * channels + c
    tl.store(mean + pooled, total / positions, mask=c < channels)
    tl.store(maximum + pooled, highest, mask=c < channels)
    tl.store(position + pooled, where, mask=c < channels)


@triton.jit
def _pool_channels_kernel(x, gate, planes, channel, channels, positions, stride_c, stride_p):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, channels, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = (p[:, None] < positions) & (c[None, :] < channels)
        offsets = _offsets(n, p, c, channels, positions, stride_c, stride_p)
        factor = tl.load(gate + n * channels + c, mask=c < channels, other=0)
        tile = tl.load(x + offsets, mask=inside, other=0).to(tl.float32) * factor[None, :]
        total += tl.sum(tile, axis=1)
        value, index = tl.max(tl.where(inside, tile, float("-inf")), axis=1, return_indices=True)
        higher = value > highest
        where = tl.where(higher, start + index, where)
        highest = tl.where(higher, value, highest)
    mean = planes + n * 2 * positions + p
    tl.store(mean, total / channels, mask=p < positions)
    tl.store(mean + positions, highest, mask=p < positions)
    tl.store(channel + n * positions + p, where, mask=p < positions)


@triton.jit
def _scale_kernel(x, channel_factor, spatial_factor, scaled, channels, positions, stride_c, stride_p):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = (p[:, None] < positions) & (c[None, :] < channels)
    offsets = _offsets(n, p, c, channels, positions, stride_c, stride_p)
    by_channel = tl.load(channel_factor + n * channels + c, mask=c < channels, other=0)
    by_position = tl.load(spatial_factor + n * positions + p, mask=p < positions, other=0)
    tile = tl.load(x + offsets, mask=inside, other=0).to(tl.float32) * by_channel[None, :] * by_position[:, None]
    tl.store(scaled + offsets, tile.to(scaled.dtype.element_ty), mask=inside)


@triton.jit
def _factor_gradients_kernel(  # type: ignore[no-untyped-def]
    gradient,
    x,
    channel_factor,
    spatial_factor,
    channel_parts,
    spatial_gradient,
    channels,
    positions,
    stride_c,
    stride_p,
):
    n = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    p = part * BLOCK + tl.arange(0, BLOCK)
    by_position = tl.load(spatial_factor + n * positions + p, mask=p < positions, other=0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, channels, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = (p[:, None] < positions) & (c[None, :] < channels)
        offsets = _offsets(n, p, c, channels, positions, stride_c, stride_p)
        by_channel = tl.load(channel_factor + n * channels + c, mask=c < channels, other=0)
        tile = tl.load(gradient + offsets, mask=inside, other=0).to(tl.float32)
        tile *= tl.load(x + offsets, mask=inside, other=0).to(tl.float32)
        total += tl.sum(tile * by_channel[None, :], axis=1)
        summed = tl.sum(tile * by_position[:, None], axis=0)
        tl.store(channel_parts + (n * tl.num_programs(1) + part) * channels + c, summed, mask=c < channels)
    tl.store(spatial_gradient + n * positions + p, total, mask=p < positions)


@triton.jit
def _gate_gradient_kernel(  # type: ignore[no-untyped-def]
    x, plane_gradients, channel, gate_gradient, channels, positions, stride_c, stride_p
):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, positions, BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = (p[:, None] < positions) & (c[None, :] < channels)
        offsets = _offsets(n, p, c, channels, positions, stride_c, stride_p)
        of_mean = tl.load(plane_gradients + n * 2 * positions + p, mask=p < positions, other=0)
        of_maximum = tl.load(plane_gradients + (n * 2 + 1) * positions + p, mask=p < positions, other=0)
        attained = tl.load(channel + n * positions + p, mask=p < positions, other=-1)
        tile = tl.load(x + offsets, mask=inside, other=0).to(tl.float32)
        factor = (of_mean / channels)[:, None] + tl.where(attained[:, None] == c[None, :], of_maximum[:, None], 0)
        total += tl.sum(tile * factor, axis=0)
    tl.store(gate_gradient + n * channels + c, total, mask=c < channels)


@triton.jit
def _input_gradient_kernel(  # type: ignore[no-untyped-def]
    gradient,
    channel_factor,
    spatial_factor,
    plane_gradients,
    channel,
    mean_gradient,
    maximum_gradient,
    position,
    input_gradient,
    channels,
    positions,
    stride_c,
    stride_p,
):
    n = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = (p[:, None] < positions) & (c[None, :] < channels)
    offsets = _offsets(n, p, c, channels, positions, stride_c, stride_p)
    by_position = tl.load(spatial_factor + n * positions + p, mask=p < positions, other=0)
    of_mean = tl.load(plane_gradients + n * 2 * positions + p, mask=p < positions, other=0)
    of_maximum = tl.load(plane_gradients + (n * 2 + 1) * positions + p, mask=p < positions, other=0)
    attained = tl.load(channel + n * positions + p, mask=p < positions, other=-1)
    tile = tl.load(gradient + offsets, mask=inside, other=0).to(tl.float32) * by_position[:, None]
    tile += (of_mean / channels)[:, None] + tl.where(attained[:, None] == c[None, :], of_maximum[:, None], 0)
    by_channel = tl.load(channel_factor + n * channels + c, mask=c < channels, other=0)
    pooled_mean = tl.load(mean_gradient + n * channels + c, mask=c < channels, other=0)
    pooled_maximum = tl.load(maximum_gradient + n * channels + c, mask=c < channels, other=0)
    highest = tl.load(position + n * channels + c, mask=c < channels, other=-1)
    tile = tile * by_channel[None, :] + (pooled_mean / positions)[None, :]
    tile += tl.where(highest[None, :] == p[:, None], pooled_maximum[None, :], 0)
    tl.store(input_gradient + offsets, tile.to(input_gradient.dtype.element_ty), mask=inside)


def pool_positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum over positions, [2, N, C], and the maximum's first position, [N, C]. Reads x once."""
    n, c = x.shape[:2]
    pooled = x.new_empty(2, n, c, dtype=torch.float32)
    position = x.new_empty(n, c, dtype=torch.int32)
    _launch(_pool_positions_kernel, (n, _blocks(c)), x, pooled[0], pooled[1], position)
    return pooled, position


def pool_channels(x: Tensor, gate: Tensor, _out: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of gate * x over channels, [N, 2, H, W], and the maximum's first channel, [N, H, W].

    Reads x once. The gate is [N, C].
    """
    n, _, h, w = x.shape
    planes = x.new_empty(n, 2, h, w, dtype=torch.float32)
    channel = x.new_empty(n, h, w, dtype=torch.int32)
    _launch(_pool_channels_kernel, (n, _blocks(h * w)), x, gate, planes, channel)
    return planes, channel


def scale(x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, out: Tensor) -> None:
    """Write x times factors [N, C] and [N, 1, H, W] to ``out``. Reads x once and writes once."""
    n, c, h, w = x.shape
    _launch(_scale_kernel, (n, _blocks(h * w), _blocks(c)), x, channel_factor, spatial_factor, out)


def factor_gradients(
    gradient: Tensor, x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, _out: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `scale` with respect to its factors, [N, C] and [N, 1, H, W].

    Reads x and ``gradient`` once.
    """
    n, c, h, w = x.shape
    spatial_gradient = torch.empty_like(spatial_factor)
    parts = x.new_empty(n, _blocks(h * w), c, dtype=torch.float32)
    grid = (n, _blocks(h * w))
    _launch(_factor_gradients_kernel, grid, gradient, x, channel_factor, spatial_factor, parts, spatial_gradient)
    return parts.sum(1), spatial_gradient


def gate_gradient(x: Tensor, plane_gradients: Tensor, channel: Tensor) -> Tensor:
    """Return the gradient of `pool_channels` with respect to its gate, [N, C]. Reads x once."""
    n, c = x.shape[:2]
    gradient = x.new_empty(n, c, dtype=torch.float32)
    _launch(_gate_gradient_kernel, (n, _blocks(c)), x, plane_gradients, channel, gradient)
    return gradient


def input_gradient(
    gradient: Tensor,
    channel_factor: Tensor,
    spatial_factor: Tensor,
    plane_gradients: Tensor,
    channel: Tensor,
    pooled_gradients: Tensor,
    position: Tensor,
    out: Tensor,
) -> None:
    """Write the gradient with respect to x, through scale, pool_channels and pool_positions, to ``out``.

    Reads ``gradient`` once and writes once.
    """
    n, c, h, w = gradient.shape
    _launch(
        _input_gradient_kernel,
        (n, _blocks(h * w), _blocks(c)),
        gradient,
        channel_factor,
        spatial_factor,
        plane_gradients,
        channel,
        pooled_gradients[0],
        pooled_gradients[1],
        position,
        out,
    )


def _launch(kernel: Any, grid: tuple[int, ...], feature_map: Tensor, *tensors: Tensor) -> None:
    """Launch a kernel on a feature map and further tensors. The map determines the device and the layout."""
    with torch.cuda.device_of(feature_map):  # Triton launches on the current device
        kernel[grid](feature_map, *tensors, *_layout(feature_map))


def _blocks(length: int) -> int:
    return triton.cdiv(length, BLOCK.value)


def _layout(x: Tensor) -> tuple[int, int, int, int]:
    """Return the numbers of channels and positions, and the stride of each."""
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    if x.is_contiguous():
        return channels, positions, positions, 1
    if x.is_contiguous(memory_format=torch.channels_last):
        return channels, positions, 1, channels
    raise ValueError(f"Expected a contiguous or channels_last map; got strides {x.stride()}.")
