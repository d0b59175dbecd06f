"""References: files of statistics, sample archives and folders of images."""

import contextlib
import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.images import parts
from lpd.evaluation.images.references import load_reference, open_reference
from lpd.evaluation.images.statistics_file import read_statistics, write_statistics
from lpd.evaluation.images.summary import FeatureSummary
from lpd.evaluation.measures.reference import Reference
from lpd.evaluation.measures.statistics import gaussian_statistics


def pixels_of(folder):
    """The folder's images in order, cropped by hand: 20 x 16 images lose 2 rows on each side."""
    return np.stack(
        [np.array(Image.open(path))[2:18] for path in sorted(folder.glob("*/*.png"))]
    )  # (n, 16, 16, 3)


def features_of(extractor, pixels):
    return extractor(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).features.numpy()


def compute(source, extractor, cache, world=None):
    return load_reference(source, extractor, cache, world or World(), num_workers=0)


def test_a_folder_gives_the_statistics_of_its_cropped_images(run_folder, tmp_path, extractor):
    features = features_of(extractor, pixels_of(run_folder / "data" / "train"))
    expected = gaussian_statistics(features)
    source = open_reference(run_folder / "data", 16, extractor)
    reference = compute(source, extractor, tmp_path / "cache.npz")
    np.testing.assert_allclose(reference.statistics.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(
        reference.statistics.covariance, expected.covariance, rtol=1e-3, atol=1e-9
    )
    np.testing.assert_allclose(reference.features, features, rtol=1e-4, atol=1e-6)


@pytest.fixture
def small_blocks(monkeypatch):
    """Images are seen in blocks of 5, so that the 24 of a folder make 5 parts."""
    monkeypatch.setattr(parts, "BLOCK_IMAGES", 5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [2, 7])  # 7: two of them have none of the 5 parts
def test_any_number_of_processes_gives_the_same_bits(
    run_folder, tmp_path, extractor, in_threads, size
):
    source = open_reference(run_folder / "data", 16, extractor)
    alone = compute(source, extractor, tmp_path / "alone.npz")
    together = in_threads(
        lambda world: compute(source, extractor, tmp_path / "together.npz", world), size
    )
    for each in together:
        np.testing.assert_array_equal(each.statistics.mean, alone.statistics.mean)
        np.testing.assert_array_equal(each.statistics.covariance, alone.statistics.covariance)
        np.testing.assert_array_equal(each.features, alone.features)
    assert {path.name for path in tmp_path.iterdir()} == {"alone.npz", "together.npz"}


def test_parts_of_many_images_keep_moments_and_no_features():
    features = np.random.default_rng(0).normal(size=(61, 8)).astype(np.float32)
    summary = FeatureSummary(len(features))
    rows = [range(31), range(31, 61)]
    seen = {"features": features, "spatial": features[:, 3:] + 1}
    kept = [
        summary.of(each, {name: of[each.start : each.stop] for name, of in seen.items()})
        for each in rows
    ]
    assert all("features" not in part and "spatial" not in part for part in kept)
    found = summary.total(kept)
    for statistics, of in ((found.statistics, features), (found.spatial, seen["spatial"])):
        expected = gaussian_statistics(of)
        np.testing.assert_allclose(statistics.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(
            statistics.covariance, expected.covariance, rtol=1e-10, atol=1e-12
        )
    np.testing.assert_array_equal(found.features, features)
    without = [summary.of(each, {"features": features[each.start : each.stop]}) for each in rows]
    assert summary.total(without).spatial is None


def test_features_of_a_folder_are_computed_once(run_folder, tmp_path, extractor):
    cache = tmp_path / "cache.npz"
    source = open_reference(run_folder / "data", 16, extractor)
    first = compute(source, extractor, cache)

    class Counting:
        fingerprint, num_classes = extractor.fingerprint, extractor.num_classes
        num_features, num_spatial = extractor.num_features, extractor.num_spatial
        calls = 0

        def __call__(self, images):
            self.calls += 1
            return extractor(images)

    counting = Counting()
    again = compute(source, counting, cache)
    assert counting.calls == 0
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.statistics.covariance, first.statistics.covariance)
    counting.fingerprint = "another network"  # its features are not these
    compute(source, counting, cache)
    assert counting.calls > 0


def test_fingerprints_tell_folders_apart(run_folder, tmp_path, extractor):
    fingerprint = open_reference(run_folder / "data", 16, extractor).fingerprint
    assert open_reference(run_folder / "data", 8, extractor).fingerprint != fingerprint
    folder = tmp_path / "a"  # without train/
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "0.png")
    other = open_reference(tmp_path, 16, extractor)
    assert other.fingerprint != fingerprint
    assert other.num_images == 1


