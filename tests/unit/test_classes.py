"""Classes by name: ImageNet's, a model's own, what is ambiguous, unknown or no class at all."""

import subprocess
import sys
import unicodedata
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lpd import classes
from lpd.classes import (
    LONGEST_NAME,
    ClassNames,
    Match,
    check_class_names,
    class_names_of,
    imagenet,
)
from lpd.errors import InputError

DIGITS = ClassNames.of("9876543210")
ANIMALS = ClassNames(
    synonyms=(("cat", "puss"), ("sea lion",), ("lion", "king of beasts"), ("Pâté",))
)
NAMES = st.text("aAbBäßﬁ \u0301\u0939\u093f-_.'’+019٣\n", min_size=1, max_size=6)


@dataclass(frozen=True)
class Config:
    num_classes: int
    class_names: tuple[str, ...] | None = None


class TestImageNet:
    @pytest.mark.parametrize(
        ("label", "name", "synset"),
        [
            (0, "tench", "n01440764"),
            (1, "goldfish", "n01443537"),
            (88, "macaw", "n01818515"),
            (207, "golden retriever", "n02099601"),
            (250, "Siberian husky", "n02110185"),
            (388, "giant panda", "n02510455"),
            (417, "balloon", "n02782093"),
            (437, "beacon", "n02814860"),
            (852, "tennis ball", "n04409515"),
            (933, "cheeseburger", "n07697313"),
            (980, "volcano", "n09472597"),
            (999, "toilet tissue", "n15075141"),
        ],
    )
    def test_known_classes(self, label: int, name: str, synset: str) -> None:
        assert imagenet().names[label] == name
        assert imagenet().label_of(name) == imagenet().label_of(synset) == label
        assert imagenet().ids[label] == synset

    def test_labels_are_the_ranks_of_the_synsets_folders(self) -> None:
        # Of which training on ImageNet, and the published models, take them.
        assert len(imagenet()) == len(set(imagenet().ids)) == 1000
        assert list(imagenet().ids) == sorted(imagenet().ids)

    def test_they_are_those_of_timm_and_torchvision(self) -> None:
        from timm.data import ImageNetInfo
        from torchvision.models import ResNet50_Weights

        info, own = ImageNetInfo(), {134, 264, 474, 517, 638, 639}
        shown = ResNet50_Weights.DEFAULT.meta["categories"]
        assert imagenet().ids == tuple(info.label_names())
        for label, names in enumerate(imagenet().synonyms):
            theirs = info.index_to_description(label).split(", ")
            assert list(names[label in own :]) == theirs
            if label not in own:
                assert names[0] == shown[label]

    def test_every_shown_name_is_of_one_class(self) -> None:
        for label, name in enumerate(imagenet().names):
            for text in (name, name.upper(), f" {name.lower()} ", name.replace(" ", "_")):
                assert imagenet().label_of(text) == label

    def test_a_word_that_is_the_first_of_two_is_ambiguous(self) -> None:
        for word, labels in [
            ("crane", (134, 517)),
            ("maillot", (638, 639)),
            ("Cardigan", (264, 474)),
        ]:
            assert [match.label for match in classes.find(word)][:2] == list(labels)
            with pytest.raises(InputError, match=f"'{word}' is the name of 2 classes") as raised:
                imagenet().label_of(word)
            for label in labels:
                assert f"{imagenet().names[label]} = {label}" in str(raised.value)
        assert imagenet().label_of("crane bird") == 134
        assert imagenet().label_of("tank suit") == 639

    def test_a_synonym_of_two_is_ambiguous_unless_one_is_called_so_first(self) -> None:
        assert imagenet().label_of("tub") == 876  # a bathtub is a tub as well
        assert [match.label for match in classes.find("tub")][:2] == [876, 435]
        with pytest.raises(InputError, match="lesser panda = 387, giant panda = 388"):
            imagenet().label_of("panda")

    def test_search(self) -> None:
        retrievers = classes.find("retriever")
        assert [match.label for match in retrievers] == [207, 208, 205, 206, 209]
        assert retrievers[0] == Match(
            label=207, name="golden retriever", matched="golden retriever"
        )
        assert classes.find("alsatian")[0].name == "German shepherd"
        assert classes.find("retriever", limit=2) == retrievers[:2]

    @pytest.mark.parametrize(
        ("text", "label"),
        [("golden retreiver", 207), ("volcanoe", 980), ("goldfsh", 1), ("cheesburger", 933)],
    )
    def test_what_is_spelled_wrongly_is_suggested(self, text: str, label: int) -> None:
        assert classes.find(text)[0].label == label
        with pytest.raises(InputError, match=rf"no class '{text}': did you mean .* = {label}"):
            imagenet().label_of(text)

    def test_an_unknown_name_is_one_short_line(self) -> None:
        for text in ("xqzzy", "", "  ", "dog", "\n\x1b[2J", "a" * 10**6, "9" * 10**4):
            with pytest.raises(InputError, match="there is no class '") as raised:
                imagenet().label_of(text)
            assert "from 0 to 999" in str(raised.value)
            assert str(raised.value).isprintable()
            assert len(str(raised.value)) < 300

    def test_they_need_no_torch(self) -> None:
        code = "import sys, lpd.classes as c; c.find('cat'); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestRanking:
    def test_from_whole_names_to_similar_ones(self) -> None:
        names = ClassNames(
            synonyms=(
                ("concatenation",),  # inside
                ("sea catfish",),  # a word begins
                ("a wild cat",),  # a word
                ("lynx", "cat"),  # a synonym
                ("CAT",),
                ("cart",),  # similar
            )
        )
        assert [match.label for match in names.find("cat")] == [4, 3, 2, 1, 0, 5]
        assert [match.matched for match in names.find("cat")][1:3] == ["cat", "a wild cat"]
        assert [match.label for match in names.find("carts")] == [5]

    def test_words_go_in_any_order(self) -> None:
        assert [match.label for match in ANIMALS.find("lion sea")] == [1]
        assert [match.label for match in ANIMALS.find("lion")] == [2, 1]

    @pytest.mark.parametrize("text", ["pate", "PÂTÉ", " Pa\u0302te\u0301 ", "pâte."])
    def test_accents_and_case_do_not_matter(self, text: str) -> None:
        assert ANIMALS.label_of(text) == 3

    @pytest.mark.parametrize("text", ["sea-lion", "Sea_Lion", "sea  lion"])
    def test_what_stands_between_words_does_not_matter(self, text: str) -> None:
        assert ANIMALS.label_of(text) == 1

    def test_apostrophes_end_no_word(self) -> None:
        for text in ("yellow lady's slipper", "yellow lady’s slipper", "yellow ladys slipper"):
            assert imagenet().label_of(text) == 986


