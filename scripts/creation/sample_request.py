"""What scripts/sample.py is asked. No torch is needed, so that flags are read at once."""

from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError
from lpd.files import printable
from scripts.creation.request import MODEL, MOST_IMAGES, TEXT_MODEL, CreationRequest

_DEFAULT_PROMPTS = (
    *("a red three", "a seven in green", "a blue eight above a yellow two"),
    "a white five left of a red nine",
)
"""Of what the quickstart's scenes show."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(CreationRequest):
    """Create images of classes or of prompts."""

    prompts: tuple[str, ...] | None = None
    """What images of a model of texts show, each of them num_images_per_label times; "" for
    anything. With prompts the default model is that of the text quickstart."""
    prompt_file: Path | None = None
    """The same from a text file, a prompt in a line; blank lines are passed over."""
    negative_prompt: str | None = None
    """What guidance leads images of prompts away from."""
    text_encoder: str | None = None
    """Of a model of texts, its text encoder: a folder, or a repository of the hub. By default the
    one that the model's configuration names."""
    output_dir: Path = Path("outputs/samples")
    """Where they go. Earlier results there are replaced, all of them."""
    video: bool = False
    """Write the animation as a video too, which needs the extra "video"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts is not None and not self.prompts:
            raise InputError('prompts needs at least one; "" is for anything')
        if self.prompts is not None and self.prompt_file is not None:
            raise InputError("give --prompts or --prompt_file, not both")
        if self.labels is not None and self.asks_by_prompts:
            raise InputError(
                "--labels are for models of classes, and --prompts and --prompt_file for models of "
                "texts: leave out one of them"
            )
        self._check_count(len(self.prompts or ""))

    @property
    def asks_by_prompts(self) -> bool:
        """Whether there is a prompt."""
        return self.prompts is not None or self.prompt_file is not None

    @property
    def model_name(self) -> str:
        """That of the text quickstart, where nothing else is named and there are prompts."""
        return TEXT_MODEL if self.asks_by_prompts and self.model == MODEL else self.model

    def wanted_prompts(self) -> list[str]:
        """All prompts.

        Raises:
            InputError: none is named, the file cannot be read or has none, or too many.
        """
        if self.prompts is not None:
            return list(self.prompts)
        if self.prompt_file is not None:
            prompts = read_prompts(self.prompt_file)
            self._check_count(len(prompts))
            return prompts
        if self.model_name == TEXT_MODEL:
            return list(_DEFAULT_PROMPTS)
        raise InputError(
            f"{printable(self.model_name)} is a model of texts: say with --prompts or "
            "--prompt_file what its images are to show"
        )

    def _check_count(self, num_prompts: int) -> None:
        num_images = num_prompts * self.num_images_per_label
        if num_images > MOST_IMAGES:
            raise InputError(
                f"{num_images} images are more than the {MOST_IMAGES} of one call: give fewer "
                "prompts at a time"
            )


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file.

    Raises:
        InputError: it cannot be read, is not UTF-8, or has no prompt.
    """
    try:
        # Not splitlines, which ends lines at characters that a prompt may hold.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the prompts of {printable(file)} ({error}): give a text file in UTF-8"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{printable(file)} has no prompt: write one in each line")
    return prompts
