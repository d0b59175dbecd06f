"""The names of classes: what people type, turned into labels.

ImageNet's are data of this package, ``imagenet_classes.txt``: line by line, in the order of the
labels of ILSVRC 2012, the id of a class's synset in WordNet 3.0 (Princeton University) and the
synset's lemmas, as timm's ``ImageNetInfo`` lists them. Three words are the first lemma of two
classes each (crane, maillot, cardigan): these six begin with a name of ours that tells them apart.

Case, accents, punctuation and surrounding spaces do not matter, unless a model has classes that
nothing else tells apart: there the exact spelling does.
"""

import difflib
import operator
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from importlib import resources
from typing import Any, Protocol

from lpd.errors import InputError
from lpd.files import printable

LONGEST_NAME = 255
"""Most characters of a name: as many as a folder's name can have."""

_IMAGENET_FILE = "imagenet_classes.txt"
_NUM_IMAGENET = 1000
_MOST_DIGITS = 9  # of a label
_MOST_READ = 1000  # characters of what a user typed: no name is so long
_MOST_TOLD = 5  # classes in a message
_MOST_CHARACTERS = 60  # of it in a message
_INSIDE_WORDS = "'\u2019."  # lady's slipper, R.V.
_SIMILAR = 0.8  # by difflib's measure, which is 0.8 where one letter of five is another


class _Part(IntEnum):
    """How much of a name a text is, most first."""

    WORDS = 0
    """Some of its words, in any order."""
    BEGINNING = 1
    """Where one of its words begins."""
    INSIDE = 2
    """Somewhere in it."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A class that a text may mean."""

    label: int
    """The class's label."""
    name: str
    """The name to show."""
    matched: str
    """What the text was found by: one of the class's names, or its id."""


_Table = dict[str, dict[int, Match]]  # the classes that are called something, by label


