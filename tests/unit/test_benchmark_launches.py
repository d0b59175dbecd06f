"""Launches are counted as by hand: what computes, once, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from lpd.models.lpd import LPDConfig
from scripts.benchmark.launches import (
    ATTENTION,
    AbsentDevice,
    count_launches,
    count_operators,
    decoding_launches,
    fake_decoding,
)

X = torch.arange(24.0).reshape(2, 3, 4)


def scale_in_place() -> None:
    x = torch.empty(2, 3)
    x.fill_(1)  # 1
    x[:, 1:] *= 2  # 2, and the slice is written back onto itself: 3
    x.copy_(x.clone())  # clone 4, copy 5


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: X[:, 1:].transpose(0, 1).unsqueeze(0).expand(5, -1, -1, -1), {}),
        (lambda: X.reshape(6, 4).view(24).detach(), {}),
        (lambda: X.contiguous().to(torch.float32).chunk(2), {}),
        (lambda: X.transpose(1, 2).flatten(), {"clone": 1}),
        (lambda: torch.empty(3, 4).new_empty(2), {}),
        (lambda: X[:0] + 1, {}),
        (lambda: X.double() + 1, {"_to_copy": 1, "add": 1}),
        (lambda: F.linear(X, torch.ones(5, 4), torch.ones(5)), {"ones": 2, "addmm": 1}),
        (lambda: F.dropout(X, 0.5, training=False), {}),
        (lambda: F.layer_norm(X, (4,)).relu_(), {"native_layer_norm": 1, "relu_": 1}),
        (lambda: torch.cat([X, X]).split(2), {"cat": 1}),
        (lambda: F.scaled_dot_product_attention(X, X, X) * 2, {ATTENTION: 1, "mul": 1}),
        (scale_in_place, {"fill_": 1, "mul_": 1, "copy_": 2, "clone": 1}),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_counts_are_those_made_by_hand(
    run: Callable[[], object], expected: dict[str, int], inference: bool
) -> None:
    with torch.inference_mode(inference):
        assert count_operators(run) == expected
        assert count_launches(run) == sum(expected.values())


def test_the_computation_is_done_as_without_counting() -> None:
    results: list[Tensor] = []
    run = lambda: results.append(F.scaled_dot_product_attention(X, X, X)[:, 1:].flatten(1) + 1)  # noqa: E731
    run()
    count_launches(run)
    assert torch.equal(*results)


def test_fake_tensors_on_a_device_that_is_not_there() -> None:
    def run() -> None:
        x = torch.empty(2, 3, 4, device="cuda")
        assert x[:, None].shape == (2, 1, 3, 4)
        assert x[..., 1:3].shape == (2, 3, 2)
        assert x[1, :, None, -1].shape == (3, 1)
        assert x[-1, ::2].shape == (2, 4)
        x[:, 1:] = x[:, :2]  # 1
        x[0].copy_(x[1])  # 2
        y = x.transpose(1, 2).contiguous()  # 3
        assert y.device.type == "cuda"
        assert F.scaled_dot_product_attention(y, y, y).shape == y.shape  # 4

    with FakeTensorMode(), AbsentDevice():
        assert count_operators(run) == {"copy_": 2, "clone": 1, ATTENTION: 1}


def test_indexing_under_the_mode_is_indexing() -> None:
    x = X.clone()
    indices = (1, -1, slice(1, None), slice(0, 3, 2), slice(-2, None), None, ...)
    pairs = [(i, j) for i in indices for j in indices if not (i is ... and j is ...)]
    for index in [*indices, *pairs, (0, ..., 1), (slice(None), [0, 2]), x > 3]:
        expected = X[index]
        with AbsentDevice():
            view = x[index]
        assert torch.equal(view, expected)
    with AbsentDevice():
        x[:, 1:, 2] = torch.full((2, 2), 7.0)
        x[0, 0] = 5
    expected = X.clone()
    expected[:, 1:, 2] = 7
    expected[0, 0] = 5
    assert torch.equal(x, expected)


def test_launches_of_a_deep_model_follow_from_shallow_ones(tiny_config: LPDConfig) -> None:
    deep = LPDConfig(**{**vars(tiny_config), "depth": 5})
    how = {"batch_size": 2, "guided": (False, True, True), "dtype": torch.bfloat16}
    with fake_decoding(deep, (1, 5, 10), **how) as run:
        counts = count_operators(run)
    assert decoding_launches(deep, (1, 5, 10), **how) == counts.total()
    assert counts["addmm"] == 3 * 5 * 4  # qkv, proj, fc1 and fc2 of every block in every pass
    assert counts["mm"] == 3  # the head
    # Context and queries apart; of the last block the queries alone.
    assert counts[ATTENTION] == 3 * (2 * 5 - 1)
