"""Triton kernels for CUDA: the passes over the feature map of `cbam.closed_form`, with the interface of `cbam.passes`.

Contiguous and channels_last maps are read in place. Gate-sized tensors are fp32. Tiles and grids depend only on shapes
and dtypes, and so does the order of each sum.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cbam import elementwise_kernels, kernels

# One warp is a block: it reduces without shared memory and barriers, and small maps still have many blocks.
_WARPS = 1
_BLOCKS = 2048  # 16 on each of 128 multiprocessors; reductions with fewer blocks are divided into parts
_SHORTEST = {"rows": 96, "lanes": 256}  # parts


class View(NamedTuple):
    """A feature map as rows of lanes (see `cbam.kernels`).

    Attributes:
        is_channels_last: whether channels are the lanes, and positions the rows.
        vector: values that a thread loads at once.
        step: number of subsets of the rows.
        width: lanes of a tile.
    """

    is_channels_last: bool
    images: int
    rows: int
    lanes: int
    vector: int
    step: int
    width: int

    @property
    def span(self) -> int:
        """The most lanes of the vectors of a row, with those of adjacent rows at its ends."""
        return self.lanes if self.step == 1 else self.lanes + self.vector - 1

    @property
    def lane_blocks(self) -> int:
        return triton.cdiv(self.span, self.width)

    def row_blocks(self, height: int) -> int:
        return triton.cdiv(self.rows // self.step, height)

    def row_parts(self, height: int) -> tuple[int, int]:
        """Return the number of parts of each subset's rows, and the rows of a part, divisible by a tile's height."""
        return _parts(self.rows // self.step, "rows", self.images * self.lane_blocks * self.step, height)

    def lane_parts(self, height: int) -> tuple[int, int]:
        """Return the number of parts of the lanes, and the lanes of a part, divisible by a tile's width."""
        return _parts(self.span, "lanes", self.images * self.row_blocks(height) * self.step, self.width)

    def with_long_subsets(self, least: int) -> "View":
        """Return a view with fewer subsets, down to loads of two values, where each has less than a number of rows."""
        vector, step = self.vector, self.step
        while step > 1 and vector > 2 and self.rows // step < least:
            vector, step = vector // 2, step // 2
        return self._replace(vector=vector, step=step)


