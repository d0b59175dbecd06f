import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from lpd import cli
from lpd.data import captions
from lpd.data.caching import run_caching
from lpd.data.captioned import indexing
from lpd.data.config import CAPTION_KINDS, CacheConfig, CaptionOptions
from lpd.data.published_cache import open_cache
from lpd.data.transforms import center_crop, image_to_pixels, normalize_
from lpd.distributed import World
from lpd.tokenizer.vq_tokenizer import VQTokenizer

KINDS = ("txt", "jsonl", "tar", "parquet")
NAMES = {
    "txt": "{key}.png",
    "jsonl": "images/{key}.png",
    "tar": "deep/{part}.tar/{key}",
    "parquet": "{part}.parquet/{place}",
}


def refused(config: CacheConfig, words: str, world: World) -> bool:
    """Every process is; a thread that leaves the others in an exchange would break it."""
    with pytest.raises(ValueError, match=words):
        run_caching(config, world)
    return True


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def expected_codes(samples, tokenizer_folder: Path) -> np.ndarray:
    """(11, 2, N), by the tokenizer itself."""
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    codes = []
    for sample in samples:
        crop = center_crop(Image.open(io.BytesIO(sample.png)).convert("RGB"), 16)
        image = normalize_(image_to_pixels(crop).float())[None]
        codes.append([tokenizer.encode(each)[0].numpy() for each in (image, image.flip(-1))])
    return np.array(codes)


@pytest.mark.parametrize("kind", KINDS)
def test_all_sources_give_the_same_codes_and_captions(
    kind: str, source_folder, config_of, samples, expected_codes: np.ndarray
) -> None:
    config = config_of(kind, source_folder(kind))
    run_caching(config, World())
    cache = open_cache(config.cached_path)
    assert list(cache.captions) == [sample.captions for sample in samples]
    places = [(0, row) for row in range(7)] + [(1, row) for row in range(4)]
    assert list(cache.files) == [
        NAMES[kind].format(key=sample.key, part=part, place=place)
        for sample, (part, place) in zip(samples, places, strict=True)
    ]
    rows = np.arange(11)
    for flip in (False, True):
        np.testing.assert_array_equal(
            cache.get(rows, np.full(11, flip)), expected_codes[:, int(flip)]
        )
    lines = [json.dumps(list(each.captions), ensure_ascii=False) + "\n" for each in samples]
    text = "".join(lines).encode()
    assert cache.captions.path.read_bytes() == text
    assert cache.captions.sha256 == hashlib.sha256(text).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_and_an_interruption_give_the_same_bytes(
    kind: str, source_folder, config_of, in_threads, tmp_path: Path
) -> None:
    config = config_of(kind, source_folder(kind))
    run_caching(config, World())
    whole = content(config.cached_path)
    for size in (2, 3):
        again = replace(config, cached_path=tmp_path / str(size))
        in_threads(functools.partial(run_caching, again), size)
        assert content(again.cached_path) == whole
    again = replace(config, cached_path=tmp_path / "killed", num_workers=2)
    encode, left = VQTokenizer.encode, iter(range(5))

    def killed(self: VQTokenizer, batch: torch.Tensor) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encode(self, batch)

    with mock.patch.object(VQTokenizer, "encode", killed), pytest.raises(KeyboardInterrupt):
        run_caching(again, World())
    assert content(again.cached_path).items() <= whole.items()
    assert len(content(again.cached_path)) == len(whole) - 2
    (again.cached_path / "captions_index.npy").unlink()
    in_threads(functools.partial(run_caching, again), 2)
    assert content(again.cached_path) == whole