class TestNumbers:
    def test_a_number_is_a_label(self) -> None:
        assert imagenet().label_of(" 207 ") == 207
        assert classes.find("207") == [
            Match(label=207, name="golden retriever", matched="golden retriever")
        ]

    def test_names_go_before_numbers(self) -> None:
        assert [DIGITS.label_of(str(digit)) for digit in range(10)] == list(range(9, -1, -1))
        assert [match.label for match in DIGITS.find("9")] == [0, 9]

    @pytest.mark.parametrize("text", ["1000", "-1", "1.0", "1e2", "٣", "0x10"])
    def test_what_is_no_label(self, text: str) -> None:
        with pytest.raises(InputError, match="labels are from 0 to 999"):
            imagenet().label_of(text)


class TestLabels:
    def test_names_labels_and_none(self) -> None:
        wanted = [
            "golden retriever",
            207,
            None,
            np.int64(3),
            np.uint8(4),
            torch.tensor(5),
            "volcano",
        ]
        labels = imagenet().labels(wanted)
        assert labels == [207, 207, None, 3, 4, 5, 980]
        assert {type(label) for label in labels} == {int, type(None)}
        assert imagenet().labels(np.arange(3)) == [0, 1, 2]

    @pytest.mark.parametrize(
        "wrong", [True, np.True_, torch.tensor(True), 1.0, np.float32(1), b"cat", ["cat"], [1], {}]
    )
    def test_what_is_no_class(self, wrong: object) -> None:
        with pytest.raises(InputError, match="by its name, its label, or None"):
            imagenet().labels([wrong])

    def test_out_of_range(self) -> None:
        # The last one has more digits than Python writes out.
        for number in (-1, 1000, 1 << 64, -(1 << 20000)):
            with pytest.raises(InputError, match="labels are from 0 to 999, and None is for no"):
                imagenet().labels([number])

    def test_a_lone_name_is_no_list_of_letters(self) -> None:
        with pytest.raises(InputError, match=r"as a list, such as \['cat'\]"):
            ANIMALS.labels("cat")


