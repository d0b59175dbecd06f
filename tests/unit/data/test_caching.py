import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lpd.data import code_cache
from lpd.data import images as images_module
from lpd.data.caching import run_caching
from lpd.data.code_cache import UNREADABLE
from lpd.data.config import CacheConfig
from lpd.data.published_cache import open_cache
from lpd.data.transforms import center_crop, image_to_pixels, normalize_
from lpd.distributed import World
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import save_pretrained

NUM_IMAGES = 11
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_shards():
    with mock.patch.object(code_cache, "SHARD_IMAGES", 4):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/CLASS/*: 11 images of noise, of several sizes, in 3 classes."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for row in range(NUM_IMAGES):
        file = root / "train" / f"class{row % 3}" / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = random.integers(9, 40, 2)
        # Blocks of one color, so that the crops keep some contrast.
        values = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values[:8, :8]).resize((width, height), Image.Resampling.NEAREST).save(file)
    return root


@pytest.fixture
def config(images: Path, tokenizer_folder: Path, tmp_path: Path) -> CacheConfig:
    return CacheConfig(
        img_size=16,
        vqgan_path=tokenizer_folder,
        data_path=images,
        cached_path=tmp_path / "cache",
        batch_size=3,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def whole_cache(images: Path, tokenizer_folder: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "cache"
    with mock.patch.object(code_cache, "SHARD_IMAGES", 4):
        run_caching(
            CacheConfig(
                img_size=16,
                vqgan_path=tokenizer_folder,
                data_path=images,
                cached_path=path,
                batch_size=3,
                num_workers=0,
            ),
            World(),
        )
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_cache_holds_the_codes_of_the_crops(whole_cache: Path, config: CacheConfig) -> None:
    cache = open_cache(whole_cache)
    tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, CPU)
    cache.check(image_size=16, tokenizer_sha256=tokenizer.sha256)
    assert cache.readable.tolist() == list(range(NUM_IMAGES))
    assert cache.class_names == ("class0", "class1", "class2")
    seen = set()
    for row in cache.readable:
        file = config.data_path / "train" / cache.files[row]
        assert cache.class_names[cache.labels[row]] == file.parent.name
        image = normalize_(image_to_pixels(center_crop(Image.open(file), 16)).float())[None]
        plain, flipped = cache.get(np.array([row, row]), np.array([False, True]))
        np.testing.assert_array_equal(plain, tokenizer.encode(image)[0])
        np.testing.assert_array_equal(flipped, tokenizer.encode(image.flip(-1))[0])
        seen |= set(plain.tolist())
    assert len(seen) > 8


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_processes_gives_the_same_bytes(
    whole_cache: Path, config: CacheConfig, in_threads, size: int
) -> None:
    in_threads(functools.partial(run_caching, config), size)
    assert content(config.cached_path) == content(whole_cache)


def test_workers_give_the_same_bytes(whole_cache: Path, config: CacheConfig) -> None:
    run_caching(dataclasses.replace(config, num_workers=2), World())
    assert content(config.cached_path) == content(whole_cache)


@settings(deadline=None, max_examples=12)
@given(
    lost=st.sets(
        st.sampled_from([*(f"codes_0000{i}.npy" for i in range(3)), "labels.npy", "files.txt"]),
        min_size=1,
    ),
    size=st.integers(1, 3),
)
def test_resume_makes_what_is_missing_and_nothing_else(
    whole_cache: Path,
    images: Path,
    tokenizer_folder: Path,
    tmp_path_factory,
    in_threads,
    lost,
    size,
) -> None:
    path = tmp_path_factory.mktemp("part") / "cache"
    shutil.copytree(whole_cache, path)
    for name in lost:
        (path / name).unlink()
    kept = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    config = CacheConfig(
        img_size=16,
        vqgan_path=tokenizer_folder,
        data_path=images,
        cached_path=path,
        batch_size=3,
        num_workers=0,
    )
    in_threads(functools.partial(run_caching, config), size)
    assert content(path) == content(whole_cache)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def copy_with_val(images: Path, copy: Path) -> Path:
    """The images, and the last of each class once more as held out."""
    damage(images, copy, ())
    for name in ("class0/09.png", "class1/10.png", "class2/08.png"):
        (copy / "val" / name).parent.mkdir(parents=True)
        shutil.copy(copy / "train" / name, copy / "val" / name)
    return copy


def test_another_split_is_cached_with_the_same_classes(
    whole_cache: Path, config: CacheConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, data_path=copy_with_val(config.data_path, tmp_path / "d"))
    run_caching(dataclasses.replace(config, split="val"), World())
    held_out, whole = open_cache(config.cached_path), open_cache(whole_cache)
    assert list(held_out.files) == ["class0/09.png", "class1/10.png", "class2/08.png"]
    assert held_out.class_names == whole.class_names
    rows = np.array([whole.files.index(name) for name in held_out.files])
    np.testing.assert_array_equal(held_out.labels, whole.labels[rows])
    for flipped in (np.zeros(3, dtype=bool), np.ones(3, dtype=bool)):
        np.testing.assert_array_equal(
            held_out.get(held_out.readable, flipped), whole.get(rows, flipped)
        )
    # The other split's cache is another cache; the format does not know of splits.
    with pytest.raises(ValueError, match=r"num_images was 3, now 11; files_sha256 was .*; remove"):
        run_caching(config, World())
    meta = [json.loads((path / "meta.json").read_text()) for path in (whole_cache, held_out.path)]
    assert meta[0].keys() == meta[1].keys()


def test_a_split_of_other_classes_is_refused(config: CacheConfig, tmp_path: Path) -> None:
    data = copy_with_val(config.data_path, tmp_path / "d")
    config = dataclasses.replace(config, data_path=data, split="val")
    (data / "val" / "class1").rename(data / "val" / "class9")
    with pytest.raises(
        ValueError, match=r"val and .*train have different .*, 2 of them in one only \(class1\)"
    ):
        run_caching(config, World())
    assert not config.cached_path.exists()
    shutil.rmtree(data / "train")  # then there is nothing that it could contradict
    run_caching(config, World())
    assert open_cache(config.cached_path).class_names == ("class0", "class2", "class9")


def test_complete_cache_is_left_alone(config: CacheConfig, capsys) -> None:
    run_caching(config, World())
    before = content(config.cached_path)
    with mock.patch.object(VQTokenizer, "encode", side_effect=AssertionError("encoded again")):
        run_caching(config, World())
    assert "is complete: 11 images" in capsys.readouterr().out
    assert content(config.cached_path) == before


@pytest.mark.parametrize("calls", [0, 3, 5])
def test_interrupted_run_leaves_whole_shards_only(
    whole_cache: Path, config: CacheConfig, calls: int
) -> None:
    encode, left = VQTokenizer.encode, iter(range(calls))

    def interrupted(self: VQTokenizer, batch: torch.Tensor) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encode(self, batch)

    with mock.patch.object(VQTokenizer, "encode", interrupted), pytest.raises(KeyboardInterrupt):
        run_caching(config, World())
    expected = content(whole_cache)
    part = content(config.cached_path)
    assert part.items() <= expected.items()
    assert len(part) == 3 + calls // 4  # the index, and a shard for every two batches
    run_caching(config, World())
    assert content(config.cached_path) == expected


def damage(images: Path, copy: Path, rows: tuple[int, ...]) -> list[str]:
    """Copy the images, damage the files of some rows of their index, and return their names."""
    shutil.copytree(images, copy)
    files = sorted((copy / "train").glob("*/*.png"))
    for row in rows:
        files[row].write_bytes(files[row].read_bytes()[:40])
    return [files[row].relative_to(copy / "train").as_posix() for row in rows]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_stops_and_is_named(
    config: CacheConfig, tmp_path: Path, num_workers: int
) -> None:
    (name,) = damage(config.data_path, tmp_path / "copy", (6,))
    config = dataclasses.replace(config, data_path=tmp_path / "copy", num_workers=num_workers)
    with pytest.raises(
        ValueError, match=rf"{name}: .*; repair it, or pass --skip_unreadable"
    ) as error:
        run_caching(config, World())
    # No worker outlives the call, whoever keeps the error: the program's end would wait for it.
    assert error.tb is not None
    assert not multiprocessing.active_children()
    # The shard before it is whole, the one with it is not there.
    assert {"codes_00000.npy", "codes_00001.npy"} & content(config.cached_path).keys() == {
        "codes_00000.npy"
    }


