"""What a browser sends is checked, whatever its sliders allow."""

import math
from typing import Any

import pytest

from lpd.errors import InputError
from scripts.demo_page.limits import Limit, Limits

LIMITS = Limits.of(num_positions=64, img_size=32, generation_steps=20, cfg=4.8)


@pytest.mark.parametrize("value", [0, 65, -1, 1e400, math.nan, 10**400, True, None, "8", [8], 8.5])
def test_what_is_no_number_of_passes_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="Passes must be"):
        LIMITS.passes.whole(value)


def test_the_message_tells_the_range() -> None:
    with pytest.raises(InputError, match=r"^Passes must be from 1 to 64, got 65$"):
        LIMITS.passes.whole(65)
    with pytest.raises(InputError, match=r"^Passes must be a whole number, got 8\.5$"):
        LIMITS.passes.whole(8.5)
    with pytest.raises(InputError, match=r"^Seed must be from 0 to 2147483647, got -1$"):
        LIMITS.seed.whole(-1)
    with pytest.raises(InputError, match=r"^Guidance must be from 0 to 20, got something else$"):
        LIMITS.cfg.check("2")


def test_numbers_in_range_are_taken() -> None:
    assert LIMITS.passes.whole(8.0) == 8
    assert type(LIMITS.passes.whole(64)) is int
    assert LIMITS.cfg.check(0) == 0
    assert LIMITS.seed.whole(2**31 - 1) == 2**31 - 1


def test_a_small_model_starts_with_as_many_passes_as_it_has_cells() -> None:
    small = Limits.of(num_positions=16, img_size=16, generation_steps=20, cfg=4.8)
    assert (small.passes.start, small.passes.high) == (16, 16)
    assert LIMITS.passes.start == 20
    with pytest.raises(AssertionError):
        Limit(name="Passes", low=1, high=2, start=3)
