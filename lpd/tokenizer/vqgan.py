"""The VQ network of LlamaGen (arXiv 2406.06525): images to a grid of codes and back.

An encoder and a decoder in the manner of VQGAN (arXiv 2012.09841) around a codebook of unit
vectors. Module names are those of the published VQ-16 weights and must stay as they are.

Symbols: B images; H x W pixels; h x w = H/stride x W/stride codes, N = h*w of them in raster order;
C channels; E codebook width; V codebook size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpd.errors import InputError
from lpd.weights import check_sizes

# The look-up compares this many vectors at a time with the whole codebook: 256 MiB of similarities
# for 16384 codes, where a batch of 64 images at 512 px would otherwise need 4 GiB.
_LOOKUP_ROWS = 4096

# What no tokenizer comes near, and a file with more is mistaken.
_MOST = {
    "ch": 1 << 12,
    "num_res_blocks": 100,
    "z_channels": 1 << 14,
    "codebook_size": 1 << 24,
    "codebook_embed_dim": 1 << 14,
    "norm_groups": 1 << 12,
}


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """The shape of a VQ network. The defaults are the published VQ-16."""

    ch: int = 128
    """Channels at full resolution; ch_mult multiplies them."""
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiplier per level; every level after the first halves the resolution."""
    num_res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    z_channels: int = 256
    """Channels between the encoder or decoder and the codebook's projections."""
    codebook_size: int = 16384
    """How many codes there are."""
    codebook_embed_dim: int = 8
    """Width of a code's vector."""
    norm_groups: int = 32
    """Groups of every GroupNorm; must divide each level's channels."""

    def __post_init__(self) -> None:
        check_sizes(self, _MOST)
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise InputError(f"ch_mult must be one or more positive integers, got {self.ch_mult}")
        for mult in self.ch_mult:
            if self.ch * mult % self.norm_groups:
                raise InputError(
                    f"norm_groups ({self.norm_groups}) must divide the channels of every level, "
                    f"but ch * {mult} is {self.ch * mult}; choose another ch or norm_groups"
                )

    @property
    def stride(self) -> int:
        """Pixels per code, along each side."""
        return 2 ** (len(self.ch_mult) - 1)


class VQLosses(NamedTuple):
    """What a vector quantizer adds to the reconstruction loss; scalars, unweighted."""

    codebook: Tensor
    """Mean squared distance that moves the codes towards the encoder's vectors."""
    commitment: Tensor
    """The same distance, moving the encoder's vectors towards their codes."""


class Quantized(NamedTuple):
    """The quantizer's output in training."""

    vectors: Tensor
    """(B, E, h, w) unit vectors of the codes; gradients pass straight through to the input."""
    codes: Tensor
    """(B, N) int64."""
    losses: VQLosses


class VQGANOutput(NamedTuple):
    """The network's output in training."""

    reconstruction: Tensor
    """(B, 3, H, W), about [-1, 1], not clamped."""
    codes: Tensor
    """(B, N) int64."""
    losses: VQLosses


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, norm_groups)
        self.conv1 = _conv3(in_channels, out_channels)
        self.norm2 = _norm(out_channels, norm_groups)
        self.conv2 = _conv3(out_channels, out_channels)
        self.nin_shortcut: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        residual = self.conv1(_silu(self.norm1(x)))  # (B, C_out, H, W)
        residual = self.conv2(_silu(self.norm2(residual)))
        return residual.add_(self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention with one head over all pixels of a level, beside a shortcut."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, norm_groups)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        normed = self.norm(x)
        q, k, v = (
            conv(normed).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H*W, C)
            for conv in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H*W, C)
        mixed = mixed.squeeze(1).transpose(1, 2).reshape(x.shape)  # (B, C, H, W)
        return x + self.proj_out(mixed)


class Downsample(nn.Module):
    """Halve the resolution; zeros are added at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2H, 2W)


class Level(nn.Module):
    """The blocks of one resolution, then the step to the next one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        norm_groups: int,
        *,
        attend: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResBlock(out_channels if i else in_channels, out_channels, norm_groups)
            for i in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            AttnBlock(out_channels, norm_groups) if attend else nn.Identity()
            for _ in range(num_blocks)
        )
        self.downsample = Downsample(out_channels) if downsample else nn.Identity()
        self.upsample = Upsample(out_channels) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), H' = H, H/2 or 2H."""
        for res, attn in zip(self.res, self.attn, strict=True):
            x = attn(res(x))  # (B, C_out, H, W)
        return self.upsample(self.downsample(x))  # (B, C_out, H', W')