@pytest.mark.parametrize("size", [1, 2])
def test_unreadable_images_can_be_skipped(
    whole_cache: Path, config: CacheConfig, tmp_path: Path, capsys, in_threads, size: int
) -> None:
    names = damage(config.data_path, tmp_path / "copy", (0, 6, 7))
    config = dataclasses.replace(config, data_path=tmp_path / "copy", skip_unreadable=True)
    in_threads(functools.partial(run_caching, config), size)
    out = capsys.readouterr().out
    assert "cached 8 images" in out
    assert "3 images could not be read" in out
    assert all(name in out for name in names)
    cache = open_cache(config.cached_path)
    whole = open_cache(whole_cache)
    assert cache.readable.tolist() == [1, 2, 3, 4, 5, 8, 9, 10]
    assert (np.load(config.cached_path / "codes_00001.npy")[2:] == UNREADABLE).all()
    for flip in (False, True):
        flipped = np.full(8, flip)
        np.testing.assert_array_equal(
            cache.get(cache.readable, flipped), whole.get(cache.readable, flipped)
        )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_whatever_fails_for_one_image_can_be_skipped(
    config: CacheConfig, tmp_path: Path, capsys, num_workers: int
) -> None:
    """One of no memory, one of too many pixels, and one with a name that is no text."""
    damage(config.data_path, tmp_path / "copy", ())
    folder = tmp_path / "copy" / "train" / "class1"
    strange = folder / os.fsdecode(b"caf\xe9\x1b[2J.png")
    strange.write_bytes(b"damaged")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    Image.new("RGB", (77, 9)).save(folder / "zz.png")

    def crop(image: Image.Image, size: int) -> Image.Image:
        if image.size == (77, 9):
            raise MemoryError
        return center_crop(image, size)

    config = dataclasses.replace(config, data_path=tmp_path / "copy", num_workers=num_workers)
    with mock.patch.object(images_module, "center_crop", crop):
        with pytest.raises(ValueError, match=r"caf\\xe9\\x1b\[2J\.png: .*; repair it, or pass"):
            run_caching(config, World())
        run_caching(dataclasses.replace(config, skip_unreadable=True), World())
    out = capsys.readouterr().out
    assert "cached 11 images" in out
    assert "3 images could not be read" in out
    for name in (r"caf\xe9\x1b[2J.png", "huge.png", "zz.png"):
        assert f"  class1/{name}\n" in f"{out}\n"
    assert f"class1/{strange.name}" in open_cache(config.cached_path).files


