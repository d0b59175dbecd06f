"""What training and measuring see of a cache's captions."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lpd.conditions import CaptionConditions, ClassConditions, check_kind, conditions_of
from lpd.data.code_cache import CodeCache
from lpd.errors import InputError
from lpd.models.condition import TextCondition
from lpd.models.lpd import LPDConfig
from lpd.texts.features import CaptionFeatures

COUNTS = (1, 2, 3, 5, 1, 4)
WIDTH, LENGTH = 3, 4
TEXT_CONFIG = LPDConfig(
    depth=1,
    dim=8,
    num_heads=2,
    img_size=32,
    conditioning="text",
    text_width=WIDTH,
    text_length=LENGTH,
)


class NumberedFeatures:
    """Hidden states that say which caption they are of: n rows of 10 row + number, of a length of
    0 to 4 that follows from both."""

    identity = SimpleNamespace(sha256="e" * 64, layer=-1, width=WIDTH, name="numbers")
    max_length = LENGTH

    def get(self, rows: Any, which: Any) -> list[Tensor]:
        return [
            torch.full(((row + number) % (LENGTH + 1), WIDTH), 10.0 * row + number).bfloat16()
            for row, number in zip(rows.tolist(), which.tolist(), strict=True)
        ]


def captions() -> list[tuple[str, ...]]:
    return [tuple(f"{row}.{k}" for k in range(count)) for row, count in enumerate(COUNTS)]


class Captions(list[tuple[str, ...]]):
    counts = np.array(COUNTS)
    sha256 = "c" * 64


@pytest.fixture
def cache() -> CodeCache:
    made = SimpleNamespace(
        captions=Captions(captions()), readable=np.arange(len(COUNTS)), path="CACHE"
    )
    return cast(CodeCache, made)


@pytest.fixture
def conditions(cache: CodeCache) -> CaptionConditions:
    return CaptionConditions(cache, cast(CaptionFeatures, NumberedFeatures()), TEXT_CONFIG)


def seen(
    conditions: CaptionConditions,
    rows: np.ndarray,
    *,
    step: int = 0,
    first_place: int = 0,
    dropped: np.ndarray | None = None,
    memory: TextCondition | None = None,
) -> TextCondition:
    memory = memory or conditions.empty(len(rows))
    dropped = np.zeros(len(rows), dtype=bool) if dropped is None else dropped
    conditions.write(memory, rows, dropped, seed=7, step=step, first_place=first_place)
    return memory


def texts(condition: TextCondition) -> list[list[list[float]]]:
    return [
        features[:length].tolist()
        for features, length in zip(condition.features, condition.lengths.tolist(), strict=True)
    ]


def test_a_steps_captions_do_not_depend_on_the_number_of_processes(
    conditions: CaptionConditions,
) -> None:
    rows = np.tile(np.arange(len(COUNTS)), 4)
    for step in (0, 3):
        whole = texts(seen(conditions, rows, step=step))
        halves = [
            each
            for start in (0, 12)
            for each in texts(
                seen(conditions, rows[start : start + 12], step=step, first_place=start)
            )
        ]
        assert whole == halves


def test_every_caption_of_an_image_is_seen_about_equally_often(
    conditions: CaptionConditions,
) -> None:
    rows = np.full(400, 2)  # of three captions, of 2, 3 and 4 rows
    lengths = torch.bincount(seen(conditions, rows).lengths, minlength=5).tolist()
    assert lengths[:2] == [0, 0]
    # Four standard errors of a share of a third are 38.
    assert all(abs(count - 400 / 3) < 38 for count in lengths[2:])
    again = torch.bincount(seen(conditions, rows, step=1).lengths, minlength=5).tolist()
    assert lengths != again


def test_dropped_texts_are_of_length_0_and_nothing_is_left_of_the_step_before(
    conditions: CaptionConditions,
) -> None:
    rows = np.array([0, 3, 5, 1])
    memory = seen(conditions, rows)
    dropped = np.array([False, True, False, True])
    after = texts(seen(conditions, rows[::-1].copy(), step=4, dropped=dropped, memory=memory))
    fresh = texts(seen(conditions, rows[::-1].copy(), step=4, dropped=dropped))
    assert after == fresh
    assert after[1] == after[3] == []


def test_held_out_images_have_their_first_captions(conditions: CaptionConditions) -> None:
    rows = np.array([4, 1, 0])
    condition = conditions.held_out(rows)
    assert condition.shape == (3, LENGTH, WIDTH)
    assert texts(condition) == [
        each.tolist() for each in NumberedFeatures().get(rows, np.zeros(3, dtype=np.int64))
    ]
    assert not condition.features[2].any()  # of no text, nothing


def test_held_out_captions_are_encoded_once_as_far_as_there_is_room(
    cache: CodeCache, conditions: CaptionConditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    get = NumberedFeatures.get

    def noted(self: NumberedFeatures, rows: Any, which: Any) -> list[Tensor]:
        asked.extend(rows.tolist())
        return get(self, rows, which)

    monkeypatch.setattr(NumberedFeatures, "get", noted)
    plans = [np.array([4, 1, 1, 0]), np.array([0, 3]), np.array([3, 4, 1])]
    for rows in plans * 2:
        expected = get(NumberedFeatures(), rows, np.zeros_like(rows))
        assert texts(conditions.held_out(rows)) == [each.tolist() for each in expected]
    assert asked == [4, 1, 0, 3]

    monkeypatch.setattr("lpd.conditions._MOST_KEPT", 4 * WIDTH * 2)  # bytes of the longest
    few = CaptionConditions(cache, cast(CaptionFeatures, NumberedFeatures()), TEXT_CONFIG)
    asked.clear()
    for _ in range(2):
        assert texts(few.held_out(plans[0])) == texts(conditions.held_out(plans[0]))
    assert asked == [4, 1, 0, 1]


def test_examples_are_spread_over_the_cache(conditions: CaptionConditions) -> None:
    examples = conditions.examples(3)
    assert examples.captions == ("0.0", "2.0", "4.0")
    assert [len(text) for text in examples.wanted] == [0, 2, 4]


def test_kinds_are_told_apart(cache: CodeCache) -> None:
    with pytest.raises(InputError, match="holds captions and no classes: choose a model of texts"):
        conditions_of(cache, LPDConfig(depth=1, dim=8, num_heads=2))
    classes = cast(CodeCache, SimpleNamespace(captions=None, path="CACHE"))
    with pytest.raises(InputError, match="CACHE holds classes and no captions"):
        check_kind(classes, "text")
    assert isinstance(
        conditions_of(classes, LPDConfig(depth=1, dim=8, num_heads=2)), ClassConditions
    )
