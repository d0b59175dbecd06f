"""Large images on a CPU, some rows at a time: the VQ network's function in bounded memory.

Whole, the published network was measured to hold as much as five layers of an image's pixels at a
time, each of 512 bytes a pixel. Here at most two are whole, what a residual block reads and what is
between its convolutions; all else is there in strips of rows.

Nothing is approximated, so tiles need no blending. A convolution's strip reads the rows beside it
too. Group normalisation has the statistics of a whole layer, which is there when they are needed;
they are summed up in another order, which is all that differs. Attention is at the codes'
resolution, where layers are small and are computed whole.

One image; C channels, H x W pixels of a level; h x w codes.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpd.tokenizer.vqgan import (
    VQGAN,
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    Level,
    ResBlock,
    Upsample,
    VQGANConfig,
)

# Images are computed whole while a layer is no larger, in bytes: one of VQ-16 at 512 pixels is half
# of it. What an image's codes are must depend neither on its batch nor on how much memory there is.
_WHOLE_BYTES = 1 << 28

# A strip with its neighbours. glibc asks the kernel anew for 32 MiB and more each time.
_STRIP_BYTES = 31 << 20

_FLOAT32 = 4

Prepare = Callable[[Tensor], Tensor]
"""What is done to rows before a convolution reads them."""


def are_needed(config: VQGANConfig, pixels: tuple[int, int]) -> bool:
    """Whether an image of (H, W) pixels is too large to be computed whole."""
    return layer_bytes(config, pixels) > _WHOLE_BYTES


def layer_bytes(config: VQGANConfig, pixels: tuple[int, int]) -> int:
    """Of the largest layer of an image of (H, W) pixels, in float32."""
    # At full resolution: the second level of the decoder comes there by its own upsampling.
    channels = config.ch * max(config.ch_mult[:2])
    return pixels[0] * pixels[1] * channels * _FLOAT32


def encode(vqgan: VQGAN, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to codes (B, N), one after the other; without gradients."""
    vectors = [vqgan.quant_conv(_encode(vqgan.encoder, image)) for image in images.split(1)]
    return vqgan.quantize.nearest(torch.cat(vectors))