def test_bad_input_is_named_before_anything_is_written(
    config: CacheConfig, tmp_path: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "hollow" / "train" / "cat").mkdir(parents=True)
    big = VQGANConfig(
        ch=4, ch_mult=(1,), num_res_blocks=1, z_channels=4, codebook_size=65536,
        codebook_embed_dim=1, norm_groups=4,
    )  # fmt: skip
    save_pretrained(tmp_path / "big", VQGAN(big), big)
    shutil.copytree(tokenizer_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for change, words in (
        ({"data_path": tmp_path / "nowhere"}, r"there is no folder .*nowhere/train"),
        ({"split": "test"}, r"there is no folder .*/test; expected class folders"),
        ({"data_path": tmp_path / "empty"}, r"empty/train has no class folders"),
        ({"data_path": tmp_path / "hollow"}, r"class folder .*train/cat holds no images"),
        ({"img_size": 18}, r"image size 18 is not a multiple of the tokenizer's stride 4"),
        ({"vqgan_path": tmp_path / "no.pt"}, r"no weight file at .*no\.pt"),
        ({"vqgan_path": tmp_path / "cut"}, r"model\.safetensors is not a whole safetensors file"),
        ({"vqgan_path": tmp_path / "big"}, r"vocabularies up to 65535, got .* 65536"),
    ):
        with pytest.raises(ValueError, match=words):
            run_caching(dataclasses.replace(config, **change), World())
        assert not config.cached_path.exists()
    for change, words in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"split": "../val"}, r"split must be the name of a folder in data_path.*, got '\.\./val'"),
        ({"split": "/val"}, "split must be the name of a folder"),
        ({"split": ".."}, "split must be the name of a folder"),
        ({"split": "."}, "split must be the name of a folder"),
        ({"split": ""}, "split must be the name of a folder in data_path, such as val, got ''"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(config, **change)


@pytest.mark.parametrize("size", [1, 2])
def test_another_cache_is_not_written_to(
    whole_cache: Path, config: CacheConfig, tmp_path: Path, in_threads, size: int
) -> None:
    shutil.copytree(whole_cache, config.cached_path)
    before = content(config.cached_path)
    damage(config.data_path, tmp_path / "more", ())
    shutil.copy(tmp_path / "more/train/class0/00.png", tmp_path / "more/train/class0/zz.png")
    for change, words in (
        ({"img_size": 32}, r"image_size was 16, now 32\); remove"),
        (
            {"data_path": tmp_path / "more"},
            r"num_images was 11, now 12; files_sha256 was .*\); remove",
        ),
    ):
        changed = dataclasses.replace(config, **change)

        def refused(world: World, config: CacheConfig = changed, words: str = words) -> bool:
            with pytest.raises(ValueError, match=words):
                run_caching(config, world)
            return True

        assert in_threads(refused, size) == [True] * size
        assert content(config.cached_path) == before
