"""Bytes and operations are those counted by hand, and those of the model that runs."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lpd.models.lpd import LPD, LPDConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from scripts.benchmark.work import NO_WORK, Work, decoder_flops, work_of_passes

# D = 4, two blocks, 3 codes, 2x2 positions.
SMALL = LPDConfig(depth=2, dim=4, num_heads=1, img_size=8, stride=4, vocab_size=3, num_classes=2)


def test_work_is_that_counted_by_hand() -> None:
    first, second = work_of_passes(SMALL, (1, 3), num_sequences=2, itemsize=2)
    # A block: qkv 4 x 12, proj 4 x 4, fc1 4 x 16, fc2 16 x 4 = 192 weights; biases 12 + 4 + 16 + 4
    # = 36; two norms of 8. The head: 12 weights. Two more norms.
    weights = 2 * (2 * (192 + 36) + 12) + 4 * (2 * 16 + 16)
    # First pass: the prefix row, then 1 query. Nothing in the cache; two blocks write 2 x 4 numbers
    # for each of two sequences; one row of 3 logits is written and read for each.
    assert first.num_bytes == weights + 2 * 2 * (2 * 8 + 2 * 3)
    # The first block has 2 rows; the prefix sees 1 row, the query 2. Of the second block the prefix
    # needs 4 x 8 weights.
    block_1 = 2 * 2 * 192 + 4 * 4 * (1 + 2)
    block_2 = 2 * 1 * 192 + 2 * 32 + 4 * 4 * 2
    assert first.flops == 2 * (block_1 + block_2 + 2 * 12)
    # Second pass: 1 row in the cache, 1 new context row, 3 queries.
    assert second.num_bytes == weights + 2 * 2 * (2 * 8 * (1 + 1) + 2 * 3 * 3)
    block_1 = 2 * 4 * 192 + 4 * 4 * (2 + 3 * 5)
    block_2 = 2 * 3 * 192 + 2 * 32 + 4 * 4 * (3 * 5)
    assert second.flops == 2 * (block_1 + block_2 + 2 * 3 * 12)
    both = Work(flops=first.flops + second.flops, num_bytes=first.num_bytes + second.num_bytes)
    assert sum((first, second), start=NO_WORK) == both


def test_floor_is_the_slower_of_moving_and_computing() -> None:
    work = Work(flops=600, num_bytes=100)
    assert work.floor_seconds(bandwidth=50, flop_rate=600) == 2
    assert work.floor_seconds(bandwidth=50, flop_rate=100) == 6


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_operations_are_those_of_the_model_that_runs(
    tiny_config: LPDConfig, tiny_model: LPD, cfg: float
) -> None:
    """A second count, of what torch is asked to do; all passes are guided or none."""
    sizes, images = (1, 5, 10), np.arange(3)
    sampler = Sampler(tiny_model, 3)
    inputs = sampler.upload(
        torch.zeros(3, dtype=torch.int64),
        make_plan(OrderConfig(), (4, 4), sizes, 0, images),
        torch.rand(3, 16),
        SamplingConfig(cfg=cfg, cfg_schedule="constant"),
    )
    # The counter does not know the CPU's fused attention; made of products it is counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sampler.decode(inputs)
    num_sequences = 3 if cfg == 1 else 6
    works = work_of_passes(tiny_config, sizes, num_sequences=num_sequences, itemsize=4)
    counted = sum(works, start=NO_WORK)
    # The twin also makes the last block's queries of the context rows (1 prefix row, then groups).
    dim = tiny_config.dim
    unread = num_sequences * 2 * dim * dim * (1 + 1 + 5)
    assert counter.get_total_flops() == counted.flops + unread


def test_decoder_operations_are_those_of_a_decoder_that_runs() -> None:
    config = VQGANConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, norm_groups=4)
    attention = sdpa_kernel(SDPBackend.MATH)
    with attention, FlopCounterMode(display=False) as counter, torch.inference_mode():
        VQGAN(config).decode(torch.zeros(2, 12, dtype=torch.int64), (3, 4))
    assert counter.get_total_flops() == 2 * decoder_flops(config, (3, 4)) > 0
