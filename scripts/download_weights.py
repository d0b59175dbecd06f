"""Fetch published files to the paths that the scripts expect: weights and order files from the hub,
and ADM's statistics of ImageNet.

python scripts/download_weights.py tokenizer lpd_l_256 reference_256
python scripts/download_weights.py --all

Every file's SHA-256 is recorded beside it. Those of the hub are compared with the hub's own; those
of ADM's statistics are not known here, so only their checksums inside (of the ZIP format) are.
"""

import http.client
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

from lpd import cli
from lpd.errors import InputError
from lpd.evaluation.generated.published import ROWS, STATISTICS
from lpd.files import atomic_path, sha256_of_file
from lpd.hub import (
    HUB_ERRORS,
    MODELS,
    TEXT_TOKENIZER_FILE,
    TEXT_TOKENIZER_REPOSITORY,
    TOKENIZER_FILE,
    TOKENIZER_REPOSITORY,
)
from lpd.progress import progress

ROOT = Path(__file__).resolve().parents[1]
CHECKSUMS = "SHA256SUMS"
_SECONDS_OF_SILENCE = 60
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Published:
    """A file that somebody has published, and the folder it belongs to."""

    source: str
    """A repository of the hub, or the file's address."""
    file: str
    folder: str
    in_all: bool = True
    """Whether --all means it too."""

    @property
    def path(self) -> Path:
        """Where it goes."""
        return ROOT / self.folder / self.file

    @property
    def is_on_hub(self) -> bool:
        """Whether it comes from the hub."""
        return "://" not in self.source


PUBLISHED = {
    "tokenizer": Published(TOKENIZER_REPOSITORY, TOKENIZER_FILE, "tokenizers"),
    **{
        Path(model.file).stem: Published(model.repository, model.file, "weights")
        for model in MODELS.values()
    },
    "tokenizer_t2i": Published(TEXT_TOKENIZER_REPOSITORY, TEXT_TOKENIZER_FILE, "tokenizers"),
    **{
        f"reference_{img_size}": Published(each.url, each.file, "weights")
        for img_size, each in STATISTICS.items()
    },
    # By the names that the published evaluation scripts read; nobody here has seen the repository.
    **{
        f"orders_{name}": Published(
            "mit-han-lab/lpd_orders", f"{name}.json", "orders/lpd_orders_generated", in_all=False
        )
        for name in dict.fromkeys(row.orders for row in ROWS.values())
    },
}
_NAMES = ", ".join(PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch published weights, statistics and orders."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"{_NAMES}.")] = ()
    all: bool = False
    """All weights, some 15 GB, and ADM's statistics."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in PUBLISHED]
        if unknown:
            raise InputError(f"unknown weights {', '.join(unknown)}: choose from {_NAMES}")
        if not self.names and not self.all:
            raise InputError(f"name what to fetch, or --all: {_NAMES}")


def fetch(published: Published, folder: Path | None = None) -> str:
    """Fetch a file, with progress, going on with a part that is there; return its SHA-256.

    It is there whole or not at all, and its checksum is recorded beside it in ``SHA256SUMS``.

    Args:
        published: what to fetch.
        folder: where it goes; by default where the scripts expect it.

    Raises:
        InputError: nobody can be reached, or the file arrived damaged.
    """
    path = published.path if folder is None else folder / published.file
    if published.is_on_hub:
        expected = _fetch_from_hub(published, path)
    else:
        expected = None
        _fetch_archive(published, path)
    sha256 = sha256_of_file(path)
    if expected is not None and sha256 != expected:
        path.unlink()
        raise InputError(f"{path} arrived damaged and was removed; run the same command again")
    record(path, sha256)
    return sha256


def _fetch_from_hub(published: Published, path: Path) -> str | None:
    """Fetch a file of the hub; return the SHA-256 that the hub has of it, where it has one."""
    try:
        hf_hub_download(published.source, published.file, local_dir=path.parent)
        tag = get_hf_file_metadata(hf_hub_url(published.source, published.file)).etag
    except HUB_ERRORS as error:
        raise _unreachable(published, path, error) from error
    # The hub's tag of a large file is its SHA-256.
    return tag if tag is not None and len(tag) == 64 else None


def _fetch_archive(published: Published, path: Path) -> None:
    """Fetch an ``.npz`` by its address, into a part beside it that a later call goes on with."""
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = _download(published.source, part)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(published, path, error) from error
    if part.stat().st_size < size:
        raise InputError(
            f"{published.file} broke off after {part.stat().st_size} of {size} bytes; the same "
            "command goes on from there"
        )
    if part.stat().st_size > size or not _is_whole_archive(part):
        part.unlink()
        raise InputError(f"{path} arrived damaged and was removed; run the same command again")
    part.replace(path)


def _download(url: str, part: Path) -> int:
    """Add to a file what it lacks of what is at an address; return how large that is."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE)  # noqa: S310
    except urllib.error.HTTPError as error:
        # There is nothing behind the part: it was killed between its last byte and its renaming.
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not total.isdigit():
            raise
        return int(total)
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server sends all of it anew
            start = 0
        size = start + int(response.headers["Content-Length"])
        with (
            part.open("ab" if start else "wb") as file,
            progress(
                desc=part.name[1:], total=size, initial=start, unit="B", unit_scale=True
            ) as shown,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                shown.update(len(block))
    return size


def _is_whole_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _unreachable(published: Published, path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot fetch {published.file} of {published.source}: {error}; check the network, "
        f"or put the file at {path} by hand"
    )


def record(path: Path, sha256: str) -> None:
    """Write a file's line of ``SHA256SUMS``, which ``sha256sum --check`` reads."""
    sums = path.parent / CHECKSUMS
    lines = sums.read_text().splitlines() if sums.is_file() else []
    lines = [line for line in lines if not line.endswith(f"  {path.name}")]
    with atomic_path(sums) as temporary:
        temporary.write_text("".join(f"{x}\n" for x in sorted([*lines, f"{sha256}  {path.name}"])))


def run(config: DownloadConfig) -> None:
    """Fetch everything that was named."""
    names = [name for name, each in PUBLISHED.items() if each.in_all] if config.all else []
    for name in dict.fromkeys([*names, *config.names]):
        sha256 = fetch(PUBLISHED[name])
        print(f"{name}: {PUBLISHED[name].path.relative_to(ROOT)}, SHA-256 {sha256}")


if __name__ == "__main__":
    run_config = cli.parse(DownloadConfig, "Fetch published weights, statistics and orders.")
    with cli.command():
        run(run_config)
