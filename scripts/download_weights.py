"""Fetch published weights from the hub to the paths that the scripts expect.

python scripts/download_weights.py tokenizer lpd_l_256
python scripts/download_weights.py --all
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path, sha256_of_file

ROOT = Path(__file__).resolve().parents[1]
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Published:
    """A file on the hub and the folder it belongs to."""

    repository: str
    file: str
    folder: str

    @property
    def path(self) -> Path:
        """Where it goes."""
        return ROOT / self.folder / self.file


PUBLISHED = {
    "tokenizer": Published("FoundationVision/LlamaGen", "vq_ds16_c2i.pt", "tokenizers"),
    **{
        name: Published(f"mit-han-lab/{name}", f"{name}.pth", "weights")
        for name in ("lpd_l_256", "lpd_xl_256", "lpd_xxl_256", "lpd_l_512", "lpd_xl_512")
    },
}


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch published weights from the hub."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """tokenizer, lpd_l_256, lpd_xl_256, lpd_xxl_256, lpd_l_512, lpd_xl_512."""
    all: bool = False
    """All of them, about 15 GB."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in PUBLISHED]
        if unknown:
            raise InputError(
                f"unknown weights {', '.join(unknown)}: choose from {', '.join(PUBLISHED)}"
            )
        if not self.names and not self.all:
            raise InputError(f"name what to fetch, or --all: {', '.join(PUBLISHED)}")


def fetch(published: Published) -> str:
    """Fetch a file, with progress, going on with a part that is there; return its SHA-256.

    The file's checksum is compared with the hub's and recorded beside it in ``SHA256SUMS``.

    Raises:
        InputError: the hub cannot be reached, or the file arrived damaged.
    """
    path = published.path
    try:
        # First: it alone turns every way of not reaching the hub into an OSError.
        hf_hub_download(published.repository, published.file, local_dir=path.parent)
        expected = get_hf_file_metadata(hf_hub_url(published.repository, published.file)).etag
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"cannot fetch {published.file} of {published.repository}: {error}; check the network, "
            f"or put the file at {path} by hand"
        ) from error
    sha256 = sha256_of_file(path)
    # The hub's tag of a large file is its SHA-256.
    if expected is not None and len(expected) == 64 and sha256 != expected:
        path.unlink()
        raise InputError(f"{path} arrived damaged and was removed; run the same command again")
    record(path, sha256)
    return sha256


def record(path: Path, sha256: str) -> None:
    """Write a file's line of ``SHA256SUMS``, which ``sha256sum --check`` reads."""
    sums = path.parent / CHECKSUMS
    lines = sums.read_text().splitlines() if sums.is_file() else []
    lines = [line for line in lines if not line.endswith(f"  {path.name}")]
    with atomic_path(sums) as temporary:
        temporary.write_text("".join(f"{x}\n" for x in sorted([*lines, f"{sha256}  {path.name}"])))


def run(config: DownloadConfig) -> None:
    """Fetch everything that was named."""
    for name in PUBLISHED if config.all else config.names:
        sha256 = fetch(PUBLISHED[name])
        print(f"{name}: {PUBLISHED[name].path.relative_to(ROOT)}, SHA-256 {sha256}")


if __name__ == "__main__":
    run_config = cli.parse(DownloadConfig, "Fetch published weights from the hub.")
    with cli.command():
        run(run_config)