@dataclass(frozen=True, kw_only=True)
class _Name:
    name: str
    label: int
    is_first: bool
    key: str
    words: frozenset[str]

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Among names that a text fits as well: first names, then short ones, then by label."""
        return not self.is_first, len(self.key), self.label


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """The names of a model's classes."""

    synonyms: tuple[tuple[str, ...], ...]
    """By label all names of the class, first the one to show; none for a class without a name."""
    ids: tuple[str, ...] = ()
    """By label what names the class too, but is no word to search in; or nothing."""

    @classmethod
    def of(cls, names: Iterable[str]) -> "ClassNames":
        """Those of classes with one name each, by label."""
        return cls(synonyms=tuple((name,) for name in names))

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self.synonyms)

    @cached_property
    def are_known(self) -> bool:
        """Whether any class has a name."""
        return any(self.synonyms)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """By label the name to show; a class without one goes by its label."""
        return tuple(each[0] if each else str(label) for label, each in enumerate(self.synonyms))

    def find(self, text: str, *, limit: int | None = None) -> list[Match]:
        """The classes that a text may mean, likeliest first, each once.

        First those that are called so, by their first name or another; then the one whose label it
        is; then those with its words in a name, those where a word begins so, those with it
        anywhere in a name, and those with a name, or a word of it, of similar letters.

        Args:
            text: what somebody typed.
            limit: most classes; by default all.
        """
        key = _key(text)
        if not key or len(key) > LONGEST_NAME:
            return []
        found = [match for matches in self._named(text) for match in matches]
        number = _number(text)
        if number is not None and number < len(self):
            found.append(self._match(number))
        by_label: dict[int, Match] = {}
        for match in (*found, *self._containing(key), *self._similar(key)):
            by_label.setdefault(match.label, match)
        return list(by_label.values())[:limit]

    def label_of(self, text: str) -> int:
        """The label of the class that a text names: by its first name, or by another that is the
        first of no class. A number is a label where no class is named so.

        Raises:
            InputError: it names no class, or several; tells which may be meant.
        """
        named = next(filter(None, self._named(text)), [])
        if len(named) == 1:
            return named[0].label
        if named:
            raise InputError(
                f"{_short(text)} is the name of {len(named)} classes, {_told(named)}: give the "
                "number or the whole name"
            )
        number = _number(text)
        if number is not None:
            return self._checked(number)
        refusal, labels = f"there is no class {_short(text)}", f"labels are {self._range}"
        if not self.are_known:
            raise InputError(f"{refusal}: this model's classes have no names; {labels}")
        near = self.find(text)
        if near:
            raise InputError(f"{refusal}: did you mean {_told(near)}? Otherwise, {labels}")
        some = [self._match(label) for label in range(min(len(self), _MOST_TOLD))]
        raise InputError(f"{refusal}, and none like it; {labels}, beginning with {_told(some)}")

    def labels(self, wanted: Iterable[Any]) -> list[int | None]:
        """The labels of classes given by name or by label, None for no class.

        Raises:
            InputError: one is neither, or out of range, or names no class or several.
        """
        if isinstance(wanted, str | bytes):
            raise InputError(f"classes are given as a list, such as [{_short(wanted)}]")
        label_of = cache(self.label_of)
        labels: list[int | None] = []
        for each in wanted:
            if each is None:
                labels.append(None)
            elif isinstance(each, str):
                labels.append(label_of(each))
            else:
                labels.append(self._checked(_integer(each)))
        return labels

    @property
    def _range(self) -> str:
        return f"from 0 to {len(self) - 1}"

    def _checked(self, label: int) -> int:
        if not 0 <= label < len(self):
            what = f"class {label}" if abs(label) < 10**_MOST_DIGITS else "class of that number"
            raise InputError(
                f"there is no {what}: labels are {self._range}, and None is for no class"
            )
        return label

    def _match(self, label: int, matched: str | None = None) -> Match:
        name = self.names[label]
        return Match(label=label, name=name, matched=name if matched is None else matched)

    @cached_property
    def _all(self) -> tuple[_Name, ...]:
        names = []
        for label, synonyms in enumerate(self.synonyms):
            for number, name in enumerate(synonyms):
                key = _key(name)
                names.append(
                    _Name(
                        name=name,
                        label=label,
                        is_first=number == 0,
                        key=key,
                        words=frozenset(key.split()),
                    )
                )
        return tuple(names)

    @cached_property
    def _tables(self) -> tuple[_Table, _Table, _Table]:
        """By a first name as it is spelled, by its key, and by the key of another name."""
        spelled: _Table = {}
        first: _Table = {}
        other: _Table = {}

        def enter(table: _Table, key: str, label: int, name: str) -> None:
            table.setdefault(key, {}).setdefault(label, self._match(label, name))

        for each in self._all:
            if each.is_first:
                enter(spelled, each.name, each.label, each.name)
            enter(first if each.is_first else other, each.key, each.label, each.name)
        for label, name in enumerate(self.ids):
            enter(other, _key(name), label, name)
        return spelled, first, other

    def _named(self, text: str) -> list[list[Match]]:
        """The classes that a text is a whole name of, by how, best first."""
        spelled, first, other = self._tables
        key = _key(text)
        found = (spelled.get(text), first.get(key), other.get(key))
        return [list(matches.values()) if matches else [] for matches in found]

    def _containing(self, key: str) -> list[Match]:
        words = frozenset(key.split())
        found = []
        for each in self._all:
            if words <= each.words:
                part = _Part.WORDS
            elif f" {key}" in f" {each.key}":
                part = _Part.BEGINNING
            elif key in each.key:
                part = _Part.INSIDE
            else:
                continue
            found.append(((part, *each.rank), each))
        return self._sorted(found)

    def _similar(self, key: str) -> list[Match]:
        matcher = difflib.SequenceMatcher(b=key, autojunk=False)

        @cache
        def similarity(text: str) -> float:
            matcher.set_seq1(text)
            # The bounds cost little, and most names are far off.
            if matcher.real_quick_ratio() < _SIMILAR or matcher.quick_ratio() < _SIMILAR:
                return 0.0
            return matcher.ratio()

        found = []
        for each in self._all:
            ratio = max(similarity(text) for text in (each.key, *each.words))
            if ratio >= _SIMILAR:
                found.append(((-ratio, *each.rank), each))
        return self._sorted(found)

    def _sorted(self, found: list[tuple[tuple[Any, ...], _Name]]) -> list[Match]:
        """By rank, best first."""
        found.sort(key=operator.itemgetter(0))
        return [self._match(each.label, each.name) for _, each in found]


