"""Kernels in Triton for what surrounds the convolutions of a UNet, on images in the channels-last layout.

PyTorch's own norm, scale, shift, SiLU and biases are a kernel each, and where its group norm works on the other layout
each of its calls costs two copies more. Import this module only where `triton` is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


# Images of up to so many pixels are normalized by one kernel, which reads them twice; larger ones by two.
ONE_KERNEL_PIXELS = 256
# Programs that keep a large GPU busy.
PROGRAMS = 264
# The most that a program takes: parts of an image when it adds up their sums, and groups of channels.
MAX_PARTS = 128
MAX_GROUPS = 32


@triton.jit
def _column_sums(x, start, end, offsets, mask, pivot, channels, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum and sum of squares of each column, less a pivot, over the rows from `start` to `end`."""
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    squares = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(start, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < end)[:, None] & mask[None, :]
        values = tl.load(x + rows[:, None] * channels + offsets[None, :], mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - pivot[None, :], 0.0)
        total += values
        squares += values * values
    return tl.sum(total, axis=0), tl.sum(squares, axis=0)


@triton.jit
def _group_norm(
    x,
    y,
    sums,
    weight,
    bias,
    x_bias,
    scale_shift,
    num_pixels,
    channels,
    group_size,
    width,
    pixels_per_part,
    num_parts,
    scale_shift_stride,
    eps,
    SUM: tl.constexpr,
    APPLY: tl.constexpr,
    HAS_X_BIAS: tl.constexpr,
    HAS_SCALE_SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One part of the pixels of an image, for the columns of some whole groups. SUM writes the part's sums, APPLY reads
    them; one program that does both needs no memory for them."""
    part, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = tl.arange(0, WIDTH)
    mask = columns < width
    offsets = block * width + columns
    x += image.to(tl.int64) * num_pixels * channels
    y += image.to(tl.int64) * num_pixels * channels
    start = part * pixels_per_part
    end = tl.minimum(start + pixels_per_part, num_pixels)

    # Squares are summed around the group's first value: around zero, those of a large mean would cancel.
    firsts = block * width + columns // group_size * group_size
    pivot = tl.load(x + firsts, mask=mask, other=0.0).to(tl.float32)
    added = tl.zeros((WIDTH,), tl.float32)
    if HAS_X_BIAS:
        added = tl.load(x_bias + offsets, mask=mask, other=0.0).to(tl.float32)
        pivot += tl.load(x_bias + firsts, mask=mask, other=0.0).to(tl.float32)
    groups = tl.arange(0, GROUPS)
    belongs = ((columns // group_size)[:, None] == groups[None, :]) & mask[:, None]
    is_group = groups < width // group_size
    at = sums + ((image * tl.num_programs(1) + block) * num_parts) * 2 * GROUPS + groups

    if SUM:
        total, squares = _column_sums(x, start, end, offsets, mask, pivot - added, channels, ROWS, WIDTH)
        group_total = tl.sum(tl.where(belongs, total[:, None], 0.0), axis=0)
        group_squares = tl.sum(tl.where(belongs, squares[:, None], 0.0), axis=0)
        if not APPLY:
            tl.store(at + part * 2 * GROUPS, group_total, mask=is_group)
            tl.store(at + part * 2 * GROUPS + GROUPS, group_squares, mask=is_group)
    if APPLY:
        if not SUM:
            parts = tl.arange(0, PARTS)
            is_sum = (parts < num_parts)[:, None] & is_group[None, :]
            sums_of = at[None, :] + parts[:, None] * 2 * GROUPS
            group_total = tl.sum(tl.load(sums_of, mask=is_sum, other=0.0), axis=0)
            group_squares = tl.sum(tl.load(sums_of + GROUPS, mask=is_sum, other=0.0), axis=0)
        count = 1.0 * num_pixels * group_size
        mean = group_total / count
        rstd = tl.rsqrt(tl.maximum(group_squares / count - mean * mean, 0.0) + eps)
        mean_of = tl.sum(tl.where(belongs, mean[None, :], 0.0), axis=1) + pivot
        factor = tl.sum(tl.where(belongs, rstd[None, :], 0.0), axis=1)
        factor *= tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
        term = tl.load(bias + offsets, mask=mask, other=0.0).to(tl.float32) + (added - mean_of) * factor
        if HAS_SCALE_SHIFT:
            scale_at = scale_shift + image * scale_shift_stride + offsets
            scale = 1.0 + tl.load(scale_at, mask=mask, other=0.0).to(tl.float32)
            factor *= scale
            term = term * scale + tl.load(scale_at + channels, mask=mask, other=0.0).to(tl.float32)
        for first in range(start, end, ROWS):
            rows = first + tl.arange(0, ROWS)
            inside = (rows < end)[:, None] & mask[None, :]
            places = rows[:, None] * channels + offsets[None, :]
            values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
            values = values * factor[None, :] + term[None, :]
            if SILU:
                values = values * tl.sigmoid(values)
            tl.store(y + places, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _add(x, other, bias, y, size, channels, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """y = x + other + bias, over all elements; the channel is the last dimension."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    values = tl.load(x + places, mask=inside).to(tl.float32) + tl.load(other + places, mask=inside).to(tl.float32)
    if HAS_BIAS:
        values += tl.load(bias + places % channels, mask=inside).to(tl.float32)
    tl.store(y + places, values.to(y.dtype.element_ty), mask=inside)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    x_bias: torch.Tensor | None,
    scale_shift: torch.Tensor | None,
    silu: bool,
) -> torch.Tensor:
    """See [`.fused.group_norm`]; x must be channels-last."""
    batch_size, channels, height, width = x.shape
    num_pixels, group_size = height * width, channels // num_groups
    is_one_kernel = num_pixels <= ONE_KERNEL_PIXELS
    # Whole groups, as many as fit a block: a power of two, so that they divide their number.
    limit = max(64 if is_one_kernel else 128, group_size)
    rows = 32 if is_one_kernel else 64
    in_block = num_groups & -num_groups
    while in_block > 1 and (in_block * group_size > limit or in_block > MAX_GROUPS):
        in_block //= 2
    blocks = num_groups // in_block
    parts = 1
    if not is_one_kernel:
        parts = min(MAX_PARTS, triton.next_power_of_2(triton.cdiv(PROGRAMS, batch_size * blocks)))
        parts = min(parts, num_pixels // rows)
    y = torch.empty_like(x)
    sums = x.new_empty(0 if is_one_kernel else batch_size * blocks * parts * 2 * MAX_GROUPS, dtype=torch.float32)
    arguments = (
        *(x, y, sums, weight, bias, x_bias if x_bias is not None else bias),
        scale_shift if scale_shift is not None else bias,
        *(num_pixels, channels, group_size, in_block * group_size, triton.cdiv(num_pixels, parts), parts),
        scale_shift.stride(0) if scale_shift is not None else 0,
        eps,
    )
    sizes = {
        "HAS_X_BIAS": x_bias is not None,
        "HAS_SCALE_SHIFT": scale_shift is not None,
        "ROWS": rows,
        "WIDTH": triton.next_power_of_2(limit),
        "GROUPS": MAX_GROUPS,
        "PARTS": MAX_PARTS,
        "num_warps": 4 if is_one_kernel else 8,
    }
    grid = (parts, blocks, batch_size)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if is_one_kernel:
            _group_norm[grid](*arguments, SUM=True, APPLY=True, SILU=silu, **sizes)
        else:
            _group_norm[grid](*arguments, SUM=True, APPLY=False, SILU=False, **(sizes | {"HAS_SCALE_SHIFT": False}))
            _group_norm[grid](*arguments, SUM=False, APPLY=True, SILU=silu, **sizes)
    return y


def add(x: torch.Tensor, other: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See [`.fused.add`]; x and the other must be channels-last."""
    y = torch.empty_like(x)
    block = 1024
    size, channels, has_bias = x.numel(), x.shape[1], bias is not None
    with torch.cuda.device_of(x):
        _add[(triton.cdiv(size, block),)](
            x, other, bias if has_bias else x, y, size, channels, HAS_BIAS=has_bias, BLOCK=block
        )
    return y
