"""Triton kernels of the VQ decoder: group normalisation of images whose channels are innermost.

Importing this needs triton; :mod:`lpd.tokenizer.norm_silu` does so where it is about to launch.

An image of P pixels and C channels in G groups is cut into tiles: some consecutive pixels of some
whole groups. The first kernel leaves every tile's statistics, the second merges those of a group
and normalises. A program per group, the obvious way, would keep 32 of an H100's 132 processors busy
for one image.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile of an iteration has this many elements, in rows of at least 32 channels (64 bytes of
# bfloat16, two sectors of memory); 32 elements to a thread.
_ELEMENTS, _CHANNELS, _WARPS = 4096, 32, 4
# The second kernel's programs each read the statistics of a whole group: not too many.
_MAX_TILES = 128


@triton.jit
def _tile_statistics(
    x_ptr,
    shift_ptr,
    shortcut_ptr,
    sum_ptr,
    statistics_ptr,
    num_pixels,
    num_channels,
    GROUP_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    ITERATIONS: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr,
):
    tile, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lanes = tl.arange(0, BLOCK_GROUPS * PADDED_SIZE)
    groups = tl.program_id(1) * BLOCK_GROUPS + lanes // PADDED_SIZE
    if GROUP_SIZE == PADDED_SIZE:  # said so that the compiler sees consecutive addresses
        channels = tl.program_id(1) * BLOCK_GROUPS * GROUP_SIZE + lanes
        exists = channels < num_channels
    else:
        channels = groups * GROUP_SIZE + lanes % PADDED_SIZE
        exists = (channels < num_channels) & (lanes % PADDED_SIZE < GROUP_SIZE)
    image_start = image * num_pixels * num_channels
    first = tile * ITERATIONS * BLOCK_PIXELS
    rows = tl.arange(0, BLOCK_PIXELS)

    shift = tl.zeros([BLOCK_GROUPS * PADDED_SIZE], tl.float32)
    if HAS_SHIFT:
        shift = tl.load(shift_ptr + channels, mask=exists, other=0.0).to(tl.float32)

    # Sums about a value of the tile itself, a channel's first one, do not cancel where the mean is
    # large beside the deviation.
    corner = image_start + first * num_channels + channels
    pivot = tl.load(x_ptr + corner, mask=exists, other=0.0).to(tl.float32) + shift
    if HAS_SHORTCUT:
        pivot += tl.load(shortcut_ptr + corner, mask=exists, other=0.0).to(tl.float32)

    sums = tl.zeros([BLOCK_PIXELS, BLOCK_GROUPS * PADDED_SIZE], tl.float32)
    squares = tl.zeros([BLOCK_PIXELS, BLOCK_GROUPS * PADDED_SIZE], tl.float32)
    for i in range(ITERATIONS):
        pixels = first + i * BLOCK_PIXELS + rows
        mask = (pixels < num_pixels)[:, None] & exists[None, :]
        places = image_start + pixels[:, None] * num_channels + channels[None, :]
        value = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) + shift[None, :]
        if HAS_SHORTCUT:
            value += tl.load(shortcut_ptr + places, mask=mask, other=0.0).to(tl.float32)
            rounded = value.to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + places, rounded, mask=mask)
            value = rounded.to(tl.float32)  # what the second kernel will read
        centred = tl.where(mask, value - pivot[None, :], 0.0)
        sums += centred
        squares += centred * centred

    # Of each channel, then of each group, as Chan, Golub and LeVeque merge partial variances.
    count = (tl.minimum(num_pixels - first, ITERATIONS * BLOCK_PIXELS)).to(tl.float32)
    channel_sum = tl.sum(sums, axis=0)
    mean = tl.where(exists, pivot + channel_sum / count, 0.0)
    squared = tl.where(exists, tl.sum(squares, axis=0) - channel_sum * channel_sum / count, 0.0)
    mean = tl.reshape(mean, [BLOCK_GROUPS, PADDED_SIZE])
    squared = tl.reshape(squared, [BLOCK_GROUPS, PADDED_SIZE])
    exists = tl.reshape(exists, [BLOCK_GROUPS, PADDED_SIZE])
    group_mean = tl.sum(mean, axis=1) / GROUP_SIZE
    apart = tl.where(exists, mean - group_mean[:, None], 0.0)
    group_squared = tl.sum(squared + count * apart * apart, axis=1)

    group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    num_groups = num_channels // GROUP_SIZE
    place = (image * num_groups + group) * tl.num_programs(0) + tile
    plane = tl.num_programs(2) * num_groups * tl.num_programs(0)  # means, then sums of squares
    tl.store(statistics_ptr + place, group_mean, mask=group < num_groups)
    tl.store(statistics_ptr + plane + place, group_squared, mask=group < num_groups)


@triton.jit
def _normalise(
    x_ptr,
    shift_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_pixels,
    num_channels,
    eps,
    GROUP_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    ITERATIONS: tl.constexpr,
    PADDED_TILES: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    tile, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lanes = tl.arange(0, BLOCK_GROUPS * PADDED_SIZE)
    groups = tl.program_id(1) * BLOCK_GROUPS + lanes // PADDED_SIZE
    if GROUP_SIZE == PADDED_SIZE:
        channels = tl.program_id(1) * BLOCK_GROUPS * GROUP_SIZE + lanes
        exists = channels < num_channels
    else:
        channels = groups * GROUP_SIZE + lanes % PADDED_SIZE
        exists = (channels < num_channels) & (lanes % PADDED_SIZE < GROUP_SIZE)

    # The groups' statistics from those of all their tiles.
    num_groups = num_channels // GROUP_SIZE
    group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    tiles = tl.arange(0, PADDED_TILES)
    held = (group < num_groups)[:, None] & (tiles < tl.num_programs(0))[None, :]
    place = (image * num_groups + group)[:, None] * tl.num_programs(0) + tiles[None, :]
    plane = tl.num_programs(2) * num_groups * tl.num_programs(0)
    means = tl.load(statistics_ptr + place, mask=held, other=0.0)
    squared = tl.load(statistics_ptr + plane + place, mask=held, other=0.0)
    per_tile = ITERATIONS * BLOCK_PIXELS
    counts = tl.minimum(num_pixels - tiles * per_tile, per_tile).to(tl.float32) * GROUP_SIZE
    counts = tl.where(held, counts[None, :], 0.0)
    total = num_pixels.to(tl.float32) * GROUP_SIZE
    # About the first tile's mean, for the same reason as in the first kernel.
    origin = tl.sum(tl.where(tiles[None, :] == 0, means, 0.0), axis=1)
    mean = origin + tl.sum(counts * (means - origin[:, None]), axis=1) / total
    apart = means - mean[:, None]
    variance = tl.sum(squared + counts * apart * apart, axis=1) / total
    inverse = tl.rsqrt(variance + eps)
    shape: tl.constexpr = [BLOCK_GROUPS, PADDED_SIZE]
    lane_mean = tl.reshape(tl.broadcast_to(mean[:, None], shape), [BLOCK_GROUPS * PADDED_SIZE])
    lane_inverse = tl.reshape(
        tl.broadcast_to(inverse[:, None], shape), [BLOCK_GROUPS * PADDED_SIZE]
    )
    weight = tl.load(weight_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)
    scale = weight * lane_inverse
    if HAS_SHIFT:
        lane_mean -= tl.load(shift_ptr + channels, mask=exists, other=0.0).to(tl.float32)

    image_start = image * num_pixels * num_channels
    rows = tl.arange(0, BLOCK_PIXELS)
    for i in range(ITERATIONS):
        pixels = tile * per_tile + i * BLOCK_PIXELS + rows
        mask = (pixels < num_pixels)[:, None] & exists[None, :]
        places = image_start + pixels[:, None] * num_channels + channels[None, :]
        value = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32)
        value = (value - lane_mean[None, :]) * scale[None, :] + bias[None, :]
        if ACTIVATE:
            value = value * tl.sigmoid(value)
        tl.store(out_ptr + places, value.to(out_ptr.dtype.element_ty), mask=mask)


def launch(
    x: Tensor,
    shift: Tensor | None,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    activate: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Run both kernels.

    Args:
        x: (B, C, H, W), channels innermost, as is ``shortcut``.
        shift: (C,) added to every pixel, or None.
        shortcut: (B, C, H, W) added too, or None.
        weight: (C,) of the normalisation.
        bias: (C,) of the normalisation.
        num_groups: G.
        eps: added to the variance.
        activate: whether SiLU follows.
        dtype: of the normalised.

    Returns:
        x + shift + shortcut in x's dtype (``x`` itself where there is no shortcut), and that
        normalised; both (B, C, H, W), channels innermost.
    """
    num_images, num_channels, height, width = x.shape
    num_pixels, group_size = height * width, num_channels // num_groups
    padded_size = triton.next_power_of_2(group_size)
    block_groups = min(max(_CHANNELS // padded_size, 1), triton.next_power_of_2(num_groups))
    block_pixels = max(_ELEMENTS // (block_groups * padded_size), 1)
    iterations = triton.cdiv(num_pixels, block_pixels * _MAX_TILES)
    num_tiles = triton.cdiv(num_pixels, block_pixels * iterations)
    grid = (num_tiles, triton.cdiv(num_groups, block_groups), num_images)
    statistics = x.new_empty(2, num_images, num_groups, num_tiles, dtype=torch.float32)
    out = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    total = x if shortcut is None else torch.empty_like(x, memory_format=torch.channels_last)
    # Where there is none of something, its flag says so and any pointer will do.
    shape = {
        "GROUP_SIZE": group_size,
        "PADDED_SIZE": padded_size,
        "BLOCK_GROUPS": block_groups,
        "BLOCK_PIXELS": block_pixels,
        "ITERATIONS": iterations,
        "num_warps": _WARPS,
    }
    _tile_statistics[grid](
        x,
        x if shift is None else shift,
        x if shortcut is None else shortcut,
        total,
        statistics,
        num_pixels,
        num_channels,
        HAS_SHIFT=shift is not None,
        HAS_SHORTCUT=shortcut is not None,
        **shape,
    )
    _normalise[grid](
        total,
        x if shift is None else shift,
        statistics,
        weight,
        bias,
        out,
        num_pixels,
        num_channels,
        eps,
        PADDED_TILES=triton.next_power_of_2(num_tiles),
        HAS_SHIFT=shift is not None and shortcut is None,  # a sum holds it already
        ACTIVATE=activate,
        **shape,
    )
    return total, out
