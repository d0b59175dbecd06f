"""Statistics of a data set of one's own: they give what the folder itself gives."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lpd.distributed import World
from lpd.evaluation.images import custom_reference, parts, samples
from lpd.evaluation.images.custom_reference import run_make_reference
from lpd.evaluation.images.modes import MakeReferenceConfig, SamplesConfig
from lpd.evaluation.images.references import open_reference
from lpd.evaluation.images.samples import run_samples
from lpd.evaluation.images.statistics_file import read_statistics
from lpd.options import from_flat


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_IMAGES", 5)


@pytest.fixture
def make_config(run_folder, tmp_path):
    def make(data=run_folder / "data", file=tmp_path / "reference.npz", **changes):
        values = {
            "make_reference": (data, file), "img_size": 16, "num_workers": 0, "device": "cpu",
            "feature_extractor": str(run_folder / "classifier"),
        }  # fmt: skip
        return from_flat(MakeReferenceConfig, {**values, **changes})

    return make


@pytest.mark.parametrize("is_spatial", [False, True])
def test_the_file_gives_the_numbers_of_the_folder(
    make_config, run_folder, tmp_path, monkeypatch, spatial_extractor, is_spatial
):
    if is_spatial:
        for module in (custom_reference, samples):
            monkeypatch.setattr(module, "load_feature_extractor", lambda *_: spatial_extractor)
    run_make_reference(make_config(), World())
    (tmp_path / "samples").mkdir()
    pixels = np.random.default_rng(1).integers(256, size=(30, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "samples" / f"{number:02d}.png")

    def numbers(reference, output):
        config = from_flat(
            SamplesConfig,
            {
                "samples": tmp_path / "samples", "output_dir": tmp_path / output,
                "reference": reference, "feature_extractor": str(run_folder / "classifier"),
                "num_workers": 0, "device": "cpu",
            },
        )  # fmt: skip
        return run_samples(config, World())["metrics"]

    of_file = numbers(tmp_path / "reference.npz", "a")
    assert of_file == numbers(run_folder / "data", "b")  # bit by bit
    assert of_file["recall"] is not None
    assert of_file["kid"] is not None
    assert (of_file["sfid"] is not None) == is_spatial


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(make_config, tmp_path, in_threads, size):
    run_make_reference(make_config(), World())
    config = make_config(file=tmp_path / "together.npz")
    in_threads(lambda world: run_make_reference(config, world), size)
    with np.load(tmp_path / "reference.npz") as alone, np.load(config.make_reference[1]) as found:
        assert set(alone) == set(found) >= {"mu", "sigma", "features", "about"}
        for name in alone:
            np.testing.assert_array_equal(found[name], alone[name])


def test_the_file_says_what_it_is_of(make_config, run_folder, tmp_path, extractor):
    run_make_reference(make_config(), World())
    about = read_statistics(tmp_path / "reference.npz").about
    assert about["num_images"] == 24
    assert about["img_size"] == 16
    assert about["extractor"] == extractor.fingerprint
    assert about["duplicates"] == 0
    assert "center crop" in about["preparation"]
    assert about["versions"]["pillow"]
    # Of the images that are seen, whatever their files are called.
    renamed = tmp_path / "renamed"
    shutil.copytree(run_folder / "data" / "train", renamed)
    (renamed / "0" / "7.png").rename(renamed / "0" / "8.png")
    run_make_reference(make_config(renamed, tmp_path / "renamed.npz"), World())
    other = read_statistics(tmp_path / "renamed.npz").about
    assert other["pixels"] == about["pixels"]
    assert other["images"] != about["images"]


def test_the_same_command_leaves_the_file_and_another_is_refused(
    make_config, run_folder, tmp_path, capsys
):
    run_make_reference(make_config(), World())
    content = (tmp_path / "reference.npz").read_bytes()
    run_make_reference(make_config(), World())
    assert "is complete: 24 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"img_size was 16, now 8.*give another name"):
        run_make_reference(make_config(img_size=8), World())
    assert (tmp_path / "reference.npz").read_bytes() == content


class TestRefused:
    def test_a_file_of_another_size_or_extractor(
        self, make_config, run_folder, tmp_path, extractor
    ):
        run_make_reference(make_config(), World())
        file = tmp_path / "reference.npz"
        with pytest.raises(ValueError, match="images of 16 pixels, and those to compare with it"):
            open_reference(file, 32, extractor)
        with np.load(file) as content:
            arrays = dict(content)
        about = json.loads(str(arrays["about"])) | {"extractor": "classifier 0000"}
        np.savez(file, **{**arrays, "about": np.array(json.dumps(about))})
        with pytest.raises(ValueError, match="made with another feature extractor: with"):
            open_reference(file, 16, extractor)

    def test_statistics_where_images_are_wanted(self, make_config, tmp_path):
        run_make_reference(make_config(), World())
        with pytest.raises(ValueError, match="holds statistics, and no images"):
            run_make_reference(make_config(tmp_path / "reference.npz", tmp_path / "b.npz"), World())

    def test_a_file_that_is_none_of_this_programs(self, make_config, tmp_path, extractor):
        size = extractor.num_features
        np.savez(tmp_path / "reference.npz", mu=np.zeros(size), sigma=np.eye(size))
        with pytest.raises(ValueError, match="was made otherwise"):
            run_make_reference(make_config(), World())

    def test_another_suffix(self, make_config, tmp_path):
        with pytest.raises(ValueError, match=r"must end in \.npz"):
            make_config(file=tmp_path / "reference.npy")
