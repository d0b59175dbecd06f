"""Files of the hub: which repositories are published, and how what they hold comes here.

Fetched files stay in the hub's own cache; nothing is fetched twice.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

# HTTPError is the client's, which is another package by version.
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from lpd.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A published model: a weight file without a configuration, and what it is a model of."""

    repository: str
    """On the hub."""
    preset: str
    """The preset's name."""
    img_size: int
    """Image side in pixels."""

    @property
    def file(self) -> str:
        """The name of its weight file."""
        return f"{self.preset}_{self.img_size}.pth"


MODELS: dict[str, PublishedModel] = {
    model.repository: model
    for model in (
        PublishedModel(
            repository=f"mit-han-lab/{preset}_{img_size}", preset=preset, img_size=img_size
        )
        for preset, img_size in (
            *(("lpd_l", 256), ("lpd_xl", 256), ("lpd_xxl", 256)),
            *(("lpd_l", 512), ("lpd_xl", 512)),
        )
    )
}
"""The paper's models by repository."""
TOKENIZER_REPOSITORY, TOKENIZER_FILE = "FoundationVision/LlamaGen", "vq_ds16_c2i.pt"
"""Where the tokenizer of the published models is."""
TEXT_TOKENIZER_REPOSITORY, TEXT_TOKENIZER_FILE = "peizesun/llamagen_t2i", "vq_ds16_t2i.pt"
"""Where LlamaGen's tokenizer of text to image is: the same network, trained on other images."""
TOKENIZERS: dict[str, str] = {
    TOKENIZER_REPOSITORY: TOKENIZER_FILE,
    TEXT_TOKENIZER_REPOSITORY: TEXT_TOKENIZER_FILE,
}
"""Repositories of tokenizers without a configuration, and the weight file that is meant."""
HUB_ERRORS: tuple[type[Exception], ...] = (HTTPError, HFValidationError, OSError)
"""What huggingface_hub raises where it does not get what is asked for: the first is a proxy's
refusal, too, and a connection that breaks."""
_OURS = {"repo_type", "local_dir"}  # would fetch something else, or to where it is not looked for
_OPTIONS = sorted(
    {*inspect.signature(snapshot_download).parameters}
    & {*inspect.signature(hf_hub_download).parameters} - {"repo_id", *_OURS}
)


def find_published_model(name: str) -> PublishedModel | None:
    """The published model that a repository, or a weight file, is called by; None for others.

    Args:
        name: ``mit-han-lab/lpd_l_256``, or a path that ends with ``lpd_l_256.pth``.
    """
    by_file = {model.file: model for model in MODELS.values()}
    return MODELS.get(name) or by_file.get(Path(name).name)


def check_options(options: Mapping[str, Any]) -> None:
    """Check what is meant for huggingface_hub, also where nothing is to be fetched: what is passed
    over there, such as a mistyped option of ours, would seem to have been obeyed.

    Raises:
        TypeError: there is no option of a name; the message has those that there are.
    """
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"there is no option {name!r}; the hub's are {', '.join(_OPTIONS)}")


def fetch_folder(name: str, patterns: list[str], **hub: Any) -> Path:
    """Files of a repository, in a folder.

    Args:
        name: the repository, ``OWNER/NAME``.
        patterns: which files, as ``*.json``.
        hub: for huggingface_hub: revision, cache_dir, token, local_files_only, ...

    Raises:
        InputError: there is no such repository, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except HUB_ERRORS as error:
        raise _out_of_reach(name, error) from error


def fetch_file(repository: str, file: str, **hub: Any) -> Path:
    """One file of a repository; the arguments and errors are those of :func:`fetch_folder`."""
    try:
        return Path(hf_hub_download(repository, file, **hub))
    except HUB_ERRORS as error:
        raise _out_of_reach(f"{repository}/{file}", error) from error


def _out_of_reach(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} is neither a folder nor a repository of the hub that can be reached: "
        f"{' '.join(str(error).split())[:300]}; check the name and the network, or give a local one"
    )
