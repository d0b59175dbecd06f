"""What a generation must compute and move, and a training step compute, from shapes alone.

Counted is the least that the passes need, whatever computes them; the tokenizer's decoder stands
apart. S sequences (2B with guidance), D width, L blocks, V codebook size; a pass has c new context
rows and g query rows behind ``start`` context rows that are in the KV cache.

Bytes: all weights of blocks and head once per pass, linear layers in the dtype they are computed in
and norms in float32; the cache's keys and values of ``start`` rows read and of c rows written;
logits written and read once. Activations of a block may stay on the chip, embeddings are small.

Operations: two per weight and row, and the products of attention. In the last block context rows
need only keys and values. Norms, GELU, softmax and drawing are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from lpd.models.lpd import LPDConfig
from lpd.orders.group_sizes import GroupSizes
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What something must compute and move."""

    flops: int
    """Additions and multiplications."""
    num_bytes: int
    """To and from memory."""

    def __add__(self, other: "Work") -> "Work":
        return Work(flops=self.flops + other.flops, num_bytes=self.num_bytes + other.num_bytes)

    def floor_seconds(self, bandwidth: float, flop_rate: float) -> float:
        """The least time, where computing and moving overlap: bytes and operations per second."""
        return max(self.num_bytes / bandwidth, self.flops / flop_rate)


NO_WORK = Work(flops=0, num_bytes=0)
"""What a sum begins with."""


def work_of_passes(
    config: LPDConfig,
    group_sizes: GroupSizes,
    *,
    num_sequences: int,
    itemsize: int,
    num_prefix_rows: int = 1,
) -> Iterator[Work]:
    """The work of each pass.

    Args:
        config: the model's.
        group_sizes: tokens of each pass; nothing is known beforehand.
        num_sequences: S.
        itemsize: bytes of a number in linear layers, cache and logits.
        num_prefix_rows: P, the context rows of the first pass.
    """
    dim, depth, hidden = config.dim, config.depth, int(config.dim * config.mlp_ratio)
    linears = 4 * dim * dim + 2 * dim * hidden  # qkv, proj, fc1, fc2
    biases = 5 * dim + hidden
    norms = 2 * 2 * dim  # two in a block, each with weight and bias
    head = config.vocab_size * dim
    weight_bytes = itemsize * (depth * (linears + biases) + head)
    # The norms of the rows that enter and of those that leave.
    weight_bytes += _FLOAT32 * (depth * norms + 2 * 2 * dim)
    start, context = 0, num_prefix_rows
    for queries in group_sizes:
        rows = context + queries
        query_pairs = queries * (start + rows)
        pairs = context * (start + context) + query_pairs
        flops = (depth - 1) * (2 * linears * rows + 4 * dim * pairs)
        flops += 2 * linears * queries + 2 * (2 * dim * dim) * context + 4 * dim * query_pairs
        flops += 2 * head * queries
        cache = depth * 2 * dim * (start + context)
        logits = 2 * queries * config.vocab_size
        yield Work(
            flops=num_sequences * flops,
            num_bytes=weight_bytes + itemsize * num_sequences * (cache + logits),
        )
        start, context = start + context, queries


def causal_pairs(num_rows: int) -> int:
    """Pairs of rows of which one comes before the other, or is it."""
    return num_rows * (num_rows + 1) // 2


def decoder_flops(config: VQGANConfig, grid: tuple[int, int]) -> int:
    """Operations of the tokenizer's decoder for one image, convolutions and attention, as the
    network is written down: the one prepared for bfloat16 upsamples with four products for nine."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        vqgan = VQGAN(config)
        vqgan.decode(torch.zeros(1, grid[0] * grid[1], dtype=torch.int64), grid)
    return counter.get_total_flops()
