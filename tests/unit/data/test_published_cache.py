import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lpd.data import code_cache
from lpd.data.published_cache import PublishedCache, convert_published, open_cache
from lpd.distributed import World
from lpd.tokenizer.vqgan import VQGANConfig


def random_codes(num_images: int) -> np.ndarray:
    """(n, 2, 4), plain and flipped."""
    return np.random.default_rng(0).integers(0, 1000, (num_images, 2, 4))


@pytest.fixture
def published_path(tmp_path: Path) -> Path:
    """A published cache of 7 images with 4 codes each, in 3 classes."""
    path = tmp_path / "published"
    for row, codes in enumerate(random_codes(7)):
        file = path / f"n{row % 3}" / f"n{row % 3}_{row}.JPEG.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, indices=codes[0].astype(np.int64), indices_flip=codes[1].astype(np.int64))
    return path


def test_published_cache_is_read_through_the_same_interface(published_path: Path) -> None:
    cache = open_cache(published_path)
    assert cache.class_names == ("n0", "n1", "n2")
    assert list(cache.files)[:4] == ["n0/n0_0.JPEG", "n0/n0_3.JPEG", "n0/n0_6.JPEG", "n1/n1_1.JPEG"]
    np.testing.assert_array_equal(cache.labels, [0, 0, 0, 1, 1, 2, 2])
    # 2 x 2 codes of the VQ-16 tokenizer
    assert (cache.num_positions, cache.image_size, cache.vocab_size) == (4, 32, 16384)
    cache.check(image_size=32, tokenizer_sha256="any: the cache does not say")
    codes = random_codes(7)[[0, 3, 6, 1, 4, 2, 5]]
    rows = cache.readable
    np.testing.assert_array_equal(cache.get(rows, np.zeros(7, dtype=bool)), codes[:, 0])
    np.testing.assert_array_equal(cache.get(rows, np.ones(7, dtype=bool)), codes[:, 1])


def test_conversion_keeps_every_code_and_resumes(published_path: Path, tmp_path: Path) -> None:
    published = PublishedCache(published_path)
    with mock.patch.object(code_cache, "SHARD_IMAGES", 3):
        convert_published(published, tmp_path / "new", tokenizer_sha256="dd" * 32)
        first = (tmp_path / "new" / "codes_00001.npy").read_bytes()
        (tmp_path / "new" / "codes_00001.npy").unlink()
        convert_published(published, tmp_path / "new", tokenizer_sha256="dd" * 32)
        assert (tmp_path / "new" / "codes_00001.npy").read_bytes() == first
        converted = open_cache(tmp_path / "new")
        converted.check(image_size=32, tokenizer_sha256="dd" * 32)
        assert list(converted.files) == list(published.files)
        np.testing.assert_array_equal(converted.labels, published.labels)
        for flip in (False, True):
            flipped = np.full(7, flip)
            np.testing.assert_array_equal(
                converted.get(converted.readable, flipped), published.get(np.arange(7), flipped)
            )


def test_damaged_published_files_are_named(published_path: Path) -> None:
    cache = open_cache(published_path)
    flipped = np.array([False])
    file = published_path / "n1" / "n1_1.JPEG.npz"

    def read() -> None:
        cache.get(np.array([3]), flipped)

    np.savez(file, indices=np.arange(9), indices_flip=np.arange(9))
    with pytest.raises(ValueError, match=r"n1_1\.JPEG\.npz holds 9 codes, others 4"):
        read()
    np.savez(file, indices=np.full(4, 16384))
    with pytest.raises(ValueError, match=r"vocabulary of 16384 for n1/n1_1\.JPEG"):
        read()
    np.savez(file, indices=np.full(4, 0.5))
    with pytest.raises(ValueError, match=r"indices in .* is float64, expected integers"):
        read()
    np.savez(file, other=np.arange(4))
    with pytest.raises(ValueError, match=r"cannot read indices in .*n1_1\.JPEG\.npz"):
        read()
    np.savez(file, indices=np.array([object()] * 4))  # pickled: never loaded
    with pytest.raises(
        ValueError, match=r"n1_1\.JPEG\.npz: it is no file .* or holds Python objects; make"
    ):
        read()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cannot read indices in .*n1_1\.JPEG\.npz"):
        read()


def test_odd_published_caches_are_refused(published_path: Path) -> None:
    assert PublishedCache(published_path, VQGANConfig(ch_mult=(1, 1))).image_size == 4
    (published_path / "n3").mkdir()
    with pytest.raises(ValueError, match=r"n3 holds no \.npz files"):
        open_cache(published_path)
    shutil.rmtree(published_path / "n3")
    np.savez(published_path / "n0" / "n0_0.JPEG.npz", indices=np.arange(5))
    with pytest.raises(ValueError, match=r"are 5, no square grid"):
        open_cache(published_path)


def test_a_million_files_are_not_hashed(published_path: Path) -> None:
    assert PublishedCache(published_path).content_sha256(World()) is None
