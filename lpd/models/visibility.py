"""Who sees whom: the query attention of the training forward (paper section 3.2).

Rows, in this order: the context rows, which are P prefix rows (one for a class) and the tokens of
the first N-1 places in generation order, then N query rows, one per place. The prefix is group 0,
and the groups of tokens count from 1. Then

- a context row of group a sees the context rows of groups up to a;
- a query row of group a sees the context rows of groups before a, and every query row of group a;
- nothing else sees a query row.

Of the first R prefix rows every image may have its own number, its length: the others are padding,
which sees itself and is seen by no other row.

The number of rows, T = P + 2N - 1, is the same for every schedule and length, so shapes are static
and only the groups and lengths change. The rule is written once, in :meth:`Visibility.sees`; the
masks are made from it.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from lpd.models.layers import Attend, RaggedAttend
from lpd.orders.group_sizes import GroupSizes

_BLOCK = 128  # rows of FlexAttention's blocks


@dataclass(frozen=True)
class Visibility:
    """The visibility of one group-size schedule over T = P + 2N - 1 rows."""

    group_of_row: Tensor
    """(T,) the group of each row."""
    num_context: int
    """P + N - 1, the rows before the query rows."""
    num_ragged: int = 0
    """R."""

    @classmethod
    def of_group_sizes(
        cls,
        group_sizes: GroupSizes,
        device: torch.device,
        num_prefix: int = 1,
        num_ragged: int = 0,
    ) -> "Visibility":
        """The visibility of a schedule whose sizes sum to N, after ``num_prefix`` = P rows, of
        which the first ``num_ragged`` = R may be padding."""
        sizes = torch.tensor(group_sizes, device=device)
        group_of_place = torch.arange(1, len(group_sizes) + 1, device=device).repeat_interleave(
            sizes, output_size=sum(group_sizes)
        )
        context = torch.cat([group_of_place.new_zeros(num_prefix), group_of_place[:-1]])
        return cls(torch.cat([context, group_of_place]), len(context), num_ragged)

    @property
    def num_rows(self) -> int:
        """T."""
        return len(self.group_of_row)

    def sees(self, row: Tensor, other: Tensor, length: Tensor | None = None) -> Tensor:
        """Whether ``row`` sees ``other``, in an image of a length or in one without padding; row
        numbers and lengths of any broadcastable shapes."""
        group, other_group = self.group_of_row[row], self.group_of_row[other]
        is_query, other_is_query = row >= self.num_context, other >= self.num_context
        context_sees = other_group <= group
        query_sees = torch.where(other_is_query, other_group == group, other_group < group)
        seen = torch.where(is_query, query_sees, context_sees & ~other_is_query)
        if length is None:
            return seen
        row_is_padding = (row >= length) & (row < self.num_ragged)
        other_is_padding = (other >= length) & (other < self.num_ragged)
        return torch.where(row_is_padding | other_is_padding, row == other, seen)

    def dense_mask(self, lengths: Tensor | None = None) -> Tensor:
        """(T, T) boolean mask, true where the row (first axis) sees the other; (B, 1, T, T) of
        images of (B,) lengths."""
        rows = torch.arange(self.num_rows, device=self.group_of_row.device)
        of_images = None if lengths is None else lengths[:, None, None, None]
        # Some rows at a time: what leads to a mask takes several times its memory.
        parts = [self.sees(some[:, None], rows, of_images) for some in rows.split(_BLOCK)]
        return torch.cat(parts, dim=-2)

    def block_mask(self, lengths: Tensor | None = None) -> BlockMask:
        """The same mask for FlexAttention, which skips the blocks nobody sees."""
        if lengths is not None:
            mask = copy.copy(self._blocks_of_any_lengths)
            mask.mask_mod = lambda batch, _head, row, other: self.sees(row, other, lengths[batch])
            return mask
        return create_block_mask(
            lambda _batch, _head, row, other: self.sees(row, other),
            B=None,
            H=None,
            Q_LEN=self.num_rows,
            KV_LEN=self.num_rows,
            device=str(self.group_of_row.device),
        )

    @functools.cached_property
    def _blocks_of_any_lengths(self) -> BlockMask:
        """The blocks of which something is seen at some lengths; those of which all is seen at any
        lengths are full. The longer an image, the more is seen."""
        shortest, longest = (self._block_counts(length) for length in (0, self.num_ragged))
        full = shortest == _BLOCK**2
        return BlockMask.from_kv_blocks(
            *_ordered((longest > 0) & ~full),
            *_ordered(full),
            BLOCK_SIZE=_BLOCK,
            seq_lengths=(self.num_rows, self.num_rows),
        )

    def _block_counts(self, length: int) -> Tensor:
        """(1, 1, blocks, blocks) how much is seen in each block of an image of a length."""
        rows = torch.arange(self.num_rows, device=self.group_of_row.device)
        of_image = rows.new_tensor(length)
        counts = [
            self.sees(some[:, None], rows, of_image).sum(dim=0) for some in rows.split(_BLOCK)
        ]  # (T,) each
        padded = pad(torch.stack(counts), (0, -self.num_rows % _BLOCK))
        return padded.unflatten(-1, (-1, _BLOCK)).sum(dim=-1)[None, None]


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of (..., rows, columns) blocks, how many there are in each row, and their columns first."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), columns.int()


def dense_attention(visibility: Visibility, lengths: Tensor | None = None) -> Attend:
    """Attention through SDPA and the dense mask: the CPU's path, and FlexAttention's oracle.

    Args:
        visibility: who sees whom.
        lengths: (B,) the images', where they have any.
    """
    mask = visibility.dense_mask(lengths)
    if lengths is None:
        return functools.partial(scaled_dot_product_attention, attn_mask=mask)

    def make_bias(dtype: torch.dtype) -> Tensor:
        return mask.new_zeros((), dtype=dtype).where(mask, -torch.inf)

    # Where blocks are compiled, it is no graph of its own.
    bias = functools.cache(torch.compiler.disable(make_bias))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Of a boolean mask every block would make such numbers of its own, and keep them for its
        # gradient: at 1024 pixels 277 MB for each image.
        return scaled_dot_product_attention(q, k, v, attn_mask=bias(q.dtype))

    return attend


def sparse_attention(
    visibility: Visibility, lengths: Tensor | None = None, *, compiled: bool = True
) -> Attend:
    """Attention through FlexAttention and the block mask: the CUDA path.

    One compiled graph serves every schedule and all lengths: shapes are static, and the groups and
    lengths are data. Uncompiled it is slow and, on CPU, without gradients; that is for comparing
    only.

    Args:
        visibility: who sees whom. It keeps the blocks, so that other lengths cost nothing.
        lengths: (B,) the images', where they have any.
        compiled: whether it is compiled.
    """
    attention: Any = _compiled_flex_attention() if compiled else flex_attention
    return functools.partial(attention, block_mask=visibility.block_mask(lengths))


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def training_attention(visibility: Visibility, *, opaque: bool = False) -> Attend | RaggedAttend:
    """The fast attention of the visibility's device; make it once per schedule, not per step.

    Args:
        visibility: who sees whom.
        opaque: whether a compiler is to leave it as it is, in whatever it compiles.

    Returns:
        Where prefix rows may be padding, what makes it from the lengths of a batch.
    """
    on_cuda = visibility.group_of_row.device.type == "cuda"
    make = sparse_attention if on_cuda else dense_attention

    def attention(lengths: Tensor | None = None) -> Attend:
        attend = make(visibility, lengths)
        return torch.compiler.disable(attend, recursive=False) if opaque else attend

    return attention if visibility.num_ragged else attention()
