"""Who sees whom: the query attention of the training forward (paper section 3.2).

Rows, in this order: the context rows, which are P prefix rows (one for a class) and the tokens of
the first N-1 places in generation order, then N query rows, one per place. The prefix is group 0,
and the groups of tokens count from 1. Then

- a context row of group a sees the context rows of groups up to a;
- a query row of group a sees the context rows of groups before a, and every query row of group a;
- nothing else sees a query row.

The number of rows, T = P + 2N - 1, is the same for every schedule, so shapes are static and only
the groups change. The rule is written once, in :meth:`Visibility.sees`; the masks are made from it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from lpd.models.layers import Attend
from lpd.orders.group_sizes import GroupSizes


@dataclass(frozen=True)
class Visibility:
    """The visibility of one group-size schedule over T = P + 2N - 1 rows."""

    group_of_row: Tensor
    """(T,) the group of each row."""
    num_context: int
    """P + N - 1, the rows before the query rows."""

    @classmethod
    def of_group_sizes(
        cls, group_sizes: GroupSizes, device: torch.device, num_prefix: int = 1
    ) -> "Visibility":
        """The visibility of a schedule whose sizes sum to N, after ``num_prefix`` = P rows."""
        sizes = torch.tensor(group_sizes, device=device)
        group_of_place = torch.arange(1, len(group_sizes) + 1, device=device).repeat_interleave(
            sizes, output_size=sum(group_sizes)
        )
        context = torch.cat([group_of_place.new_zeros(num_prefix), group_of_place[:-1]])
        return cls(torch.cat([context, group_of_place]), len(context))

    @property
    def num_rows(self) -> int:
        """T."""
        return len(self.group_of_row)

    def sees(self, row: Tensor, other: Tensor) -> Tensor:
        """Whether ``row`` sees ``other``; row numbers of any broadcastable shapes."""
        group, other_group = self.group_of_row[row], self.group_of_row[other]
        is_query, other_is_query = row >= self.num_context, other >= self.num_context
        context_sees = other_group <= group
        query_sees = torch.where(other_is_query, other_group == group, other_group < group)
        return torch.where(is_query, query_sees, context_sees & ~other_is_query)

    def dense_mask(self) -> Tensor:
        """(T, T) boolean mask, true where the row (first axis) sees the other."""
        rows = torch.arange(self.num_rows, device=self.group_of_row.device)
        return self.sees(rows[:, None], rows[None, :])

    def block_mask(self) -> BlockMask:
        """The same mask for FlexAttention, which skips the blocks nobody sees."""
        return create_block_mask(
            lambda _batch, _head, row, other: self.sees(row, other),
            B=None,
            H=None,
            Q_LEN=self.num_rows,
            KV_LEN=self.num_rows,
            device=str(self.group_of_row.device),
        )


def dense_attention(visibility: Visibility) -> Attend:
    """Attention through SDPA and the dense mask: the CPU's path, and FlexAttention's oracle."""
    return functools.partial(scaled_dot_product_attention, attn_mask=visibility.dense_mask())


def sparse_attention(visibility: Visibility, *, compiled: bool = True) -> Attend:
    """Attention through FlexAttention and the block mask: the CUDA path.

    One compiled graph serves every schedule: shapes are static and the groups are data. Uncompiled
    it is slow and, on CPU, without gradients; that is for comparing only.
    """
    attention: Any = _compiled_flex_attention() if compiled else flex_attention
    return functools.partial(attention, block_mask=visibility.block_mask())


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def training_attention(visibility: Visibility) -> Attend:
    """The fast attention of the visibility's device; make it once per schedule, not per step."""
    if visibility.group_of_row.device.type == "cuda":
        return sparse_attention(visibility)
    return dense_attention(visibility)
