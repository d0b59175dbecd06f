"""The VQ network's decoder for generation, with its weights prepared once.

Up to rounding it is the function that :class:`lpd.tokenizer.vqgan.Decoder` is.

- Weights are copied in the dtype that they are used in, channels innermost.
- Repeating pixels and convolving them 3x3 is one transposed convolution, 4x4 with stride 2, whose
  weights are sums of the 3x3 ones: 4 products for an output where there were 9, and the repeated
  pixels are never written.
- 1x1 convolutions are matrix products with the bias in them; queries, keys and values are one.
- Additions are done in place, or by the normalisation after them (``fused``).

In bfloat16, images between the layers are rounded to it. Sums of products and the statistics of
normalisations are float32, and so are the last normalisation and convolution, since bfloat16 near 1
moves by half a step of an 8-bit pixel. (On CUDA torch computes float32 convolutions in TF32 unless
told otherwise, which moves by a sixteenth.) Not the residual stream: in float32 it gains as much
again and costs a quarter more memory traffic.

B images, C channels, H x W pixels of a level.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpd.tokenizer.norm_silu import add_group_norm_silu, group_norm_silu
from lpd.tokenizer.vqgan import AttnBlock, Decoder, Level, ResBlock, Upsample

T = TypeVar("T", bound=nn.Module)


class Precision(NamedTuple):
    """How the fast decoder computes."""

    dtype: torch.dtype
    """Of the weights and of what flows between them."""
    fused: bool
    """Whether normalisations are ``lpd::group_norm_silu``, which also adds what comes before."""


class Stream(NamedTuple):
    """The residual stream: ``x + shift + shortcut``, not yet added where the next normalisation
    does so."""

    x: Tensor
    """(B, C, H, W), channels innermost."""
    shift: Tensor | None = None
    """(C,) the bias that a convolution has left out."""
    shortcut: Tensor | None = None
    """(B, C, H, W)."""

    def total(self) -> Tensor:
        """(B, C, H, W), in the place of ``x``."""
        x = self.x if self.shift is None else self.x.add_(self.shift.view(-1, 1, 1))
        return x if self.shortcut is None else x.add_(self.shortcut)


Block = Callable[[Stream], Stream]


class FastDecoder:
    """Vectors, one per code, to images; without gradients."""

    def __init__(self, decoder: Decoder, *, bf16: bool, fused: bool) -> None:
        """Args:
        decoder: the network, on the device where to compute; its weights are copied.
        bf16: compute in bfloat16 rather than float32.
        fused: normalise, add and activate by the kernels of :mod:`lpd.tokenizer.norm_silu`.
        """
        precision = Precision(torch.bfloat16 if bf16 else torch.float32, fused)
        self._conv_in = _Conv(decoder.conv_in, precision)
        self._blocks = [_res_or_attention(block, precision) for block in decoder.mid]
        for level in _modules(decoder.conv_blocks, Level):
            for res, attention in zip(level.res, level.attn, strict=True):
                self._blocks.append(_res_or_attention(res, precision))
                if isinstance(attention, AttnBlock):
                    self._blocks.append(_res_or_attention(attention, precision))
            if isinstance(level.upsample, Upsample):
                self._blocks.append(_Upsample(level.upsample, precision))
        self._norm_out = _Norm(decoder.norm_out, precision, torch.float32)
        self._conv_out = _Conv(decoder.conv_out, Precision(torch.float32, fused))

    def __call__(self, z: Tensor) -> Tensor:
        """Turn vectors into images.

        Args:
            z: (B, z_channels, h, w) in the decoder's dtype, channels innermost.

        Returns:
            (B, 3, H, W) float32, about [-1, 1], not clamped.
        """
        stream = Stream(self._conv_in(z))
        for block in self._blocks:
            stream = block(stream)
        return self._conv_out(self._norm_out(stream)[1])


class _Norm:
    """GroupNorm, and SiLU unless told otherwise, of a residual stream."""

    def __init__(
        self, norm: nn.GroupNorm, precision: Precision, dtype: torch.dtype | None = None
    ) -> None:
        """``dtype`` is that of the output, by default that of the input."""
        self._dtype, self._fused = dtype or precision.dtype, precision.fused
        # torch's own kernel takes float32 weights beside bfloat16 images on a CPU only.
        mixed = precision.fused or norm.weight.device.type == "cpu"
        weights = torch.float32 if mixed else self._dtype
        self._weight = norm.weight.detach().to(weights)
        self._bias = norm.bias.detach().to(weights)
        self._groups, self._eps = norm.num_groups, norm.eps

    def __call__(self, stream: Stream, *, activate: bool = True) -> tuple[Tensor, Tensor]:
        """The stream, added up where it has a shortcut, and that normalised: 2 x (B, C, H, W)."""
        parameters = (self._weight, self._bias, self._groups, self._eps)
        if self._fused:
            x, shift, shortcut = stream
            if shortcut is None:
                return x, group_norm_silu(x, shift, *parameters, activate, self._dtype)
            return add_group_norm_silu(x, shift, shortcut, *parameters, activate, self._dtype)
        x = stream.total()
        normed = F.group_norm(x.to(self._dtype), self._groups, self._weight, self._bias, self._eps)
        return x, F.silu(normed, inplace=True) if activate else normed


class _Conv:
    """A 3x3 convolution."""

    def __init__(self, conv: nn.Module, precision: Precision) -> None:
        weight, bias = _weight_and_bias(conv)
        self._weight = _innermost(weight, precision.dtype)
        self._bias = bias.to(precision.dtype)
        self._shift = bias if precision.fused else None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        return F.conv2d(x, self._weight, self._bias, padding=1)

    def onto(self, x: Tensor, shortcut: Tensor | None = None) -> Stream:
        """The same, with the bias left to a normalisation that adds it, and added to a shortcut."""
        if self._shift is None:
            return Stream(self(x), None, shortcut)
        return Stream(F.conv2d(x, self._weight, padding=1), self._shift, shortcut)


class _Pointwise:
    """1x1 convolutions of the same input, as one matrix product."""

    def __init__(self, *convs: nn.Module, precision: Precision) -> None:
        weights, biases = zip(*map(_weight_and_bias, convs), strict=True)
        self._weight = torch.cat(weights).flatten(1).to(precision.dtype)  # (C_out, C_in)
        self._bias = torch.cat(biases).to(precision.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) -> (B, H, W, C_out)."""
        return F.linear(x, self._weight, self._bias)


