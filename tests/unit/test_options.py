"""Shared options: nested where they are declared, flat where people write them."""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pytest

from lpd import cli
from lpd.errors import InputError
from lpd.options import Flat, defaults, flatten, from_flat, parameters


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How something is drawn."""

    cfg: float = 1.0
    """Guidance."""
    top_k: int = 0
    """Most likely."""

    def __post_init__(self) -> None:
        if self.cfg < 0:
            raise InputError(f"cfg must not be negative, got {self.cfg}")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A shape."""

    depth: int = 2
    """Blocks."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program with shared options, and with a dataclass of its own that is not flat."""

    seed: int
    """Seed."""
    drawing: Annotated[Drawing, Flat] = Drawing()
    network: Network = field(default_factory=Network)
    steps: tuple[int, ...] = (4,)
    """Steps."""


PROGRAM = Program(seed=3, drawing=Drawing(cfg=2.0), network=Network(depth=5))
FLAT = {"seed": 3, "cfg": 2.0, "top_k": 0, "network": {"depth": 5}, "steps": (4,)}


def test_flat_fields_stand_in_the_place_of_their_dataclass() -> None:
    assert flatten(PROGRAM) == FLAT
    assert list(flatten(PROGRAM)) == list(FLAT)
    assert [p.name for p in parameters(Program)] == list(FLAT)
    assert defaults(Program) == {"cfg": 1.0, "top_k": 0, "network": Network(), "steps": (4,)}


def test_from_flat_is_the_way_back() -> None:
    assert from_flat(Program, {"seed": 3, "cfg": 2.0, "network": Network(depth=5)}) == PROGRAM
    assert from_flat(Program, {"seed": 1}) == Program(seed=1)
    with pytest.raises(InputError, match="cfg must not be negative"):
        from_flat(Program, {"seed": 1, "cfg": -1.0})
    with pytest.raises(TypeError, match=r"no option 'top_kk'; did you mean 'top_k'\?"):
        from_flat(Program, {"seed": 1, "top_kk": 1})
    with pytest.raises(TypeError, match="no option 'qqqq'; choose from seed, cfg, top_k"):
        from_flat(Program, {"seed": 1, "qqqq": 1})


def test_flags_are_flat_too(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--seed", "3", "--cfg", "2", "--network.depth", "5"]
    monkeypatch.setattr(sys, "argv", ["program", *flags])
    assert cli.parse(Program, "Does things.") == PROGRAM
    assert dataclasses.replace(PROGRAM, steps=(1,)) != PROGRAM


class _Tensor:
    """A number as torch has it: it has a dtype, and gives Python's if asked."""

    dtype = "float32"

    def __float__(self) -> float:
        return 2.5


def test_values_are_of_their_fields_kind() -> None:
    made = from_flat(Program, {"seed": np.int64(3), "cfg": _Tensor(), "steps": (1, 2)})
    assert (made.seed, made.drawing.cfg, made.steps) == (3, 2.5, (1, 2))
    assert type(made.seed) is int
    assert type(made.drawing.cfg) is float
    assert from_flat(Program, {"seed": 1, "cfg": 2}).drawing.cfg == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": 1, "cfg": "3"}, "cfg must be a number, got '3'"),
        ({"seed": 1, "cfg": [3.0]}, r"cfg must be a number, got \[3.0\]"),
        ({"seed": 1, "cfg": np.True_}, "cfg must be a number, got"),
        ({"seed": 1, "cfg": 10**999}, "cfg must be a number, got 1000"),
    ],
)
def test_values_of_another_kind_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_flat(Program, values)
