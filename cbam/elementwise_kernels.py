"""Triton kernels for CUDA that write a feature map, in the terms of `cbam.kernels`.

A tile consists of whole vectors. If a row does not, a row of a tile is STEP rows of the map, and a vector may cross
from one of them into the next.
"""

import triton
import triton.language as tl

from cbam.kernels import _SIZES, _divisible


@triton.jit
def _tile(rows, lanes, ROWS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return offset, mask, row, lane and crossing of a tile's values [ROWS, LANES / VECTOR, VECTOR].

    `row` is that of a vector's first value, [ROWS, 1 or LANES / VECTOR]; `lane` and `crosses` are
    [LANES / VECTOR, VECTOR].
    """
    length = lanes * STEP // VECTOR * VECTOR
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) * LANES + tl.arange(0, LANES // VECTOR) * VECTOR
    lane = start[:, None] + tl.arange(0, VECTOR)[None, :]
    offset = (i * length)[:, None, None] + lane[None, :, :]
    inside = (i < rows // STEP)[:, None, None] & (start < length)[None, :, None]
    row = i[:, None] * STEP
    if STEP == 1:
        crosses = lane < 0
    else:
        row += (start // lanes)[None, :]
        lane -= (start // lanes * lanes)[:, None]
        crosses = lane >= lanes
        lane = tl.where(crosses, lane - lanes, lane)
    return offset, inside, row, lane, crosses


@triton.jit
def _by_row(values, row, crosses, rows, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the values of an image's rows, [rows], for a tile."""
    value = tl.load(values + row, mask=row < rows, other=0)[:, :, None]
    if STEP > 1:
        following = tl.load(values + row + 1, mask=row + 1 < rows, other=0)[:, :, None]
        value = tl.where(crosses[None, :, :], following, value)
    return value


@triton.jit
def _by_lane(values, lane, lanes):  # type: ignore[no-untyped-def]
    """Return the values of an image's lanes, [lanes], for a tile."""
    return tl.load(values + lane, mask=lane < lanes, other=0)[None, :, :]


@triton.jit(do_not_specialize=_SIZES)
def scale_kernel(  # type: ignore[no-untyped-def]
    x,
    row_factor,
    lane_factor,
    scaled,
    rows,
    lanes,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write x * row_factor * lane_factor to `scaled`. The factors are [N, rows] and [N, lanes]."""
    lanes = _divisible(lanes, VECTOR, STEP)
    n = tl.program_id(2).to(tl.int64)
    offset, inside, row, lane, crosses = _tile(rows, lanes, ROWS, LANES, VECTOR, STEP)
    image = n * (rows * lanes // VECTOR * VECTOR)
    values = tl.load(x + image + offset, mask=inside, other=0).to(tl.float32)
    values *= _by_row(row_factor + n * rows, row, crosses, rows, STEP)
    values *= _by_lane(lane_factor + n * lanes, lane, lanes)
    tl.store(scaled + image + offset, values.to(scaled.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def input_gradient_kernel(  # type: ignore[no-untyped-def]
    gradient,
    row_factor,
    lane_factor,
    plane_gradients,
    channel,
    pooled_gradients,
    position,
    input_gradient,
    rows,
    lanes,
    per_channel,
    per_position,
    IS_CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write channel_factor * (spatial_factor * gradient + of_planes) + of_pooled to `input_gradient`.

    The plane gradients [N, 2, positions] are those of mean and maximum over channels, `channel` is that of the maximum;
    the pooled gradients [2, N, channels] are those of mean and maximum over positions, `position` likewise.
    """
    lanes = _divisible(lanes, VECTOR, STEP)
    n, batch = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    offset, inside, row, lane, crosses = _tile(rows, lanes, ROWS, LANES, VECTOR, STEP)
    image = n * (rows * lanes // VECTOR * VECTOR)
    this_lane, this_row = lane[None, :, :], row[:, :, None]
    if STEP > 1:
        this_row += crosses[None, :, :]
    by_row = _by_row(row_factor + n * rows, row, crosses, rows, STEP)
    by_lane = _by_lane(lane_factor + n * lanes, lane, lanes)
    values = tl.load(gradient + image + offset, mask=inside, other=0).to(tl.float32)
    if IS_CHANNELS_LAST:
        of_plane = _by_row(plane_gradients + n * 2 * rows, row, crosses, rows, STEP) * per_channel
        at_channel = _by_row(plane_gradients + (n * 2 + 1) * rows, row, crosses, rows, STEP) + of_plane
        is_channel = _by_row(channel + n * rows, row, crosses, rows, STEP) == this_lane
        of_pooled = _by_lane(pooled_gradients + n * lanes, lane, lanes) * per_position
        at_position = _by_lane(pooled_gradients + (batch + n) * lanes, lane, lanes) + of_pooled
        is_position = _by_lane(position + n * lanes, lane, lanes) == this_row
        values = (values * by_row + tl.where(is_channel, at_channel, of_plane)) * by_lane
    else:
        of_plane = _by_lane(plane_gradients + n * 2 * lanes, lane, lanes) * per_channel
        at_channel = _by_lane(plane_gradients + (n * 2 + 1) * lanes, lane, lanes) + of_plane
        is_channel = _by_lane(channel + n * lanes, lane, lanes) == this_row
        of_pooled = _by_row(pooled_gradients + n * rows, row, crosses, rows, STEP) * per_position
        at_position = _by_row(pooled_gradients + (batch + n) * rows, row, crosses, rows, STEP) + of_pooled
        is_position = _by_row(position + n * rows, row, crosses, rows, STEP) == this_lane
        values = (values * by_lane + tl.where(is_channel, at_channel, of_plane)) * by_row
    values += tl.where(is_position, at_position, of_pooled)
    tl.store(input_gradient + image + offset, values.to(input_gradient.dtype.element_ty), mask=inside)