def test_pixels_tell_apart_what_names_and_sizes_do_not(tmp_path, extractor):
    folder = tmp_path / "images"
    folder.mkdir()

    def write(shade):
        for number in range(3):
            Image.new("RGB", (16, 16), (number, shade, 0)).save(folder / f"{number}.bmp")
        return open_reference(folder, 16, extractor)

    dark, light = write(10), write(20)
    assert dark.fingerprint == light.fingerprint
    seen = []
    for name, shade in (("dark", 10), ("light", 20), ("again", 10)):
        compute(write(shade), extractor, tmp_path / f"{name}.npz")
        seen.append(read_statistics(tmp_path / f"{name}.npz").about["pixels"])
    assert seen[0] == seen[2] != seen[1]


def test_statistics_files_are_read_as_written(tmp_path, extractor):
    features = np.random.default_rng(0).normal(size=(50, extractor.num_features))
    statistics = gaussian_statistics(features)
    path = tmp_path / "reference.npz"
    write_statistics(path, Reference(statistics=statistics))
    source = open_reference(path, 16, extractor)
    reference = compute(source, extractor, tmp_path / "cache.npz")
    np.testing.assert_array_equal(reference.statistics.mean, statistics.mean)
    np.testing.assert_array_equal(reference.statistics.covariance, statistics.covariance)
    assert reference.features is None
    assert not (tmp_path / "cache.npz").exists()


def test_a_sample_archive_gives_features_and_its_own_statistics_win(tmp_path, extractor):
    pixels = np.random.default_rng(0).integers(256, size=(9, 16, 16, 3), dtype=np.uint8)
    size = extractor.num_features
    path = tmp_path / "adm.npz"
    np.savez(path, arr_0=pixels, mu=np.full(size, 7.0), sigma=np.eye(size))
    reference = compute(open_reference(path, 16, extractor), extractor, tmp_path / "cache.npz")
    np.testing.assert_array_equal(reference.statistics.mean, np.full(size, 7.0))
    np.testing.assert_allclose(
        reference.features, features_of(extractor, pixels), rtol=1e-4, atol=1e-6
    )
    np.savez(path, arr_0=pixels)  # other reference, same place
    reference = compute(open_reference(path, 16, extractor), extractor, tmp_path / "cache.npz")
    expected = features_of(extractor, pixels).mean(0)
    np.testing.assert_allclose(reference.statistics.mean, expected, rtol=1e-4)