class TestOfAModel:
    def test_own_names(self) -> None:
        names = class_names_of(Config(2, ("cat", "dog")))
        assert names == ClassNames.of(["cat", "dog"])
        assert names.labels(["Dog", 0]) == [1, 0]

    def test_folders_of_imagenet_have_its_names(self) -> None:
        assert class_names_of(Config(1000, imagenet().ids)) == imagenet()
        part = class_names_of(Config(2, ("n02099601", "n09472597")))
        assert part.names == ("golden retriever", "volcano")
        assert part.labels(["volcano", "n02099601"]) == [1, 0]
        with pytest.raises(InputError, match="no class 'goldfish'"):
            part.label_of("goldfish")
        mixed = class_names_of(Config(2, ("n02099601", "own")))
        assert mixed.names == ("n02099601", "own")

    def test_published_models_are_of_imagenet(self) -> None:
        assert class_names_of(Config(1000)) is imagenet()

    def test_names_may_not_be_known(self) -> None:
        names = class_names_of(Config(7))
        assert not names.are_known
        assert names.labels([6, "5", None]) == [6, 5, None]
        assert names.find("cat") == []
        assert [match.label for match in names.find("3")] == [3]
        assert names.names == tuple("0123456")
        with pytest.raises(InputError, match=r"have no names; labels are from 0 to 6"):
            names.label_of("cat")

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (("a",), "there are 1 class_names for 2 classes"),
            (("a", 3), "characters each, got 3"),
            (("a", ""), "characters each, got ''"),
            (("a", "b" * (LONGEST_NAME + 1)), "1 to 255 characters each"),
            ("ab", "must be a list of names, got 'ab'"),
        ],
    )
    def test_names_are_checked(self, names: object, words: str) -> None:
        check_class_names(("a", "b" * LONGEST_NAME), 2)
        with pytest.raises(InputError, match=words):
            check_class_names(names, 2)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_every_name_finds_its_own_label(names: list[str]) -> None:
    own = ClassNames.of(names)
    assert own.labels(names) == list(range(len(names)))
    for label, name in enumerate(names):
        if name.strip():
            assert own.find(name)[0].label == label


@settings(deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=5), st.data())
def test_names_of_several_classes_are_ambiguous(names: list[str], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(names))
    own = ClassNames.of([*names, twice])
    with pytest.raises(InputError, match="is the name of"):
        own.label_of(twice)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.sampled_from([name for names in imagenet().synonyms for name in names]), st.data())
def test_how_a_name_is_written_does_not_matter(name: str, data: st.DataObject) -> None:
    written = data.draw(
        st.sampled_from(
            [
                name.upper(),
                name.lower(),
                name.replace("-", " "),
                name.replace(" ", "_"),
                f"\t{name}  ",
                unicodedata.normalize("NFD", name.replace("e", "é")),
            ]
        )
    )
    assert classes.find(written) == classes.find(name)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.integers(0, 999), st.data())
def test_a_name_with_a_letter_wrong_is_suggested(label: int, data: st.DataObject) -> None:
    name = imagenet().names[label]
    assume(len(name) > 6)  # difflib takes bubul for no bulbul
    place = data.draw(st.integers(0, len(name) - 1))
    near = classes.find(name[:place] + name[place + 1 :])
    assert label in [match.label for match in near]


@settings(deadline=None)
@given(st.text("acegiklnoostuâé0123 -_", max_size=9))
def test_what_is_found_first_is_what_is_named(text: str) -> None:
    found = ANIMALS.find(text)
    assert len({match.label for match in found}) == len(found)
    try:
        label = ANIMALS.label_of(text)
    except InputError:
        return
    assert found[0].label == label
