"""Precision and recall by tiles: torch-fidelity's numbers, and float64's where that loses them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch_fidelity.metric_prc import prc_features_to_metric

from lpd.evaluation.measures import neighbours
from lpd.evaluation.measures.neighbours import PrecisionRecall, precision_recall


def samples(seed, count, num_features, spread=1.0, shift=0.0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, num_features)) * spread + shift).astype(np.float32)


def by_torch_fidelity(generated, reference, neighbourhood=3):
    found = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        prc_neighborhood=neighbourhood,
        verbose=False,
    )
    return PrecisionRecall(
        precision=pytest.approx(found["precision"]), recall=pytest.approx(found["recall"])
    )


def by_float64(generated, reference, neighbourhood=3):
    """The definition, with every difference taken by itself."""

    def share(points, others):
        radii = np.sort(cdist(others, others), axis=1)[:, neighbourhood]
        return (cdist(points, others) <= radii).any(axis=1).mean()

    generated, reference = generated.astype(np.float64), reference.astype(np.float64)
    return PrecisionRecall(
        precision=pytest.approx(share(generated, reference)),
        recall=pytest.approx(share(reference, generated)),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 2),
    num_generated=st.integers(8, 90),
    num_reference=st.integers(8, 90),
    num_features=st.integers(1, 12),
    spread=st.floats(0.3, 2),
    neighbourhood=st.integers(1, 7),
    tile=st.sampled_from([3, 16, 64, 2048]),
)
def test_is_what_torch_fidelity_computes(
    seed, num_generated, num_reference, num_features, spread, neighbourhood, tile
):
    generated = samples(seed, num_generated, num_features, spread)
    reference = samples(seed + 1, num_reference, num_features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_TILE", tile)
        found = precision_recall(generated, reference, neighbourhood)
    assert found == by_float64(generated, reference, neighbourhood)
    assert found == by_torch_fidelity(generated, reference, neighbourhood)


@pytest.mark.parametrize("apart", [0.0, 0.05])
def test_a_mean_far_from_0_changes_nothing(apart):
    """Squares of 1e4 have no digits left for distances of 1."""
    generated = samples(0, 400, 16, shift=1e4)
    reference = samples(1, 300, 16, shift=1e4 + apart)
    expected = by_float64(generated, reference)
    assert precision_recall(generated, reference) == expected
    assert by_torch_fidelity(generated, reference) != expected  # or this tests nothing


def test_sets_far_from_each_other_keep_their_own_distances():
    """Between them is more than float32 has digits for; within them nothing is lost."""
    near, far = samples(0, 60, 4), samples(1, 60, 4, shift=1e5)
    found = precision_recall(np.concatenate([near, far]), far)
    assert (found.precision, found.recall) == (pytest.approx(0.5), 1)


def test_the_settings_of_float32_are_found_as_they_were():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        precision_recall(samples(0, 9, 2), samples(1, 9, 2))
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
