"""Mixtures of orders: what may be written, and what is drawn."""

import numpy as np
import pytest

from lpd.errors import InputError
from lpd.orders.mixture import OrderMixOptions, parse_order_mix


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("random", {"random": 1.0}),
        ("random:0.5 lpd:0.5", {"random": 0.5, "lpd": 0.5}),
        ("random:1, lpd:3", {"random": 0.25, "lpd": 0.75}),
        ("lpd halton raster:2.", {"lpd": 0.25, "halton": 0.25, "raster": 0.5}),
        ("lpd:.5", {"lpd": 1.0}),
    ],
)
def test_weights_become_shares(text: str, shares: dict[str, float]) -> None:
    mix = parse_order_mix(text)
    assert mix.shares == pytest.approx(shares)
    assert parse_order_mix(str(mix)).shares == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "order mix is empty"),
        ("random:0", "cannot read 'random:0'"),
        ("random:-1", "cannot read 'random:-1'"),
        ("random:nan", "cannot read 'random:nan'"),
        ("random:1e400", "cannot read"),
        ("random=1", "cannot read 'random=1'"),
        ("random lpd random", "names random twice"),
        ("spiral:1", "unknown order 'spiral'"),
        ("random:0.5 nar:0.5", "order nar has passes of its own"),
        ("par_4x", "has passes of its own.*choose from raster, random"),
    ],
)
def test_what_is_no_mixture(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrderMixOptions(order_mix=text)


def test_shares_are_intervals_of_the_uniforms() -> None:
    mix = parse_order_mix("random:1 lpd:2 halton:1")
    picked = mix.pick(np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999]))
    assert picked.tolist() == [0, 0, 1, 1, 2, 2]
    assert parse_order_mix("lpd").pick(np.array([0.0, 0.9999])).tolist() == [0, 0]
