"""What scripts/edit.py is asked. No torch is needed, so that flags are read at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from lpd.errors import InputError
from lpd.options import Flat, flatten
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.editing import EditOptions
from scripts.creation.request import MAKE_IT, QUICKSTART, CreationRequest


@dataclass(frozen=True, kw_only=True)
class EditMode:
    """A way to edit."""

    summary: str
    """For help texts."""
    flags: tuple[str, ...] = ()
    """Those that are for it, of the flags that are not for all."""


_SIDES = tuple(flatten(OutpaintOptions()))

MODES: dict[str, EditMode] = {
    "inpaint": EditMode(
        summary="generate anew what the mask paints, of the image's class or of another",
        flags=("mask",),
    ),
    "transfer": EditMode(
        summary="keep what the mask paints, and generate another image around it",
        flags=("mask",),
    ),
    "outpaint": EditMode(
        summary="continue the image beyond its sides; by default a quarter to the left and right",
        flags=_SIDES,
    ),
    "variations": EditMode(
        summary="keep a share of the codes, chosen at random, and generate the others",
        flags=("keep",),
    ),
}
_MODE = tyro.conf.arg(
    help="What to do. " + "; ".join(f"{name}: {each.summary}" for name, each in MODES.items()) + "."
)
_SHARE = 0.5
# Of the quickstart's held-out digits, which are in folders by class.
_DIGIT = QUICKSTART / "digits" / "val" / "9" / "024.png"
_DIGIT_LABELS = ("9", "8", "3", "2")


@dataclass(frozen=True, kw_only=True)
class EditConfig(CreationRequest):
    """Edit an image."""

    mode: Annotated[str, _MODE] = "inpaint"
    image: Path | None = None
    """The image. By default one of the quickstart's held-out digits."""
    mask: Path | None = None
    """An image of the same size that is black but where it is painted. By default the lower half is
    (inpaint), or the middle (transfer)."""
    keep: float | None = None
    """The share of the codes that variations keep. By default a half."""
    outpainting: Annotated[OutpaintOptions, Flat] = field(default_factory=OutpaintOptions)
    editing: Annotated[EditOptions, Flat] = field(default_factory=EditOptions)
    output_dir: Path = Path("outputs/edits")
    """Where the results go. Earlier results there are replaced, all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise InputError(f"unknown mode {self.mode!r}: choose from {', '.join(MODES)}")
        given = {"mask": self.mask, "keep": self.keep, **flatten(self.outpainting)}
        usual = {"mask": None, "keep": None, **flatten(OutpaintOptions())}
        for name, value in given.items():
            if value != usual[name] and name not in MODES[self.mode].flags:
                modes = " or ".join(mode for mode, each in MODES.items() if name in each.flags)
                raise InputError(f"--{name} is for --mode {modes}, not for {self.mode}")
        if self.options.lpd_order_file is not None:
            raise InputError(
                f"the orders of {self.options.lpd_order_file} are for images of which nothing is "
                "known: leave out --lpd_order_file"
            )
        if self.image is not None and self.labels is None:
            raise InputError(
                f"name with --labels what the edited {self.image} is to show: one or more classes"
            )

    @property
    def share(self) -> float:
        """Of the codes that variations keep."""
        return _SHARE if self.keep is None else self.keep

    @property
    def image_file(self) -> Path:
        """The image that is meant."""
        return _DIGIT if self.image is None else self.image

    @property
    def wanted(self) -> tuple[str, ...]:
        """The classes that are meant."""
        return _DIGIT_LABELS if self.labels is None else self.labels

    def resolved(self) -> dict[str, Any]:
        """The fields, with the image and classes that are meant."""
        meant = {"image": self.image_file, "labels": self.wanted, "keep": self.share}
        return {**super().resolved(), **meant}

    def check_quickstart(self) -> None:
        """Check that the quickstart has been run, where its model or digit is meant.

        Raises:
            InputError: it has not.
        """
        super().check_quickstart()
        if self.image is None and not _DIGIT.is_file():
            raise InputError(
                f"there is no {_DIGIT}: make the quickstart's digits first, {MAKE_IT}, or name "
                "another image with --image"
            )
