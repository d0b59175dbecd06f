"""Which class is meant by what is typed and what is chosen."""

from typing import Any

import pytest

from lpd.classes import ClassNames, imagenet
from lpd.errors import InputError
from scripts.demo_page.classes import NO_CLASS, chosen_label, offered, said_class, shown_name

BIRDS = ClassNames.of(["red panda", "crane", "crane fly", "3"])


def test_classes_are_offered_for_what_is_typed() -> None:
    assert offered(BIRDS, "crane") == [("crane (1)", "1"), ("crane fly (2)", "2")]
    assert offered(BIRDS, " ") == [
        *(("red panda (0)", "0"), ("crane (1)", "1"), ("crane fly (2)", "2"), ("3", "3")),
        ("no class", NO_CLASS),
    ]
    assert offered(BIRDS, "zzzz") == []
    assert len(offered(imagenet(), "a")) == 10
    assert offered(imagenet(), "golden retriever")[0] == ("golden retriever (207)", "207")


@pytest.mark.parametrize(
    ("text", "choice", "label"),
    [
        *(("", "1", 1), ("", NO_CLASS, None), ("crane", "2", 2), ("crane", "1", 1)),
        # The choice is one of what was offered before.
        *(
            ("crane", "0", 1),
            ("cran", None, 1),
            ("red panda", NO_CLASS, 0),
            ("2", None, 2),
            (None, "1", 1),
        ),
    ],
)
def test_what_is_typed_counts_more_than_an_old_choice(
    text: Any, choice: Any, label: int | None
) -> None:
    assert chosen_label(BIRDS, text, choice) == label


@pytest.mark.parametrize("choice", [None, "7", "none; 1", 1, ["1"]])
def test_nothing_chosen_is_told(choice: Any) -> None:
    with pytest.raises(InputError, match="choose a class"):
        chosen_label(BIRDS, "", choice)


def test_unknown_classes_are_told() -> None:
    with pytest.raises(InputError, match="there is no class 'zzzz', and none like it"):
        chosen_label(BIRDS, "zzzz", "1")
    with pytest.raises(InputError, match="at most 255 characters, got 256"):
        chosen_label(BIRDS, "a" * 256, None)


def test_names_are_shown_with_their_numbers() -> None:
    assert shown_name(BIRDS, 1) == "crane (1)"
    assert said_class(BIRDS, 3) == "class 3"
    assert said_class(BIRDS, None) == "no class"