def view(x: Tensor) -> View:
    """Return the rows and lanes of a contiguous or channels_last map."""
    n, channels, positions = len(x), x.shape[1], x.shape[2] * x.shape[3]
    is_channels_last = not x.is_contiguous()
    if is_channels_last and not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"Expected a contiguous or channels_last map; got strides {x.stride()}.")
    rows, lanes = (positions, channels) if is_channels_last else (channels, positions)
    vector = math.gcd(rows * lanes, 16 // x.element_size())
    if lanes < vector:  # a vector would contain parts of three rows
        vector = math.gcd(lanes, vector)
    step = vector // math.gcd(lanes, vector)
    # Wide tiles take fewer instructions, but narrow ones fit small numbers of lanes.
    width = 64 if lanes >= 256 else min(64, 32, key=lambda width: triton.cdiv(lanes, width) * width)
    return View(is_channels_last, n, rows, lanes, vector, step, width)


def pool_positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum over positions, [2, N, C], and the maximum's first position, [N, C]. Reads x once."""
    n, c = x.shape[:2]
    pooled = x.new_empty(2, n, c, dtype=torch.float32)
    position = x.new_empty(n, c, dtype=torch.int32)
    over_rows = view(x).is_channels_last
    _pool(x, None, over_rows, (pooled, pooled[1], position), c)
    return pooled, position


def pool_channels(x: Tensor, gate: Tensor, _out: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of gate * x over channels, [N, 2, H, W], and the maximum's first channel, [N, H, W].

    Reads x once. The gate is [N, C].
    """
    n, _, h, w = x.shape
    planes = x.new_empty(n, 2, h, w, dtype=torch.float32)
    channel = x.new_empty(n, h, w, dtype=torch.int32)
    over_rows = not view(x).is_channels_last
    _pool(x, gate, over_rows, (planes, planes[:, 1], channel), 2 * h * w)
    return planes, channel


def scale(x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, out: Tensor) -> None:
    """Write x times factors [N, C] and [N, 1, H, W] to ``out``. Reads x once and writes once."""
    seen = view(x)
    factors = _by_rows_and_lanes(seen, channel_factor, spatial_factor)
    tile, grid = _elementwise(seen, 1024)
    _launch(elementwise_kernels.scale_kernel, grid, x, *factors, out, seen.rows, seen.lanes, **tile)


def factor_gradients(
    gradient: Tensor, x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, _out: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `scale` with respect to its factors, [N, C] and [N, 1, H, W].

    Reads x and ``gradient`` once.
    """
    seen = view(x).with_long_subsets(_SHORTEST["rows"])
    tile = _tile(seen, 512)
    parts, part = seen.row_parts(tile["ROWS"])
    of_rows = x.new_empty(seen.lane_blocks, seen.images, seen.rows, dtype=torch.float32)
    of_lanes = x.new_empty(parts * seen.step, seen.images, seen.lanes, dtype=torch.float32)
    factors = _by_rows_and_lanes(seen, channel_factor, spatial_factor)
    grid = seen.lane_blocks, seen.images, len(of_lanes)
    sizes = seen.rows, seen.lanes, part
    _launch(kernels.factor_gradients_kernel, grid, gradient, x, *factors, of_rows, of_lanes, *sizes, **tile)
    of_positions, of_channels = _by_rows_and_lanes(seen, of_lanes, of_rows)
    return _total(of_channels), _total(of_positions).view_as(spatial_factor)


def gate_gradient(x: Tensor, plane_gradients: Tensor, channel: Tensor) -> Tensor:
    """Return the gradient of `pool_channels` with respect to its gate, [N, C]. Reads x once."""
    seen = view(x)
    inverse = 1 / x.shape[1]
    if seen.is_channels_last:
        seen = seen.with_long_subsets(_SHORTEST["rows"])
        tile = _tile(seen, 1024 if seen.rows >= 512 else 512)
        parts, part = seen.row_parts(tile["ROWS"])
        total = x.new_empty(parts * seen.step, seen.images, seen.lanes, dtype=torch.float32)
        grid = seen.lane_blocks, seen.images, len(total)
        sizes = seen.rows, seen.lanes, part
        _launch(kernels.weigh_rows_kernel, grid, x, plane_gradients, channel, total, *sizes, inverse, **tile)
    else:
        seen = seen.with_long_subsets(32)
        tile = _tile(seen._replace(width=32), 1024)  # 32 rows, which share the weights of their lanes
        total = x.new_empty(1, seen.images, seen.rows, dtype=torch.float32)
        grid = seen.row_blocks(tile["ROWS"]), seen.images, seen.step
        arguments = plane_gradients, channel, total, seen.rows, seen.lanes, inverse
        _launch(kernels.weigh_lanes_kernel, grid, x, *arguments, **tile)
    return _total(total)


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
    seen = view(gradient)
    factors = _by_rows_and_lanes(seen, channel_factor, spatial_factor)
    positions, channels = (seen.rows, seen.lanes) if seen.is_channels_last else (seen.lanes, seen.rows)
    tile, grid = _elementwise(seen, 1024 if seen.step == 1 else 512)  # vectors that cross rows take more registers
    tensors = *factors, plane_gradients, channel, pooled_gradients, position, out
    sizes = seen.rows, seen.lanes, 1 / channels, 1 / positions
    kernel = elementwise_kernels.input_gradient_kernel
    _launch(kernel, grid, gradient, *tensors, *sizes, IS_CHANNELS_LAST=seen.is_channels_last, **tile)


def _pool(
    x: Tensor, factor: Tensor | None, over_rows: bool, results: tuple[Tensor, Tensor, Tensor], stride: int
) -> None:
    """Pool factor * x over rows or lanes. The results are mean, maximum and index; `stride` is that between images."""
    seen = view(x).with_long_subsets(_SHORTEST["rows"]) if over_rows else view(x)
    narrow = seen.vector * x.element_size() < 16  # more loads for as many values, thus registers
    tile = _tile(seen, 1024 if not over_rows else 256 if narrow else 512)
    parts, part = seen.row_parts(tile["ROWS"]) if over_rows else seen.lane_parts(tile["ROWS"])
    # A subset of the rows is a part of them if they are pooled, but not if the lanes are.
    shares, pooled, kept = (parts * seen.step, seen.rows, seen.lanes) if over_rows else (parts, seen.lanes, seen.rows)
    mean, maximum, index = into = results
    if shares > 1:
        means = mean.new_empty(shares, mean.numel())
        into = means, means[0, maximum.storage_offset() :], index.new_empty(shares, *index.shape)
    kernel = kernels.pool_rows_kernel if over_rows else kernels.pool_lanes_kernel
    blocks = seen.lane_blocks if over_rows else seen.row_blocks(tile["ROWS"])
    grid = blocks, seen.images, parts * seen.step
    sizes = seen.rows, seen.lanes, part, stride, mean.numel(), 1 / pooled
    _launch(kernel, grid, x, factor, *into, *sizes, HAS_FACTOR=factor is not None, **tile)
    if shares > 1:
        grid = triton.cdiv(kept, 64), seen.images, 1
        _launch(kernels.combine_kernel, grid, *into, *results, kept, stride, mean.numel(), shares, LANES=64)


def _parts(length: int, kind: str, blocks: int, multiple: int) -> tuple[int, int]:
    """Return a number of parts with which a number of blocks fills a device, and the length of a part."""
    wanted = max(1, min(triton.cdiv(_BLOCKS, blocks), length // _SHORTEST[kind]))
    part = triton.cdiv(length, wanted * multiple) * multiple
    return triton.cdiv(length, part), part


def _tile(seen: View, values: int) -> dict[str, int]:
    """Return the constants of a kernel with tiles of a number of values."""
    return {"ROWS": values // seen.width, "LANES": seen.width, "VECTOR": seen.vector, "STEP": seen.step}


def _elementwise(seen: View, values: int) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Return the constants and the grid of a kernel that writes a map."""
    if seen.rows // seen.step <= values // seen.width // 2:
        values //= 2
    tile = _tile(seen, values)
    return tile, (triton.cdiv(seen.lanes * seen.step, tile["LANES"]), seen.row_blocks(tile["ROWS"]), seen.images)


def _by_rows_and_lanes(seen: View, of_channels: Tensor, of_positions: Tensor) -> tuple[Tensor, Tensor]:
    return (of_positions, of_channels) if seen.is_channels_last else (of_channels, of_positions)


def _total(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _launch(kernel: Any, grid: tuple[int, int, int], feature_map: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of a feature map."""
    with torch.cuda.device_of(feature_map):  # Triton launches on the current device
        kernel[grid](feature_map, *arguments, num_warps=_WARPS, **constants)