class TestSpatialFeatures:
    def test_of_images_are_computed_and_kept(self, run_folder, tmp_path, spatial_extractor):
        source = open_reference(run_folder / "data", 16, spatial_extractor)
        reference = compute(source, spatial_extractor, tmp_path / "cache.npz")
        pixels = pixels_of(run_folder / "data" / "train").transpose(0, 3, 1, 2)
        expected = gaussian_statistics(pixels.reshape(len(pixels), -1)[:, :6].astype(np.float32))
        np.testing.assert_allclose(reference.spatial.mean, expected.mean)
        np.testing.assert_allclose(reference.spatial.covariance, expected.covariance)
        again = compute(source, spatial_extractor, tmp_path / "cache.npz")
        np.testing.assert_array_equal(again.spatial.mean, reference.spatial.mean)
        np.testing.assert_array_equal(again.spatial.covariance, reference.spatial.covariance)

    def test_are_missing_in_a_cache_of_before_which_is_made_anew(
        self, run_folder, tmp_path, spatial_extractor
    ):
        path = tmp_path / "cache.npz"
        source = open_reference(run_folder / "data", 16, spatial_extractor)
        compute(source, spatial_extractor, path)
        with np.load(path) as content:
            older = {name: content[name] for name in content if name not in {"mu_s", "sigma_s"}}
        np.savez(path, **older)
        assert compute(source, spatial_extractor, path).spatial is not None
        assert read_statistics(path).spatial is not None

    def test_of_adms_files_are_taken_where_the_extractor_has_them(
        self, tmp_path, extractor, spatial_extractor
    ):
        size = extractor.num_features
        arrays = {"mu": np.zeros(size), "sigma": np.eye(size)}
        path = tmp_path / "adm.npz"
        np.savez(path, **arrays, mu_s=np.full(6, 2.0), sigma_s=3 * np.eye(6))
        found = compute(open_reference(path, 16, spatial_extractor), None, tmp_path / "c.npz")
        np.testing.assert_array_equal(found.spatial.mean, np.full(6, 2.0))
        np.testing.assert_array_equal(found.spatial.covariance, 3 * np.eye(6))
        assert compute(open_reference(path, 16, extractor), None, path).spatial is None
        np.savez(path, **arrays, mu_s=np.zeros(5), sigma_s=np.eye(5))
        with pytest.raises(ValueError, match=r"5 spatial features, but the .* gives 6"):
            open_reference(path, 16, spatial_extractor)
        np.savez(path, **arrays, mu_s=np.zeros(6), sigma_s=-np.eye(6))
        with pytest.raises(ValueError, match="negative eigenvalues"):
            open_reference(path, 16, spatial_extractor)


