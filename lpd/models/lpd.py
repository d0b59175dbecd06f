"""The LPD transformer (paper section 3.2): context tokens and position queries.

B images, N positions, P prefix rows (one for a class, up to T + 1 for a text), V codebook size, D
width. Positions are raster positions 0..N-1; places are positions in generation order.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lpd.classes import check_class_names
from lpd.errors import InputError
from lpd.models.condition import Condition
from lpd.models.conditioning import CONDITIONINGS, make_conditioning
from lpd.models.kv_cache import KVCache
from lpd.models.layers import (
    LAYER_NORM_EPS,
    Attend,
    Block,
    RaggedAttend,
    init_weights,
    lookup,
)
from lpd.models.presets import (
    MLP_RATIO,
    NUM_CLASSES,
    PRESETS,
    STRIDE,
    TEXT_LENGTH,
    TEXT_WIDTH,
    VOCAB_SIZE,
    preset_shape,
)
from lpd.models.stack import DecodeStack
from lpd.models.text_encoder import check_encoder_fields
from lpd.options import YOUNGER
from lpd.weights import check_sizes

__all__ = ["LPD", "PRESETS", "LPDConfig", "Readout", "preset_shape"]

Readout = Callable[[Tensor, nn.Linear], Tensor]
"""What is made of the (B, N, D) rows that the head reads, with the head."""

# What no model comes near, and a file with more is mistaken.
_MOST = {
    "depth": 1000,
    "dim": 1 << 16,
    "num_heads": 1 << 10,
    "img_size": 1 << 14,
    "stride": 1 << 10,
    "vocab_size": 1 << 24,
    "num_classes": 1 << 24,
    "text_width": 1 << 16,
    "text_length": 1 << 12,
}


@dataclass(frozen=True, kw_only=True)
class LPDConfig:
    """The shape of an LPD transformer, and what its classes are called."""

    depth: int
    """Number of blocks."""
    dim: int
    """Width D."""
    num_heads: int
    """Attention heads."""
    img_size: int = 256
    """Image side in pixels."""
    stride: int = STRIDE
    """Pixels per code cell."""
    vocab_size: int = VOCAB_SIZE
    """Codebook size V."""
    num_classes: int = NUM_CLASSES
    """Number of classes."""
    mlp_ratio: float = MLP_RATIO
    """Hidden width of the MLP over D."""
    proj_dropout: float = 0.1
    """Dropout after the attention's projection and in the MLP."""
    tokenizer_sha256: str | None = None
    """Of the weight file of the tokenizer whose codes are modelled; None where it is not known."""
    conditioning: str = field(default="class", metadata={YOUNGER: True})
    """What images are conditioned on: a kind of :mod:`lpd.models.conditioning`."""
    class_names: tuple[str, ...] | None = field(default=None, repr=False, metadata={YOUNGER: True})
    """The classes' names by label, as their folders were called; None where they are not known."""
    text_width: int = field(default=TEXT_WIDTH, metadata={YOUNGER: True})
    """Of text models, the width E of the text encoder's hidden states."""
    text_length: int = field(default=TEXT_LENGTH, metadata={YOUNGER: True})
    """Of text models, the most rows T that a text has."""
    text_encoder: str | None = field(default=None, repr=False, metadata={YOUNGER: True})
    """What the text encoder is called: a folder or a repository of the hub; None where it is not
    known."""
    text_encoder_sha256: str | None = field(default=None, metadata={YOUNGER: True})
    """Of the text encoder's files, as :mod:`lpd.texts.encoder_files` has it; None where it is not
    known."""
    text_layer: int = field(default=-1, metadata={YOUNGER: True})
    """Which of its hidden layers is taken, -1 for the last one."""

    def __post_init__(self) -> None:
        check_sizes(self, _MOST)
        if self.dim % self.num_heads:
            raise InputError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        if self.img_size % self.stride:
            raise InputError(f"img_size {self.img_size} must be a multiple of stride {self.stride}")
        if not 0 <= self.proj_dropout < 1:
            raise InputError(f"proj_dropout must be in [0, 1), got {self.proj_dropout}")
        if self.class_names is not None:
            check_class_names(self.class_names, self.num_classes)
        check_encoder_fields(self)
        make_conditioning(self)

    def shape(self) -> dict[str, Any]:
        """What a model's numbers depend on, by name: everything but what classes and the text
        encoder are called, and what is about other kinds of conditioning."""
        values = dataclasses.asdict(self)
        own = CONDITIONINGS[self.conditioning].config_fields
        others = {name for kind in CONDITIONINGS.values() for name in kind.config_fields}
        for name in {"class_names", "text_encoder"} | (others - set(own)):
            del values[name]
        return values

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the code grid."""
        side = self.img_size // self.stride
        return side, side

    @property
    def num_positions(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


class LPD(nn.Module):
    """The LPD transformer.

    :meth:`forward` is the training pass over whole images; :meth:`decode` is one pass of parallel
    decoding. Conditions are what ``conditioning`` takes: labels, for a class-conditional model, and
    a :class:`~lpd.models.condition.TextCondition` for one of texts.
    """

    def __init__(self, config: LPDConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.conditioning = make_conditioning(config)
        self.conditioning.add_parameters(self)
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_positions + 1, dim))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.token_emb = nn.Embedding(config.vocab_size, dim)
        self.z_proj_ln = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.proj_dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(dim, config.vocab_size, bias=False)
        # Of every so many blocks forward() computes one again in the backward pass instead of
        # keeping its activations; 0 keeps all.
        self.checkpoint_every = 0

    def init_weights(self) -> None:
        """Draw the initial weights from torch's global generator."""
        self.apply(init_weights)
        self.conditioning.init_weights(self)
        for parameter in (self.pos_embed, self.mask_token):
            nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        condition: Condition,
        orders: Tensor,
        attend: Attend | RaggedAttend,
        readout: Readout | None = None,
    ) -> Tensor:
        """Logits of every token given the tokens of earlier groups, or what is read out instead.

        Args:
            tokens: (B, N) codes in raster order.
            condition: (B, ...) what the images are conditioned on.
            orders: (B, N) raster positions in generation order.
            attend: attention over the P + 2N - 1 rows (see :mod:`lpd.models.visibility`); where
                prefix rows may be padding, what makes it from the images' lengths.
            readout: what becomes of the rows that the head reads, such as a loss which never has
                all logits in memory; by default their logits.

        Returns:
            (B, N, V) logits in generation order, or what ``readout`` returns.
        """
        num_positions = tokens.shape[1]
        ragged = self.conditioning.ragged(condition)
        if ragged is not None:
            attend = cast(RaggedAttend, attend)(ragged.lengths)
        attend = cast(Attend, attend)
        x = self.training_rows(tokens.gather(1, orders), condition, orders)
        x = self.z_proj_ln(x)  # (B, P + 2N - 1, D)
        every = self.checkpoint_every if self.training else 0
        for number, block in enumerate(self.blocks):
            if every and number % every == 0:
                x = checkpoint(block, x, attend, use_reentrant=False)
            else:
                x = block(x, attend)
        x = self.norm(x[:, -num_positions:])  # (B, N, D)
        return self.head(x) if readout is None else readout(x, self.head)

    def training_rows(self, in_order: Tensor, condition: Condition, orders: Tensor) -> Tensor:
        """The rows of a training pass, of (B, N) codes in generation order: context, then queries;
        the last N are those that predict."""
        return torch.cat(
            [
                self.conditioning.rows(self, condition),
                self._token_rows(in_order[:, :-1], orders[:, :-1]),
                self._query_rows(orders),
            ],
            dim=1,
        )  # (B, P + 2N - 1, D)

    def stack(
        self, dtype: torch.dtype | None = None, kind: type[DecodeStack] = DecodeStack
    ) -> DecodeStack:
        """The blocks and the head as decoding runs them.

        Args:
            dtype: what is computed in; by default the weights'.
            kind: which way.
        """
        blocks = cast(Iterable[Block], self.blocks)
        return kind(blocks, self.norm, self.head, dtype or self.head.weight.dtype)

    def make_cache(self, num_sequences: int, dtype: torch.dtype | None = None) -> KVCache:
        """A KV cache for decoding up to ``num_sequences`` sequences; by default in the weights'
        dtype."""
        weight = self.head.weight
        return KVCache(
            num_layers=self.config.depth,
            num_sequences=num_sequences,
            num_heads=self.config.num_heads,
            num_rows=self.conditioning.num_rows + self.config.num_positions,
            head_dim=self.config.dim // self.config.num_heads,
            dtype=dtype or weight.dtype,
            device=weight.device,
        )

    def prefix(self, condition: Condition) -> Tensor:
        """The context rows of the first pass: (B, ...) conditions -> (B, P, D)."""
        return self.z_proj_ln(self.conditioning.rows(self, condition))

    def token_context(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Context rows of decoded tokens: (B, g) codes and raster positions -> (B, g, D)."""
        return self.z_proj_ln(self._token_rows(tokens, positions))

    def query_rows(self, positions: Tensor) -> Tensor:
        """Query rows that ask for tokens: (B, g) raster positions -> (B, g, D)."""
        return self.z_proj_ln(self._query_rows(positions))

    def decode(self, context: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """One pass: take in new context rows, predict the tokens at some positions.

        Args:
            context: (B, c, D) rows of the tokens decoded by the pass before, or the prefix.
            positions: (B, g) raster positions to predict.
            cache: what earlier passes left; advanced by c rows. Its dtype is what is computed in.
                Where prefix rows may be padding it has been told, by :meth:`KVCache.hide`.

        Returns:
            (B, g, V) logits, float32.
        """
        stack = self.stack(cache.kv.dtype)
        rows = torch.cat([context, self.query_rows(positions)], dim=1)  # (B, c + g, D)
        return stack.logits(stack.run(rows, cache, context.shape[1]))  # (B, g, V)

    def _token_rows(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.token_emb(tokens) + lookup(self.pos_embed[0, 1:], positions)  # (B, g, D)

    def _query_rows(self, positions: Tensor) -> Tensor:
        return self.mask_token + lookup(self.pos_embed[0, 1:], positions)  # (B, g, D)
