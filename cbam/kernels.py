"""Triton kernels for CUDA: the device code of `cbam.fused_passes`.

A feature map [N, C, H, W] is read as N images of rows and lanes. Lanes are adjacent in memory: the channels of a
channels_last map, whose rows are its P = H W positions; the positions of a contiguous map, whose rows are its channels.
Other tensors are fp32, or int32 for indices. Sums are fp32 and in a fixed order, without atomics.

A thread loads VECTOR adjacent values of a map at once: 16 bytes, if the size of an image is divisible by that. If a row
does not consist of whole vectors, STEP rows together do, and the rows are divided into STEP subsets: every STEP-th row
from `subset` on. In a subset, all rows start at the same distance `shift` from the start of a vector; the vectors at
their ends also contain values of adjacent rows, which are not used.
"""

import triton
import triton.language as tl

_SIZES = ("rows", "lanes", "part", "stride", "parts", "size")  # not worth a compilation for each


@triton.jit
def _divisible(lanes, VECTOR: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return `lanes`, known to the compiler as divisible by VECTOR if rows consist of whole vectors."""
    if STEP == 1:
        lanes = lanes // VECTOR * VECTOR
    return lanes


@triton.jit
def _window(subset, lanes, VECTOR: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the distance of a row's start from that of its first vector, and the length of its vectors."""
    if STEP == 1:
        shift = 0
    else:
        shift = subset * lanes % VECTOR
    return shift, (lanes + shift + VECTOR - 1) // VECTOR * VECTOR


@triton.jit
def _is_lane(j, shift, lanes, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return which values of a row's vectors belong to the row."""
    inside = j < lanes + shift
    if STEP > 1:
        inside &= j >= shift
    return inside


@triton.jit
def _vectors(feature_map, n, subset, i, rows, lanes, VECTOR: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return pointers to the first vectors of the rows subset + i STEP of an image."""
    feature_map += n * (rows * lanes // VECTOR * VECTOR) + subset * lanes // VECTOR * VECTOR
    return feature_map + i * (lanes * STEP // VECTOR * VECTOR)


@triton.jit(do_not_specialize=_SIZES)
def pool_rows_kernel(  # type: ignore[no-untyped-def]
    x,
    factor,
    mean,
    maximum,
    index,
    rows,
    lanes,
    part,
    stride,
    size,
    inverse,
    HAS_FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Pool factor * x over a part of the rows, for each lane: its share of the mean, the maximum and its first row.

    The factor is [N, rows]. A result has the offset split * size + n * stride + lane, an index (split * N + n) * lanes.
    """
    lanes = _divisible(lanes, VECTOR, STEP)
    n, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    subset = split % STEP
    shift, window = _window(subset, lanes, VECTOR, STEP)
    j = tl.program_id(0) * LANES + tl.arange(0, LANES)
    each = tl.arange(0, ROWS)
    first = split // STEP * part
    last = tl.minimum(first + part, rows // STEP)
    sums = tl.zeros([ROWS, LANES], tl.float32)
    highest = tl.full([ROWS, LANES], float("-inf"), tl.float32)
    where = tl.zeros([ROWS, LANES], tl.int32) + first
    for start in range(first, last, ROWS):
        i = start + each
        inside = (i < last)[:, None]
        pointers = _vectors(x, n, subset, i, rows, lanes, VECTOR, STEP)[:, None] + j[None, :]
        values = tl.load(pointers, mask=inside & (j < window)[None, :], other=0).to(tl.float32)
        if HAS_FACTOR:
            values *= tl.load(factor + n * rows + subset + i * STEP, mask=i < last, other=0)[:, None]
        sums += values
        higher = (values > highest) & inside  # not >=: the first of equal values, as in torch
        highest = tl.where(higher, values, highest)
        where = tl.where(higher, start, where)
    value = tl.max(highest, axis=0)
    i = tl.min(tl.where(highest == value[None, :], where + each[:, None], last - 1), axis=0)
    keep = _is_lane(j, shift, lanes, STEP)
    out = split * size.to(tl.int64) + n * stride
    tl.store(mean + out + (j - shift), tl.sum(sums, axis=0) * inverse, mask=keep)
    tl.store(maximum + out + (j - shift), value, mask=keep)
    tl.store(index + (split * tl.num_programs(1) + n) * lanes + (j - shift), subset + i * STEP, mask=keep)


@triton.jit(do_not_specialize=_SIZES)
def combine_kernel(  # type: ignore[no-untyped-def]
    mean,
    maximum,
    index,
    to_mean,
    to_maximum,
    to_index,
    lanes,
    stride,
    size,
    parts,
    LANES: tl.constexpr,
):
    """Combine the results of all parts: the sum of their shares of the mean, and the first maximum."""
    n, batch = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    keep = lane < lanes
    total = tl.zeros([LANES], tl.float32)
    highest = tl.full([LANES], float("-inf"), tl.float32)
    where = tl.full([LANES], 2**31 - 1, tl.int32)
    for split in range(parts):
        read = split * size.to(tl.int64) + n * stride
        total += tl.load(mean + read + lane, mask=keep, other=0)
        value = tl.load(maximum + read + lane, mask=keep, other=0)
        i = tl.load(index + (split * batch + n) * lanes + lane, mask=keep, other=0)
        where = tl.where(value > highest, i, tl.where(value == highest, tl.minimum(i, where), where))
        highest = tl.maximum(value, highest)
    tl.store(to_mean + n * stride + lane, total, mask=keep)
    tl.store(to_maximum + n * stride + lane, highest, mask=keep)
    tl.store(to_index + n * lanes + lane, where, mask=keep)


@triton.jit(do_not_specialize=_SIZES)
def pool_lanes_kernel(  # type: ignore[no-untyped-def]
    x,
    factor,
    mean,
    maximum,
    index,
    rows,
    lanes,
    part,
    stride,
    size,
    inverse,
    HAS_FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Pool factor * x over a part of the lanes, for each row: its share of the mean, the maximum and its first lane.

    The factor is [N, lanes]. A result has the offset split * size + n * stride + row, an index (split * N + n) * rows.
    The loop records only the vector that contains the maximum, which takes half as many instructions; the vector is
    read again to find the lane.
    """
    lanes = _divisible(lanes, VECTOR, STEP)
    n, split, subset = tl.program_id(1).to(tl.int64), tl.program_id(2) // STEP, tl.program_id(2) % STEP
    shift, window = _window(subset, lanes, VECTOR, STEP)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = subset + i * STEP
    pointers = _vectors(x, n, subset, tl.minimum(i, rows // STEP - 1), rows, lanes, VECTOR, STEP)
    vector = tl.arange(0, LANES // VECTOR) * VECTOR
    within = tl.arange(0, VECTOR)
    sums = tl.zeros([ROWS, LANES // VECTOR], tl.float32)
    highest = tl.full([ROWS, LANES // VECTOR], float("-inf"), tl.float32)
    begin = split * (part // LANES * LANES)
    end = tl.minimum(begin + part, window)
    where = tl.zeros([ROWS, LANES // VECTOR], tl.int32) + begin
    for start in range(begin, end, LANES):
        inside = (start + vector < window)[None, :]
        j = (start + vector)[:, None] + within[None, :]
        valid = _is_lane(j, shift, lanes, STEP)
        values = tl.load(pointers[:, None, None] + j[None, :, :], mask=inside[:, :, None], other=0).to(tl.float32)
        if HAS_FACTOR:
            values *= tl.load(factor + n * lanes + (j - shift), mask=valid, other=0)[None, :, :]
        if STEP == 1:
            sums += tl.sum(values, axis=2)
        else:
            sums += tl.sum(tl.where(valid[None, :, :], values, 0), axis=2)
            values = tl.where(valid[None, :, :], values, float("-inf"))
        value = tl.max(values, axis=2)
        higher = (value > highest) & inside
        highest = tl.where(higher, value, highest)
        where = tl.where(higher, start, where)
    value = tl.max(highest, axis=1)
    first = tl.min(tl.where(highest == value[:, None], where + vector[None, :], window - VECTOR), axis=1)
    j = (first // VECTOR * VECTOR)[:, None] + within[None, :]
    valid = _is_lane(j, shift, lanes, STEP)
    values = tl.load(pointers[:, None] + j).to(tl.float32)
    if HAS_FACTOR:
        values *= tl.load(factor + n * lanes + (j - shift), mask=valid, other=0)
    lane = tl.min(tl.where(valid & (values == value[:, None]), j - shift, lanes - 1), axis=1)
    out = split * size.to(tl.int64) + n * stride
    tl.store(mean + out + row, tl.sum(sums, axis=1) * inverse, mask=row < rows)
    tl.store(maximum + out + row, value, mask=row < rows)
    tl.store(index + (split * tl.num_programs(1) + n) * rows + row, lane, mask=row < rows)


@triton.jit(do_not_specialize=_SIZES)
def weigh_rows_kernel(  # type: ignore[no-untyped-def]
    x,
    weights,
    chosen,
    total,
    rows,
    lanes,
    part,
    inverse,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sum x (a inverse + [lane = chosen] b) over a part of the rows, for each lane: [parts, N, lanes].

    The weights a and b of each row are [N, 2, rows], its chosen lane [N, rows].
    """
    lanes = _divisible(lanes, VECTOR, STEP)
    n, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    subset = split % STEP
    shift, window = _window(subset, lanes, VECTOR, STEP)
    j = tl.program_id(0) * LANES + tl.arange(0, LANES)
    each = tl.arange(0, ROWS)
    first = split // STEP * part
    last = tl.minimum(first + part, rows // STEP)
    sums = tl.zeros([ROWS, LANES], tl.float32)
    for start in range(first, last, ROWS):
        i = start + each
        row = subset + i * STEP
        by_row = tl.load(weights + n * 2 * rows + row, mask=i < last, other=0) * inverse
        at_chosen = tl.load(weights + (n * 2 + 1) * rows + row, mask=i < last, other=0) + by_row
        attained = tl.load(chosen + n * rows + row, mask=i < last, other=-1)
        pointers = _vectors(x, n, subset, i, rows, lanes, VECTOR, STEP)[:, None] + j[None, :]
        values = tl.load(pointers, mask=(i < last)[:, None] & (j < window)[None, :], other=0).to(tl.float32)
        is_chosen = attained[:, None] == (j - shift)[None, :]
        sums += values * tl.where(is_chosen, at_chosen[:, None], by_row[:, None])
    total += (split * tl.num_programs(1) + n) * lanes
    tl.store(total + (j - shift), tl.sum(sums, axis=0), mask=_is_lane(j, shift, lanes, STEP))


@triton.jit(do_not_specialize=_SIZES)
def weigh_lanes_kernel(  # type: ignore[no-untyped-def]
    x,
    weights,
    chosen,
    total,
    rows,
    lanes,
    inverse,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sum x (a inverse + [row = chosen] b) over the lanes, for each row: [N, rows].

    The weights a and b of each lane are [N, 2, lanes], its chosen row [N, lanes].
    """
    lanes = _divisible(lanes, VECTOR, STEP)
    n, subset = tl.program_id(1).to(tl.int64), tl.program_id(2)
    shift, window = _window(subset, lanes, VECTOR, STEP)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = subset + i * STEP
    pointers = _vectors(x, n, subset, tl.minimum(i, rows // STEP - 1), rows, lanes, VECTOR, STEP)
    vector = tl.arange(0, LANES // VECTOR) * VECTOR
    within = tl.arange(0, VECTOR)
    sums = tl.zeros([ROWS, LANES // VECTOR, VECTOR], tl.float32)
    for start in range(0, window, LANES):
        j = (start + vector)[:, None] + within[None, :]
        valid = _is_lane(j, shift, lanes, STEP)
        by_lane = tl.load(weights + n * 2 * lanes + (j - shift), mask=valid, other=0) * inverse
        at_chosen = tl.load(weights + (n * 2 + 1) * lanes + (j - shift), mask=valid, other=0) + by_lane
        attained = tl.load(chosen + n * lanes + (j - shift), mask=valid, other=-1)
        read = tl.minimum(start + vector, window - VECTOR)[:, None] + within[None, :]  # beyond, the weights are 0
        values = tl.load(pointers[:, None, None] + read[None, :, :]).to(tl.float32)
        is_chosen = attained[None, :, :] == row[:, None, None]
        sums += values * tl.where(is_chosen, at_chosen[None, :, :], by_lane[None, :, :])
    tl.store(total + n * rows + row, tl.sum(tl.sum(sums, axis=2), axis=1), mask=row < rows)


@triton.jit(do_not_specialize=_SIZES)
def factor_gradients_kernel(  # type: ignore[no-untyped-def]
    gradient,
    x,
    row_factor,
    lane_factor,
    of_rows,
    of_lanes,
    rows,
    lanes,
    part,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sum gradient * x times a factor: over a block of lanes for each row, and over a part of the rows for each lane.

    The factors are [N, rows] and [N, lanes]; the sums are [blocks, N, rows] and [parts, N, lanes].
    """
    lanes = _divisible(lanes, VECTOR, STEP)
    n, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    subset = split % STEP
    shift, window = _window(subset, lanes, VECTOR, STEP)
    j = tl.program_id(0) * LANES + tl.arange(0, LANES)
    valid = _is_lane(j, shift, lanes, STEP)
    each = tl.arange(0, ROWS)
    first = split // STEP * part
    last = tl.minimum(first + part, rows // STEP)
    by_lane = tl.load(lane_factor + n * lanes + (j - shift), mask=valid, other=0)
    sums = tl.zeros([ROWS, LANES], tl.float32)
    for start in range(first, last, ROWS):
        i = start + each
        row = subset + i * STEP
        by_row = tl.load(row_factor + n * rows + row, mask=i < last, other=0)
        inside = (i < last)[:, None] & (j < window)[None, :]
        gradients = _vectors(gradient, n, subset, i, rows, lanes, VECTOR, STEP)[:, None] + j[None, :]
        values = _vectors(x, n, subset, i, rows, lanes, VECTOR, STEP)[:, None] + j[None, :]
        product = tl.load(gradients, mask=inside, other=0).to(tl.float32)
        product *= tl.load(values, mask=inside, other=0).to(tl.float32)
        sums += product * by_row[:, None]
        out = of_rows + (tl.program_id(0) * tl.num_programs(1) + n) * rows
        tl.store(out + row, tl.sum(product * by_lane[None, :], axis=1), mask=i < last)
    of_lanes += (split * tl.num_programs(1) + n) * lanes
    tl.store(of_lanes + (j - shift), tl.sum(sums, axis=0), mask=valid)