class TestRefused:
    def test_what_is_not_there(self, tmp_path, extractor):
        with pytest.raises(ValueError, match="no reference at"):
            open_reference(tmp_path / "absent.npz", 16, extractor)

    def test_another_feature_extractors_statistics(self, tmp_path, extractor):
        path = tmp_path / "inception.npz"
        np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
        with pytest.raises(ValueError, match=r"2048 features, but the feature extractor gives 8"):
            open_reference(path, 16, extractor)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"mu": np.zeros(3)}, "neither mu and sigma nor arr_0"),
            ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"\(3,\) and \(4, 4\)"),
            ({"mu": np.array([None]), "sigma": np.eye(1)}, "no .npz of reference statistics"),
            ({"mu": np.array([np.inf]), "sigma": np.eye(1)}, "not finite"),
            ({"mu": np.zeros(2), "sigma": 1j * np.eye(2)}, "real.*complex128"),
            ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, "the mean .* real.*int64"),
            ({"mu": np.zeros(2), "sigma": -np.eye(2, dtype=np.float32)}, "negative eigenvalues"),
            ({"mu": np.zeros(2), "sigma": np.tri(2)}, "symmetric"),
            ({"mu": np.zeros(1), "sigma": np.eye(1), "features": np.zeros(4)}, r"\(m, D\)"),
            (
                {"mu": np.zeros(1), "sigma": np.eye(1), "features": np.full((4, 1), np.nan)},
                "features of 4 of 4 images are not finite",
            ),
            ({"arr_0": np.zeros((4, 3, 16, 16), np.uint8)}, r"uint8 \(n, height, width, 3\)"),
            ({"arr_0": np.zeros((4, 16, 16, 3), np.float32)}, "float32"),
        ],
    )
    def test_other_content(self, tmp_path, arrays, message):
        path = tmp_path / "reference.npz"
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            read_statistics(path)

    def test_images_of_another_size(self, tmp_path, extractor):
        path = tmp_path / "adm.npz"
        np.savez(path, arr_0=np.zeros((4, 16, 20, 3), np.uint8))
        with pytest.raises(ValueError, match=r"of images of 20 pixels, and those .* have 16"):
            open_reference(path, 16, extractor)
        np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
        with pytest.raises(ValueError, match=r"of images of 8 pixels, and those .* have 16"):
            open_reference(path, 16, extractor)

    @pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
    def test_damaged_files(self, tmp_path, content):
        path = tmp_path / "reference.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"reference\.npz is no \.npz") as caught:
            read_statistics(path)
        assert "pickle" not in str(caught.value)  # nobody is to be told to trust a file

    def test_flipped_bits(self, tmp_path):
        path = tmp_path / "reference.npz"
        np.savez(path, mu=np.zeros(50), sigma=np.eye(50))
        content = bytearray(path.read_bytes())
        content[5000] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="CRC"):
            read_statistics(path)

    def test_damage_of_a_compressed_file(self, tmp_path):
        path = tmp_path / "reference.npz"
        np.savez_compressed(path, mu=np.zeros(50), sigma=np.diag(np.arange(1.0, 51)))
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            content = bytearray(whole)
            content[place] ^= 0xFF
            path.write_bytes(content)
            # What the archive does not need to be read may be damaged.
            with contextlib.suppress(InputError):
                read_statistics(path)

    def test_an_absurd_shape(self, tmp_path):
        header = io.BytesIO()
        shape = {"descr": "<f8", "fortran_order": False, "shape": (10**14,)}
        np.lib.format.write_array_header_1_0(header, shape)
        path = tmp_path / "reference.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mu.npy", header.getvalue())
            archive.writestr("sigma.npy", header.getvalue())
        with pytest.raises(InputError, match=r"reference\.npz is no \.npz"):
            read_statistics(path)

    @pytest.mark.parametrize("about", ["{", "[]", '{"img_size": [16]}'])
    def test_what_it_says_about_itself_is_none_of_it(self, tmp_path, extractor, about):
        path = tmp_path / "reference.npz"
        np.savez(path, mu=np.zeros(1), sigma=np.eye(1), about=np.array(about))
        with pytest.raises(InputError, match=r"reference\.npz is no \.npz"):
            open_reference(path, 16, extractor)

    def test_an_unreadable_image(self, run_folder, tmp_path, extractor):
        folder = tmp_path / "train" / "0"
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
        (folder / "1.png").write_bytes(b"no image")
        source = open_reference(tmp_path, 16, extractor)
        with pytest.raises(ValueError, match=r"1\.png"):
            compute(source, extractor, tmp_path / "cache.npz")
        assert not (tmp_path / "cache.npz").exists()

    def test_an_archive_of_images_of_another_size(self, tmp_path, extractor):
        path = tmp_path / "adm.npz"
        np.savez(path, arr_0=np.zeros((4, 16, 16, 3), np.uint8))
        with pytest.raises(ValueError, match="16 pixels, and those to compare with it have 32"):
            open_reference(path, 32, extractor)


class TestFlatFolders:
    def test_give_what_class_folders_of_the_same_images_give(self, run_folder, tmp_path, extractor):
        flat = tmp_path / "flat"
        flat.mkdir()
        for path in (run_folder / "data" / "train").glob("*/*.png"):
            shutil.copy(path, flat / f"{path.parent.name}_{path.name}")  # sorted as those are
        source = open_reference(run_folder / "data", 16, extractor)
        expected = compute(source, extractor, tmp_path / "a.npz")
        found = compute(open_reference(flat, 16, extractor), extractor, tmp_path / "b.npz")
        np.testing.assert_array_equal(found.statistics.covariance, expected.statistics.covariance)
        np.testing.assert_array_equal(found.features, expected.features)

    def test_beside_class_folders_are_refused(self, run_folder, extractor, tmp_path):
        shutil.copytree(run_folder / "data" / "train", tmp_path / "both")
        Image.new("RGB", (16, 16)).save(tmp_path / "both" / "grid.png")
        with pytest.raises(ValueError, match=r"holds images, such as grid\.png, and folders"):
            open_reference(tmp_path / "both", 16, extractor)

    def test_without_images_are_refused(self, extractor, tmp_path):
        with pytest.raises(ValueError, match="holds neither images"):
            open_reference(tmp_path, 16, extractor)