class HasClasses(Protocol):
    """A model's configuration, as far as its classes go."""

    @property
    def num_classes(self) -> int:
        """How many there are."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Their names by label; None where they are not known."""


def class_names_of(config: HasClasses) -> ClassNames:
    """The names of a model's classes.

    They are those of its configuration; ImageNet's where that has the ids of ImageNet's synsets,
    as its folders are called, or where it is of 1000 classes and has no names, as published models
    are.
    """
    names = config.class_names
    if names is None:
        if config.num_classes == _NUM_IMAGENET:
            return imagenet()
        return ClassNames(synonyms=((),) * config.num_classes)
    all_names = dict(zip(imagenet().ids, imagenet().synonyms, strict=True))
    if all(name in all_names for name in names):
        return ClassNames(synonyms=tuple(all_names[name] for name in names), ids=names)
    return ClassNames.of(names)


def check_class_names(names: Any, num_classes: int) -> None:
    """Check the names in a configuration, which may come from anyone's file.

    Raises:
        InputError: they are no tuple of one name for every class, or a name is empty or too long.
    """
    if not isinstance(names, tuple):
        raise InputError(f"class_names must be a list of names, got {_short(names)}")
    if len(names) != num_classes:
        raise InputError(f"there are {len(names)} class_names for {num_classes} classes")
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:
            raise InputError(
                f"class_names must have 1 to {LONGEST_NAME} characters each, got {_short(name)}"
            )


@cache
def imagenet() -> ClassNames:
    """ImageNet's 1000 classes, with the ids of their synsets, such as n02099601."""
    lines = resources.files("lpd").joinpath(_IMAGENET_FILE).read_text("utf-8").splitlines()
    fields = [line.split(" ", 1) for line in lines]
    assert len(fields) == _NUM_IMAGENET
    return ClassNames(
        synonyms=tuple(tuple(names.split(", ")) for _, names in fields),
        ids=tuple(synset for synset, _ in fields),
    )


def find(text: str, *, limit: int | None = None) -> list[Match]:
    """The classes of ImageNet that a text may mean, as :meth:`ClassNames.find`."""
    return imagenet().find(text, limit=limit)


def _key(text: str) -> str:
    """What is the same for all ways to write a name: small letters and digits, words one space
    apart. A name without any, such as ``+``, is as it stands."""
    text = text.strip()[:_MOST_READ]
    # Case folding can make characters that decompose further.
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = (
        character if unicodedata.category(character)[0] in "LNM" else " "
        for character in plain
        if character not in _INSIDE_WORDS and not unicodedata.combining(character)
    )
    return " ".join("".join(kept).split()) or " ".join(text.split())


def _number(text: str) -> int | None:
    """The number that a text writes out, of so many digits as a label may have."""
    text = text.strip()
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return int(text) if is_number else None


def _integer(value: Any) -> int:
    # Truth values pass for 0 and 1, and those of tensors as well.
    if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise InputError(
        f"a class is given by its name, its label, or None for no class; got {_short(value)}"
    )


def _told(matches: Sequence[Match]) -> str:
    told = [f"{printable(match.name)} = {match.label}" for match in matches[:_MOST_TOLD]]
    more = len(matches) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