class Encoder(nn.Module):
    """Images to vectors, one per code."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.conv_in = _conv3(3, config.ch)
        self.conv_blocks = nn.ModuleList()
        channels, last = config.ch, len(config.ch_mult) - 1
        for i, mult in enumerate(config.ch_mult):
            level = Level(
                channels,
                config.ch * mult,
                config.num_res_blocks,
                groups,
                attend=i == last,
                downsample=i != last,
            )
            self.conv_blocks.append(level)
            channels = config.ch * mult
        self.mid = _middle(channels, groups)
        self.norm_out = _norm(channels, groups)
        self.conv_out = _conv3(channels, config.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, z_channels, h, w)."""
        x = self.conv_in(images)  # (B, ch, H, W)
        for level in self.conv_blocks:
            x = level(x)  # (B, C, H', W')
        x = self.mid(x)
        return self.conv_out(_silu(self.norm_out(x)))  # (B, z_channels, h, w)


class Decoder(nn.Module):
    """Vectors, one per code, to images."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        channels, last = config.ch * config.ch_mult[-1], len(config.ch_mult) - 1
        self.conv_in = _conv3(config.z_channels, channels)
        self.mid = _middle(channels, groups)
        self.conv_blocks = nn.ModuleList()
        for i, mult in enumerate(reversed(config.ch_mult)):
            level = Level(
                channels,
                config.ch * mult,
                config.num_res_blocks + 1,
                groups,
                attend=i == 0,
                upsample=i != last,
            )
            self.conv_blocks.append(level)
            channels = config.ch * mult
        self.norm_out = _norm(channels, groups)
        self.conv_out = _conv3(channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, 3, H, W)."""
        x = self.mid(self.conv_in(z))  # (B, C, h, w)
        for level in self.conv_blocks:
            x = level(x)  # (B, C, H', W')
        return self.conv_out(_silu(self.norm_out(x)))  # (B, 3, H, W)


class VectorQuantizer(nn.Module):
    """The codebook: vectors are compared by direction, so codes are points of the unit sphere."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.normal_(self.embedding.weight)  # every direction is equally likely

    def codebook(self) -> Tensor:
        """(V, E), the codes' unit vectors."""
        return F.normalize(self.embedding.weight, dim=-1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The nearest code of each vector.

        Args:
            z: (B, E, h, w), of any length.

        Returns:
            (B, N) int64.
        """
        vectors = F.normalize(z.flatten(2).transpose(1, 2), dim=-1)  # (B, N, E)
        codebook = self.codebook().T  # (E, V)
        # Between unit vectors the smallest distance is the largest inner product.
        codes = [
            (rows @ codebook).argmax(dim=-1) for rows in vectors.flatten(0, 1).split(_LOOKUP_ROWS)
        ]
        return torch.cat(codes).reshape(vectors.shape[:2])  # (B, N)

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """The unit vectors of codes (B, N), laid out on ``grid`` = (h, w): (B, E, h, w)."""
        return F.embedding(codes, self.codebook()).transpose(1, 2).unflatten(2, grid)

    def forward(self, z: Tensor) -> Quantized:
        """Quantize (B, E, h, w) for training; see :class:`Quantized`."""
        codes = self.nearest(z)  # (B, N)
        unit = F.normalize(z, dim=1)  # (B, E, h, w)
        chosen = self.vectors(codes, (z.shape[2], z.shape[3]))  # (B, E, h, w)
        losses = VQLosses(
            codebook=F.mse_loss(chosen, unit.detach()),
            commitment=F.mse_loss(unit, chosen.detach()),
        )
        # Straight-through: the value of `chosen`, the gradient of `unit`.
        return Quantized(unit + (chosen - unit).detach(), codes, losses)


class VQGAN(nn.Module):
    """Encoder, codebook and decoder. Images are (B, 3, H, W) in [-1, 1], sides multiples of stride.

    ``encode`` and ``decode`` are what a trained network is for; ``forward`` is for training.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.codebook_embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(
            config.codebook_embed_dim, config.z_channels, kernel_size=1
        )

    def pre_quant(self, images: Tensor) -> Tensor:
        """What the quantizer receives, (B, E, h, w), not yet normalised."""
        return self.quant_conv(self.encoder(images))  # (B, E, h, w)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to codes (B, N) in raster order."""
        return self.quantize.nearest(self.pre_quant(images))

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, N) on ``grid`` = (h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(self.quantize.vectors(codes, grid)))

    def forward(self, images: Tensor) -> VQGANOutput:
        """Encode and decode images, keeping gradients; see :class:`VQGANOutput`."""
        vectors, codes, losses = self.quantize(self.pre_quant(images))
        return VQGANOutput(self.decoder(self.post_quant_conv(vectors)), codes, losses)


def _conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _silu(x: Tensor) -> Tensor:
    """SiLU of what nobody else holds, in its place unless a gradient needs that: on a CPU, fresh
    memory for a large image costs several times the arithmetic."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _middle(channels: int, norm_groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResBlock(channels, channels, norm_groups),
        AttnBlock(channels, norm_groups),
        ResBlock(channels, channels, norm_groups),
    )