def test_every_kind_that_is_offered_is_found() -> None:
    assert indexing._FINDERS.keys() == {*CAPTION_KINDS, "jsonl"}
    assert all(CaptionOptions(captions=kind).kind == kind for kind in CAPTION_KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_captions_are_told_or_left_out(
    kind: str, source_folder, config_of, uncaptioned, in_threads, capsys, samples
) -> None:
    root = uncaptioned(kind)
    config = config_of(kind, root)
    words = r"^2 of 11 images in .* have no captions, the first is .*; add them"
    for size in (1, 2):
        assert in_threads(functools.partial(refused, config, words), size) == [True] * size
        assert not config.cached_path.exists()
    config = config_of(kind, root, skip_uncaptioned=True)
    in_threads(functools.partial(run_caching, config), 2)
    said = capsys.readouterr().err
    assert said.count("2 images without captions are left out, such as") == 1
    cache = open_cache(config.cached_path)
    kept = [sample for row, sample in enumerate(samples) if row not in {1, 8}]
    assert list(cache.captions) == [sample.captions for sample in kept]
    assert len(cache.readable) == 9


@pytest.fixture
def uncaptioned(source_folder, tmp_path: Path, samples, write_tar) -> Callable[[str], Path]:
    """The images of rows 1 and 8 have no captions: a blank file, null, an empty list, nothing."""

    def uncaptioned(kind: str) -> Path:
        root = tmp_path / "data"
        shutil.copytree(source_folder(kind), root)
        if kind == "txt":
            (root / "train" / f"{samples[1].key}.txt").write_text(" \n\n")
            (root / "train" / f"{samples[8].key}.txt").unlink()
        elif kind == "jsonl":
            lines = (root / "list.jsonl").read_text().split("\n")
            records = [json.loads(line) for line in lines if line]
            records[1]["text"] = ["", "\t"]
            del records[8]["text"]
            text = "".join(json.dumps(record) + "\n" for record in records)
            (root / "list.jsonl").write_text(text)
        elif kind == "tar":
            for number, rows in enumerate((range(7), range(7, 11))):
                members = {}
                for row in rows:
                    members[f"{samples[row].key}.png"] = samples[row].png
                    text = "" if row == 1 else "\n".join(samples[row].captions)
                    if row != 8:
                        members[f"{samples[row].key}.txt"] = text.encode()
                    else:
                        members[f"{samples[row].key}.json"] = b'{"caption": null}'
                write_tar(root / "train" / "deep" / f"{number}.tar", members)
        else:
            import pyarrow.parquet

            for number, row in enumerate((1, 1)):
                file = root / "train" / f"{number}.parquet"
                table = pyarrow.parquet.read_table(file)
                place = table.num_columns - 1
                captions = table.column(place).to_pylist()
                captions[row] = [None, []][number]
                table = table.set_column(place, table.column_names[place], [captions])
                pyarrow.parquet.write_table(table, file, row_group_size=3)
        return root

    return uncaptioned


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_are_skipped_as_those_of_classes_are(
    kind: str, source_folder, config_of, tmp_path: Path, samples, capsys
) -> None:
    root = tmp_path / "data"
    shutil.copytree(source_folder(kind), root)
    png = samples[5].png
    for file in root.rglob("*"):
        if file.is_file():  # the image's data, wherever it stands
            content = file.read_bytes().replace(png[40:], png[40:100] + bytes(len(png) - 100))
            file.write_bytes(content)
    config = config_of(kind, root)
    with pytest.raises(ValueError, match=r"cannot read the image .*5.*; repair it, or pass --skip"):
        run_caching(config, World())
    run_caching(replace(config, skip_unreadable=True), World())
    assert "1 images could not be read and have no codes" in capsys.readouterr().out
    cache = open_cache(config.cached_path)
    assert cache.readable.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert list(cache.captions) == [sample.captions for sample in samples]


@pytest.mark.parametrize("kind", [*CAPTION_KINDS])
def test_a_missing_folder_of_a_split_is_told(kind: str, source_folder, config_of) -> None:
    config = config_of(kind, source_folder(kind), split="val")
    with pytest.raises(ValueError, match=r"no folder .*/val: captioned .* --split names, val"):
        run_caching(config, World())
    assert not config.cached_path.exists()


@pytest.mark.parametrize("kind", [*CAPTION_KINDS])
def test_a_folder_without_images_is_told(kind: str, config_of, tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "README.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"train holds no (images with captions|\.tar|\.parquet)"):
        run_caching(config_of(kind, tmp_path / "data"), World())


def test_a_class_cache_is_not_completed_with_captions(
    source_folder, config_of, tmp_path: Path
) -> None:
    """Nor do folders of classes count as splits of captions."""
    root = source_folder("txt")
    config = config_of("txt", root)
    classes = replace(config, captioned=CaptionOptions())
    run_caching(classes, World())
    before = content(config.cached_path)
    with pytest.raises(ValueError, match=r"class_names was .*captions_sha256 was None, now"):
        run_caching(config, World())
    assert content(config.cached_path) == before


def test_no_room_for_captions_is_told_by_all(
    source_folder, config_of, tmp_path: Path, in_threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 alone has them."""
    monkeypatch.setattr(captions, "_MOST_IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    words = r"cannot keep the captions .*temporary files: No such file .*TMPDIR"
    function = functools.partial(refused, config_of("txt", source_folder("txt")), words)
    assert in_threads(function, 3) == [True] * 3


def test_an_unreadable_file_of_the_system_is_told_by_all(
    source_folder, config_of, tmp_path: Path, in_threads
) -> None:
    root = tmp_path / "data"
    shutil.copytree(source_folder("txt"), root)
    file = next((root / "train").rglob("07.txt"))
    file.unlink()
    file.mkdir()
    words = r"cannot read .*07\.txt: Is a directory"
    function = functools.partial(refused, config_of("txt", root), words)
    assert in_threads(function, 3) == [True] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"captions": "csv"}, "captions must be txt, tar, parquet or a FILE.jsonl, got 'csv'"),
        ({"captions": ""}, "captions must be .*, got ''"),
        ({"captions": "txt", "caption_key": "text"}, "caption_key is of use with --captions tar"),
        ({"captions": "tar", "image_key": "jpg"}, "image_key is of use with --captions parquet or"),
        ({"caption_key": "text"}, "caption_key is of use"),
        ({"skip_uncaptioned": True}, "skip_uncaptioned is of use with --captions only"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CaptionOptions(**options)


def test_options_are_flags_of_the_program(tmp_path: Path, said: Callable[[], str]) -> None:
    flags = [
        *("main_cache.py", "--data_path", "d", "--cached_path", "c", "--captions", "a/b.jsonl"),
        *("--caption_key", "k", "--image_key", "i", "--skip_uncaptioned"),
    ]
    with mock.patch("sys.argv", flags):
        config = cli.parse(CacheConfig, "Cache.")
    assert config.captioned == CaptionOptions(
        captions="a/b.jsonl", caption_key="k", image_key="i", skip_uncaptioned=True
    )
    assert config.captioned.kind == "jsonl"
