"""The same images and captions in every kind of source."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from lpd.data import code_cache
from lpd.data.captioned import folders, lists
from lpd.data.config import CacheConfig, CaptionOptions


@dataclass(frozen=True)
class Sample:
    """An image with its captions."""

    key: str
    png: bytes
    captions: tuple[str, ...]


def _samples() -> list[Sample]:
    random = np.random.default_rng(0)
    captions = [
        ("a red seven",),
        ("日本 の 七", 'it says "no"'),
        ("\\n is no line break", "ü\u2028ü", "a red seven"),
    ]
    samples = []
    for row in range(11):
        values = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(values).resize((17, 30), Image.Resampling.NEAREST)
        file = io.BytesIO()
        image.save(file, "PNG")
        samples.append(Sample(f"{'ab'[row // 6]}/{row:02d}", file.getvalue(), captions[row % 3]))
    return samples


SAMPLES = _samples()


def _write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _write_folder(root: Path) -> None:
    for sample in SAMPLES:
        text = " \r\n\n".join(sample.captions)
        write_files(
            root / "train", {f"{sample.key}.png": sample.png, f"{sample.key}.txt": text.encode()}
        )


def _write_list(root: Path) -> None:
    lines = []
    for row, sample in enumerate(SAMPLES):
        write_files(root, {f"images/{sample.key}.png": sample.png})
        is_list = len(sample.captions) > 1 or row % 2
        text = list(sample.captions) if is_list else sample.captions[0]
        path = f"./images/x/../{sample.key}.png" if row % 2 else f"images/{sample.key}.png"
        # Lines with and without escapes, and blank ones between them.
        line = json.dumps({"image_path": path, "text": text, "id": row}, ensure_ascii=row % 3 == 0)
        lines.append(line + "\n" * (1 + row % 2))
    (root / "list.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_tars(root: Path) -> None:
    for number, part in enumerate((SAMPLES[:7], SAMPLES[7:])):
        members = {}
        for row, sample in enumerate(part):
            if row % 2:
                members[f"{sample.key}.txt"] = "\n".join(sample.captions).encode()
            members[f"{sample.key}.png"] = sample.png
            members[f"{sample.key}.cls"] = b"7"
            value = {"caption": [f" {each}\t" for each in sample.captions], "width": 17}
            members[f"{sample.key}.json"] = json.dumps(value).encode()
        _write_tar(root / "train" / "deep" / f"{number}.tar", members)


def _write_parquets(root: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (root / "train").mkdir(parents=True)
    for number, part in enumerate((SAMPLES[:7], SAMPLES[7:])):
        images = [sample.png for sample in part]
        captions = [list(sample.captions) for sample in part]
        if number:
            columns = {"jpg": images, "text": captions}
        else:
            structs = [{"bytes": png, "path": "x.png"} for png in images]
            columns = {"id": list(range(7)), "image": structs, "caption": captions}
        parquet.write_table(
            arrow.table(columns),
            root / "train" / f"{number}.parquet",
            row_group_size=3,
            compression="none",
        )


WRITERS: dict[str, Callable[[Path], None]] = {
    "txt": _write_folder,
    "jsonl": _write_list,
    "tar": _write_tars,
    "parquet": _write_parquets,
}


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """What all sources hold."""
    return SAMPLES


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, dict[str, bytes]], None]:
    """Writes a tar of members by name, as webdataset's writer does."""
    return _write_tar


@pytest.fixture(autouse=True)
def _small_parts() -> Iterator[None]:
    with (
        mock.patch.object(code_cache, "SHARD_IMAGES", 4),
        mock.patch.object(folders, "PART_IMAGES", 2),
        mock.patch.object(lists, "PART_IMAGES", 2),
    ):
        yield


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of source; not to be written to."""
    made: dict[str, Path] = {}

    def source_folder(kind: str) -> Path:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            WRITERS[kind](root)
            made[kind] = root
        return made[kind]

    return source_folder


@pytest.fixture
def config_of(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., CacheConfig]:
    """The settings of a caching: of a kind of source, in a folder."""

    def config_of(kind: str, root: Path, **options: object) -> CacheConfig:
        if kind == "parquet":
            pytest.importorskip("pyarrow.parquet")
        captions = str(root / "list.jsonl") if kind == "jsonl" else kind
        own = {name: options.pop(name) for name in list(options) if name in _OPTIONS}
        config = CacheConfig(
            img_size=16,
            vqgan_path=tokenizer_folder,
            data_path=root,
            cached_path=tmp_path / "cache",
            batch_size=3,
            num_workers=0,
            captioned=CaptionOptions(captions=captions, **own),
        )
        return replace(config, **options)

    return config_of


_OPTIONS = {"caption_key", "image_key", "skip_uncaptioned"}