def decode(vqgan: VQGAN, codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Codes (B, N) on ``grid`` = (h, w) to images (B, 3, H, W), not clamped, one after the other;
    without gradients."""
    images = [
        _decode(vqgan.decoder, vqgan.post_quant_conv(vqgan.quantize.vectors(row, grid)))
        for row in codes.split(1)
    ]
    return torch.cat(images)


def _encode(encoder: Encoder, image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, z_channels, h, w)."""
    x = _convolved(encoder.conv_in, image)
    for level in encoder.conv_blocks:
        x = _through(level, x)
    x = encoder.mid(x)
    return encoder.conv_out(F.silu(encoder.norm_out(x)))


def _decode(decoder: Decoder, z: Tensor) -> Tensor:
    """(1, z_channels, h, w) -> (1, 3, H, W)."""
    x = decoder.mid(decoder.conv_in(z))
    for level in decoder.conv_blocks:
        x = _through(level, x)
    return _convolved(decoder.conv_out, x, _normalised_silu(decoder.norm_out, x))


def _through(level: nn.Module, x: Tensor) -> Tensor:
    """A level's blocks and the step to the next one. ``x`` may be written into."""
    assert isinstance(level, Level)
    for res, attention in zip(level.res, level.attn, strict=True):
        assert isinstance(res, ResBlock)
        x = _res_block(res, x)
        if isinstance(attention, AttnBlock):
            x = attention(x)
    if isinstance(level.downsample, Downsample):
        return _downsampled(level.downsample, x)
    if isinstance(level.upsample, Upsample):
        return _upsampled(level.upsample, x)
    return x


def _res_block(block: ResBlock, x: Tensor) -> Tensor:
    """:class:`lpd.tokenizer.vqgan.ResBlock`; where ``x`` has as many channels, in its place."""
    hidden = _convolved(block.conv1, x, _normalised_silu(block.norm1, x))
    prepare = _normalised_silu(block.norm2, hidden)
    in_place = isinstance(block.nin_shortcut, nn.Identity)
    result = x if in_place else torch.empty_like(hidden)
    for start, stop in _strips(hidden):
        rows = _convolved_rows(block.conv2, hidden, prepare, start, stop)
        result[:, :, start:stop] = rows.add_(block.nin_shortcut(x[:, :, start:stop]))
    return result


def _normalised_silu(norm: nn.GroupNorm, x: Tensor) -> Prepare:
    """GroupNorm with the statistics of a whole layer, and SiLU, of rows of it."""
    groups, eps = norm.num_groups, norm.eps
    mean = x.mean((0, 2, 3)).unflatten(0, (groups, -1)).mean(1)  # (G,)
    mean = mean.repeat_interleave(x.shape[1] // groups)[:, None, None]  # (C, 1, 1)
    squares = x.new_zeros(x.shape[1], dtype=torch.float64)  # (C,)
    for start, stop in _strips(x):
        squares += (x[:, :, start:stop] - mean).square_().sum((0, 2, 3))
    variance = squares.unflatten(0, (groups, -1)).sum(1) / (x[0].numel() // groups)  # (G,)
    scale = (variance + eps).rsqrt().to(x.dtype).repeat_interleave(x.shape[1] // groups)
    scale = (scale * norm.weight)[:, None, None]  # (C, 1, 1)
    shift = norm.bias[:, None, None] - mean * scale

    def prepare(rows: Tensor) -> Tensor:
        return F.silu(torch.addcmul(shift, rows, scale), inplace=True)

    return prepare


def _convolved(conv: nn.Conv2d, x: Tensor, prepare: Prepare | None = None) -> Tensor:
    """A 3x3 convolution of a whole layer: (1, C_in, H, W) -> (1, C_out, H, W)."""
    result = _layer(x, conv.out_channels, x.shape[2], x.shape[3])
    for start, stop in _strips(x, result):
        result[:, :, start:stop] = _convolved_rows(conv, x, prepare, start, stop)
    return result


def _convolved_rows(
    conv: nn.Conv2d, x: Tensor, prepare: Prepare | None, start: int, stop: int
) -> Tensor:
    """Rows of a 3x3 convolution that pads with zeros: (1, C_out, stop - start, W)."""
    first = max(0, start - 1)
    rows = x[:, :, first : stop + 1]
    # Beside the strip zeros are wrong but at the image's border: those rows are not taken.
    made = conv(rows if prepare is None else prepare(rows))
    return made[:, :, start - first : stop - first]


def _upsampled(block: Upsample, x: Tensor) -> Tensor:
    """:class:`lpd.tokenizer.vqgan.Upsample`: (1, C, H, W) -> (1, C, 2H, 2W)."""
    result = _layer(x, x.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    for start, stop in _strips(x, rows_of=4):
        first = max(0, start - 1)
        made = block(x[:, :, first : stop + 1])
        result[:, :, 2 * start : 2 * stop] = made[:, :, 2 * (start - first) : 2 * (stop - first)]
    return result


def _downsampled(block: Downsample, x: Tensor) -> Tensor:
    """:class:`lpd.tokenizer.vqgan.Downsample`: (1, C, H, W) -> (1, C, H/2, W/2)."""
    result = _layer(x, x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
    for start, stop in _strips(result, rows_of=4):
        rows = x[:, :, 2 * start : 2 * stop + 1]
        # The block adds a row of zeros below: right at the image's border, else one too many.
        result[:, :, start:stop] = block(rows)[:, :, : stop - start]
    return result


def _layer(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Fresh memory for (1, channels, height, width), channels innermost."""
    return torch.empty(
        (1, channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _strips(*layers: Tensor, rows_of: int = 1) -> Iterator[tuple[int, int]]:
    """The rows of layers of the same height, in strips: where each begins and ends.

    Args:
        layers: (1, ., H, .) each.
        rows_of: how many rows of what is computed a row stands for.
    """
    height = layers[0].shape[2]
    row_bytes = rows_of * max(each[:, :, 0].nbytes for each in layers)
    step = max(1, _STRIP_BYTES // row_bytes - 2)
    for start in range(0, height, step):
        yield start, min(start + step, height)
