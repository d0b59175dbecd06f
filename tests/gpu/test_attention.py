"""Compiled FlexAttention on a GPU against the dense mask in float64."""

from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch._dynamo.utils import counters

from lpd.models.layers import Attend, RaggedAttend
from lpd.models.visibility import Visibility, dense_attention, training_attention
from lpd.orders.group_sizes import GroupSizes, make_group_sizes

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
BATCH, HEADS, HEAD_DIM = 2, 3, 64

# Largest error of a row over the length of such rows. bfloat16 rounds by up to 2^-9, float32 by
# 2^-24; scores, weights, output and gradients are rounded on the way, a row's gradient may be a
# small difference of large sums, and one row of thousands is unlucky. On a CPU, dense attention in
# these types errs by up to 2^-6.5 and 2^-19. One place in the wrong pass errs by more than 2^-2.
TOLERANCES = {torch.bfloat16: 2.0**-5, torch.float32: 2.0**-15}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()  # else graphs for the shapes of other tests would count as recompiled
    counters.clear()
    yield
    torch._dynamo.reset()


def random_rows(num_rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, keys and values as a block makes them, (B, T, 3, H, C), and a gradient of what
    attention makes of them, (B, H, T, C); both with values of ``dtype``."""
    generator = torch.Generator().manual_seed(num_rows)
    qkv = torch.randn(BATCH, num_rows, 3, HEADS, HEAD_DIM, generator=generator)
    upstream = torch.randn(BATCH, HEADS, num_rows, HEAD_DIM, generator=generator)
    return qkv.to(DEVICE, dtype), upstream.to(DEVICE, dtype)


def output_and_gradients(
    attend: Attend, qkv: torch.Tensor, upstream: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What attention gives, forward and backward: four times (B, H, T, C), in float64."""
    qkv = qkv.requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, T, C), strided as in a block
    output = attend(q, k, v)
    assert output.dtype == qkv.dtype
    (gradient,) = torch.autograd.grad(output, qkv, upstream)
    of_q, of_k, of_v = gradient.permute(2, 0, 3, 1, 4).unbind(0)
    results = {"output": output.detach(), "of_q": of_q, "of_k": of_k, "of_v": of_v}
    return {name: result.double() for name, result in results.items()}


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of a row over its length plus that of an average row: a gradient may
    vanish in a row, and is a difference of large numbers there."""
    lengths = expected.norm(dim=-1)
    return ((actual - expected).norm(dim=-1) / (lengths + lengths.mean())).max().item()


def check(
    group_sizes: GroupSizes, dtype: torch.dtype, lengths: tuple[int, ...] | None = None
) -> None:
    """Of images of classes, or of texts of some lengths, of up to 128 rows."""
    visibility = Visibility.of_group_sizes(group_sizes, DEVICE)
    fast_attend, of_texts = training_attention(visibility), None
    if lengths is not None:
        visibility = Visibility.of_group_sizes(group_sizes, DEVICE, 129, 128)
        of_texts = torch.tensor(lengths, device=DEVICE)
        fast_attend = cast(RaggedAttend, training_attention(visibility))(of_texts)
    qkv, upstream = random_rows(visibility.num_rows, dtype)
    fast = output_and_gradients(cast(Attend, fast_attend), qkv, upstream)
    slow_attend = dense_attention(visibility, of_texts)
    slow = output_and_gradients(slow_attend, qkv.double(), upstream.double())
    for name, expected in slow.items():
        error = largest_error(fast[name], expected)
        assert error <= TOLERANCES[dtype], f"{name}, {len(group_sizes)} groups: {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_one_graph_attends_by_every_schedule(dtype: torch.dtype) -> None:
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_groups in (256, 128, 20, 8, 1):
            check(make_group_sizes(256, num_groups), dtype)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_one_graph_attends_by_every_schedule_and_length(dtype: torch.dtype) -> None:
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_groups in (256, 20, 1):
            for lengths in ((0, 128), (1, 77)):
                check(make_group_sizes(256, num_groups), dtype, lengths)
    assert counters["stats"]["unique_graphs"] == 1


# 32 rows take FlexAttention's kernel for short sequences, 128 are one block, 288 end within one.
@pytest.mark.parametrize("side", [4, 8, 12])
def test_small_grids(side: int) -> None:
    check(make_group_sizes(side * side, 6), torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_tolerance_tells_one_wrong_place(dtype: torch.dtype) -> None:
    sizes = make_group_sizes(256, 20)
    wrong = (*sizes[:-2], sizes[-2] + 1, sizes[-1] - 1)  # one place decoded a pass too early
    results = []
    for group_sizes in (sizes, wrong):
        visibility = Visibility.of_group_sizes(group_sizes, DEVICE)
        qkv, upstream = random_rows(visibility.num_rows, torch.float64)
        results.append(output_and_gradients(dense_attention(visibility), qkv, upstream))
    for name, expected in results[0].items():
        assert largest_error(results[1][name], expected) > 4 * TOLERANCES[dtype], name
