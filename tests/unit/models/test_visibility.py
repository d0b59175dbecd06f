"""The visibility rule against its definition, and its two exports against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.models.visibility import Visibility, dense_attention, sparse_attention

GROUP_SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=6).map(tuple)


def visible_by_definition(group_sizes: tuple[int, ...], num_prefix: int) -> torch.Tensor:
    """Row by row, with no arithmetic on masks (paper section 3.2)."""
    groups = [s for s, size in enumerate(group_sizes, start=1) for _ in range(size)]
    rows = [("context", 0)] * num_prefix
    rows += [("context", group) for group in groups[:-1]]
    rows += [("query", group) for group in groups]
    mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for i, (kind, group) in enumerate(rows):
        for j, (other_kind, other_group) in enumerate(rows):
            if kind == "context":
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