class _ResBlock:
    """:class:`lpd.tokenizer.vqgan.ResBlock`."""

    def __init__(self, block: ResBlock, precision: Precision) -> None:
        self._norm1, self._norm2 = _Norm(block.norm1, precision), _Norm(block.norm2, precision)
        self._conv1, self._conv2 = _Conv(block.conv1, precision), _Conv(block.conv2, precision)
        self._shortcut = (
            None
            if isinstance(block.nin_shortcut, nn.Identity)
            else _Pointwise(block.nin_shortcut, precision=precision)
        )

    def __call__(self, stream: Stream) -> Stream:
        x, residual = self._norm1(stream)
        _, residual = self._norm2(self._conv1.onto(residual))
        if self._shortcut is not None:
            x = _channels_first(self._shortcut(_channels_last(x)))
        return self._conv2.onto(residual, x)


class _Attention:
    """:class:`lpd.tokenizer.vqgan.AttnBlock`."""

    def __init__(self, block: AttnBlock, precision: Precision) -> None:
        self._norm = _Norm(block.norm, precision)
        self._qkv = _Pointwise(block.q, block.k, block.v, precision=precision)
        self._proj = _Pointwise(block.proj_out, precision=precision)

    def __call__(self, stream: Stream) -> Stream:
        x, normed = self._norm(stream, activate=False)
        rows = self._qkv(_channels_last(normed))  # (B, H, W, 3C)
        q, k, v = rows.flatten(1, 2).unsqueeze(1).chunk(3, dim=-1)  # 3 x (B, 1, H*W, C)
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # (B, H*W, C)
        projected = self._proj(mixed.unflatten(1, rows.shape[1:3]))  # (B, H, W, C)
        return Stream(_channels_first(projected), None, x)


class _Upsample:
    """:class:`lpd.tokenizer.vqgan.Upsample`, as a transposed convolution."""

    def __init__(self, block: Upsample, precision: Precision) -> None:
        weight, bias = _weight_and_bias(block.conv)
        # Pixel i stands at 2i and 2i + 1, and y reads y + d by w[d + 1]. So i reaches y, which is
        # 2i - 1 + k, by w[2 - k] + w[3 - k]: the flipped weights plus themselves moved by one.
        flipped = weight.flip(2, 3)  # (C_out, C_in, 3, 3)
        rows = F.pad(flipped, (0, 0, 1, 0)) + F.pad(flipped, (0, 0, 0, 1))
        kernel = F.pad(rows, (1, 0)) + F.pad(rows, (0, 1))  # (C_out, C_in, 4, 4)
        self._weight = _innermost(kernel.transpose(0, 1), precision.dtype)
        self._bias = bias.to(precision.dtype)

    def __call__(self, stream: Stream) -> Stream:
        x = stream.total()
        return Stream(F.conv_transpose2d(x, self._weight, self._bias, stride=2, padding=1))


def _res_or_attention(block: nn.Module, precision: Precision) -> Block:
    if isinstance(block, ResBlock):
        return _ResBlock(block, precision)
    return _Attention(cast(AttnBlock, block), precision)


def _modules(modules: nn.ModuleList, kind: type[T]) -> list[T]:
    return [module for module in modules if isinstance(module, kind)]


def _weight_and_bias(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Of a convolution, in float32 and without gradients."""
    conv = cast(nn.Conv2d, conv)
    assert conv.bias is not None
    return conv.weight.detach(), conv.bias.detach()


def _innermost(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype, memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)
