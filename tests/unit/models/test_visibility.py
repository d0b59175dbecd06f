"""The visibility rule against its definition, and its two exports against each other."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from lpd.models import visibility as visibility_module
from lpd.models.visibility import Visibility, dense_attention, sparse_attention

CPU = torch.device("cpu")
GROUP_SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=6).map(tuple)


def visible_by_definition(
    group_sizes: tuple[int, ...], num_prefix: int, padding: frozenset[int] = frozenset()
) -> torch.Tensor:
    """Row by row, with no arithmetic on masks (paper section 3.2)."""
    groups = [s for s, size in enumerate(group_sizes, start=1) for _ in range(size)]
    rows = [("context", 0)] * num_prefix
    rows += [("context", group) for group in groups[:-1]]
    rows += [("query", group) for group in groups]
    mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for i, (kind, group) in enumerate(rows):
        for j, (other_kind, other_group) in enumerate(rows):
            if i in padding or j in padding:
                mask[i, j] = i == j
            elif kind == "context":
                mask[i, j] = other_kind == "context" and other_group <= group
            elif other_kind == "context":
                mask[i, j] = other_group < group
            else:
                mask[i, j] = other_group == group
    return mask


@given(group_sizes=GROUP_SIZES, num_prefix=st.integers(1, 4))
def test_dense_mask_is_the_definition(group_sizes: tuple[int, ...], num_prefix: int) -> None:
    visibility = Visibility.of_group_sizes(group_sizes, torch.device("cpu"), num_prefix)
    assert torch.equal(visibility.dense_mask(), visible_by_definition(group_sizes, num_prefix))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@given(group_sizes=GROUP_SIZES, num_prefix=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_block_mask_and_dense_mask_attend_alike(
    group_sizes: tuple[int, ...], num_prefix: int
) -> None:
    visibility = Visibility.of_group_sizes(group_sizes, torch.device("cpu"), num_prefix)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, visibility.num_rows, 16, generator=generator)
    dense = dense_attention(visibility)(q, k, v)
    sparse = sparse_attention(visibility, compiled=False)(q, k, v)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=0)


@given(
    group_sizes=GROUP_SIZES,
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    num_others=st.integers(1, 2),
)
@settings(max_examples=20, deadline=None)
def test_dense_mask_of_lengths_is_the_definition(
    group_sizes: tuple[int, ...], lengths: list[int], num_others: int
) -> None:
    visibility = Visibility.of_group_sizes(group_sizes, CPU, 4 + num_others, 4)
    mask = visibility.dense_mask(torch.tensor(lengths))  # (B, 1, T, T)
    for own, length in zip(mask[:, 0], lengths, strict=True):
        padding = frozenset(range(length, 4))
        assert torch.equal(own, visible_by_definition(group_sizes, 4 + num_others, padding))


# Blocks are of 128 rows: the ragged rows end within one, at the end of one, or beyond it.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("num_ragged", [3, 127, 128, 200])
def test_block_mask_of_lengths_and_dense_mask_attend_alike(num_ragged: int) -> None:
    """One block mask's blocks for all lengths, the shortest and the longest among them."""
    visibility = Visibility.of_group_sizes((3, 60, 137), CPU, num_ragged + 1, num_ragged)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 3, 1, visibility.num_rows, 16, generator=generator)
    for some in ([0, 1, num_ragged], [num_ragged - 1, num_ragged // 2, 0]):
        lengths = torch.tensor(some)
        dense = dense_attention(visibility, lengths)(q, k, v)
        sparse = sparse_attention(visibility, lengths, compiled=False)(q, k, v)
        torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=0)


def test_blocks_are_skipped_or_full_only_where_all_lengths_agree() -> None:
    """Text in a block of its own, which no block of others is full
    of, and blocks among tokens as without text."""
    visibility = Visibility.of_group_sizes((128, 128, 128), CPU, 129, 128)
    mask = visibility.block_mask(torch.tensor([7]))
    full, partial = (
        torch.zeros(7, 7).bool().scatter(1, columns[0, 0].long(), used)
        for counts, columns in (
            (mask.full_kv_num_blocks, mask.full_kv_indices),
            (mask.kv_num_blocks, mask.kv_indices),
        )
        for used in [torch.arange(7) < counts[0, 0][:, None]]
    )
    dense = visibility.dense_mask(torch.tensor([0, 1, 127, 128]))[:, 0]
    blocks = dense.unflatten(1, (7, 128)).unflatten(3, (7, 128))
    every, some = blocks.all(dim=4).all(dim=2).all(dim=0), blocks.any(dim=4).any(dim=2).any(dim=0)
    assert torch.equal(full, every)
    assert torch.equal(partial, some & ~every)
    assert not full[:, 0].any()
    assert partial[:, 0].all()
    assert full.any()


def test_one_graph_serves_all_schedules_and_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler sees of attention: lengths and groups are data."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    attention = torch.compile(flex_attention, backend=backend, dynamic=False)
    monkeypatch.setattr(visibility_module, "_compiled_flex_attention", lambda: attention)
    q, k, v = torch.randn(3, 2, 1, 3 + 32, 16)
    for group_sizes in ((1, 15), (2, 6, 8), (16,)):
        visibility = Visibility.of_group_sizes(group_sizes, CPU, 4, 3)
        for lengths in (torch.tensor([0, 3]), torch.tensor([1, 2])):
            actual = sparse_attention(visibility, lengths)(q, k, v)
            expected = dense_attention(visibility, lengths)(q, k, v)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert len(compiled) == 1


def test_blocks_share_the_numbers_of_a_mask() -> None:
    """Each would otherwise keep (B, 1, T, T) of its own for its gradient."""
    visibility = Visibility.of_group_sizes((1, 95), CPU, 41, 40)
    attend = dense_attention(visibility, torch.tensor([7, 40]))
    x = torch.randn(2, 4, visibility.num_rows, 8, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = x
        for _ in range(3):
            y = attend(y, y, y)
    masks = [size for size in kept.values() if size >= 4 * 2 * visibility.num_rows**2]
    assert masks == [4 * 2 * visibility.num_rows**2]
