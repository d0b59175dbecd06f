"""Find the images of a source and their captions, by all processes of a run together.

Each process reads some of the parts; in every round they exchange what they found, in the order of
the parts. So all of them know all images, and where they are, and one process has the captions.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lpd import cli
from lpd.data.captioned.folders import find_text_files
from lpd.data.captioned.lists import find_list
from lpd.data.captioned.parquet import find_parquets
from lpd.data.captioned.parts import Counted, Part, Source
from lpd.data.captioned.tars import find_tars
from lpd.data.captions import CaptionStore
from lpd.data.config import CacheConfig
from lpd.data.images import ImageIndex
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import printable
from lpd.progress import progress

_FINDERS: dict[str, Callable[[CacheConfig], Source]] = {
    "txt": find_text_files,
    "tar": find_tars,
    "parquet": find_parquets,
    "jsonl": find_list,
}


@dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """Images and their captions."""

    images: ImageIndex
    captions: CaptionStore
    """Kept by rank 0 alone."""


def index_captioned(config: CacheConfig, world: World) -> CaptionedImages:
    """Find all images that a configuration names, and their captions.

    Args:
        config: what the user asked for.
        world: the run's processes; all of them call this together, and come to the same result.

    Raises:
        InputError: there are no images, or captions are missing or damaged; raised on all of them.
    """
    assert config.captioned.kind is not None
    source: Source | None = None
    with world.together(), _refusals_named():
        if world.is_main:
            source = _FINDERS[config.captioned.kind](config)
    # Rank 0 looks: file systems show changes late to other machines.
    source = world.broadcast(source)
    assert source is not None
    found = _Found(captions=CaptionStore(is_kept=world.is_main))
    sizes = source.sizes
    with progress(
        total=sum(sizes),
        desc="indexing",
        unit=source.unit,
        unit_scale=source.unit == "B",
        disable=not world.is_main,
    ) as bar:
        for first in range(0, len(sizes), world.size):
            with world.together():  # rank 0 alone needs room for the captions
                for part in _read_round(source, first, world):
                    found.add(part)
            bar.update(sum(sizes[first : first + world.size]))
    found.check(source, config)
    names = tuple(found.names)
    with world.together():
        if world.is_main:
            _check_unique(names, source)
            for line in found.left_out():
                cli.warn(line)
    return CaptionedImages(
        images=source.images(names, np.concatenate(found.places)), captions=found.captions
    )


def _read_round(source: Source, first: int, world: World) -> Iterator[Part]:
    """The parts from ``first`` on, one of each process.

    Raises:
        InputError: the first of these parts with damaged captions; raised on all processes.
    """
    own: tuple[Part | None, str | None] = None, None
    number = first + world.rank
    if number < len(source.sizes):
        try:
            with _refusals_named():
                own = source.read(number), None
        except InputError as error:
            own = None, str(error)
    for part, mistake in world.gather(own):
        if mistake is not None:
            raise InputError(mistake)
        if part is not None:
            yield part


@contextlib.contextmanager
def _refusals_named() -> Iterator[None]:
    """Turns the system's refusals into what all processes can be told.

    Raises:
        InputError: a file or folder cannot be read.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(f"cannot read {printable(error.filename)}: {error.strerror}") from error


@dataclass(kw_only=True)
class _Found:
    """What the parts hold, together."""

    captions: CaptionStore
    names: list[str] = field(default_factory=list)
    places: list[npt.NDArray[np.int64]] = field(default_factory=list)
    uncaptioned: Counted = field(default_factory=Counted)
    unreadable: Counted = field(default_factory=Counted)
    without_image: Counted = field(default_factory=Counted)

    def add(self, part: Part) -> None:
        self.names += part.names
        self.places.append(part.places)
        self.captions.add(part.captions)
        for name in ("uncaptioned", "unreadable", "without_image"):
            more: Counted = getattr(part, name)
            getattr(self, name).add(more.first, more.count)

    def check(self, source: Source, config: CacheConfig) -> None:
        """Raises:
        InputError: there is damage or images without captions, and they are not to be left out.
        """
        if self.unreadable.count and not config.skip_unreadable:
            raise InputError(
                f"{self.unreadable.first}{_others(self.unreadable)}; repair it, or pass "
                "--skip_unreadable to go on without"
            )
        if self.uncaptioned.count and not config.captioned.skip_uncaptioned:
            total = self.uncaptioned.count + len(self.names)
            raise InputError(
                f"{self.uncaptioned.count} of {total} images in {printable(source.place)} have no "
                f"captions, the first is {printable(self.uncaptioned.first)} ({source.expected}); "
                "add them, or pass --skip_uncaptioned to leave these images out"
            )
        if not self.names:
            raise InputError(
                f"{printable(source.place)} holds no images with captions ({source.expected})"
            )

    def left_out(self) -> list[str]:
        """What a user should know of what was found and is not there, a line for each kind."""
        lines = []
        if self.unreadable.count:
            lines.append(f"{self.unreadable.first}{_others(self.unreadable)}")
        for counted, what in (
            (self.uncaptioned, "images without captions"),
            (self.without_image, "captions without an image"),
        ):
            if counted.count:
                lines.append(
                    f"{counted.count} {what} are left out, such as {printable(counted.first)}"
                )
        return lines


def _others(counted: Counted) -> str:
    return f" (and {counted.count - 1} more such)" if counted.count > 1 else ""


def _check_unique(names: tuple[str, ...], source: Source) -> None:
    """Check that no image is there twice.

    Raises:
        InputError: one is.
    """
    seen = set()
    for name in names:
        if name in seen:
            raise InputError(
                f"{printable(name)} is twice in {printable(source.place)}; give several captions "
                "of an image as a list"
            )
        seen.add(name)
