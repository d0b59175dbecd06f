"""What a tokenizer loses, against its parts used by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.data.images import index_any_images, load_pixels
from lpd.data.transforms import normalize_
from lpd.distributed import World
from lpd.evaluation.features.extractors import load_feature_extractor
from lpd.evaluation.images import parts, quality, reconstruction
from lpd.evaluation.images.modes import ReconstructConfig
from lpd.evaluation.images.reconstruction import run_reconstruction
from lpd.evaluation.measures.metrics import frechet_distance
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.options import from_flat
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_IMAGES", 5)


@pytest.fixture
def make_config(run_folder, tokenizer_folder, tmp_path):
    def make(**changes):
        values = {
            "vqgan_path": tokenizer_folder, "data_path": run_folder / "data" / "train",
            "output_dir": tmp_path / "out", "img_size": 16, "num_workers": 0, "device": "cpu",
            "feature_extractor": str(run_folder / "classifier"),
        }  # fmt: skip
        return from_flat(ReconstructConfig, {**values, **changes})

    return make


def test_numbers_are_those_of_codes_and_images_by_hand(
    make_config, run_folder, tokenizer_folder, tmp_path, extractor
):
    found = run_reconstruction(make_config(), World())
    pixels = load_pixels(index_any_images(run_folder / "data" / "train"), 16)
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, CPU)
    codes = tokenizer.encode(normalize_(pixels.float()))
    images = to_pixels(tokenizer.decode(codes)).contiguous()
    features, others = (extractor(each).features.numpy() for each in (images, pixels))
    fid = frechet_distance(gaussian_statistics(others), gaussian_statistics(features))
    assert found["metrics"]["fid"] == pytest.approx(fid, rel=1e-3)
    assert fid > 0
    error = (images.double() - pixels.double()).square().mean(dim=(1, 2, 3))
    decibels = 10 * torch.log10(255**2 / error)
    assert found["psnr"] == pytest.approx(decibels.mean().item(), rel=1e-6)
    mean_error = 10 * torch.log10(255**2 / error.mean()).item()
    assert found["psnr_of_mean_mse"] == pytest.approx(mean_error, rel=1e-6)
    similarity = quality.structural_similarity(pixels, images)
    assert found["ssim"] == pytest.approx(similarity.mean().item(), rel=1e-6)
    counts = np.bincount(codes.flatten(), minlength=24)
    assert found["codes_used"] == (counts > 0).mean()
    assert found["perplexity"] == pytest.approx(quality.perplexity(counts))
    labels = torch.arange(3).repeat_interleave(8)
    accuracy = (extractor(images).logits.argmax(1) == labels).double().mean().item()
    assert found["metrics"]["class_accuracy"] == pytest.approx(accuracy)
    assert found["lpips"] is None
    picture = np.asarray(Image.open(tmp_path / "out" / "reconstructions.png"))
    np.testing.assert_array_equal(picture[2:18, 2:18], pixels[0].permute(1, 2, 0))
    np.testing.assert_array_equal(picture[20:36, 2:18], images[0].permute(1, 2, 0))


def test_spatial_features_and_classes_by_another_classifier(
    make_config, run_folder, tokenizer_folder, monkeypatch, spatial_extractor, make_classifier,
    tmp_path,
):  # fmt: skip
    monkeypatch.setattr(reconstruction, "load_feature_extractor", lambda *_: spatial_extractor)
    torch.manual_seed(9)
    make_classifier().save(tmp_path / "judge")
    found = run_reconstruction(make_config(classifier=str(tmp_path / "judge")), World())
    pixels = load_pixels(index_any_images(run_folder / "data" / "train"), 16)
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, CPU)
    images = to_pixels(tokenizer.decode(tokenizer.encode(normalize_(pixels.float())))).contiguous()
    original, spatial = (
        gaussian_statistics(spatial_extractor(each).spatial.numpy()) for each in (pixels, images)
    )
    assert found["metrics"]["sfid"] == pytest.approx(frechet_distance(original, spatial), rel=1e-6)
    judge = load_feature_extractor(str(tmp_path / "judge"), CPU)
    labels = torch.arange(3).repeat_interleave(8)
    accuracy = (judge(images).logits.argmax(1) == labels).double().mean().item()
    assert found["metrics"]["class_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(make_config, tmp_path, in_threads, size):
    alone = run_reconstruction(make_config(), World())
    config = make_config(output_dir=tmp_path / "together")
    assert in_threads(lambda world: run_reconstruction(config, world), size) == [alone] * size


def test_a_complete_folder_is_reported_again(make_config, monkeypatch, capsys):
    first = run_reconstruction(make_config(), World())
    table = capsys.readouterr().out
    monkeypatch.setattr(reconstruction, "make_parts", None)
    assert run_reconstruction(make_config(), World()) == first
    assert capsys.readouterr().out == table
    assert "rFID" in table
    assert "LPIPS is left empty: the package lpips is not installed" in table


def test_lpips_is_the_mean_of_its_package(make_config, monkeypatch):
    def distances(images, others):
        return (images.float() - others.float()).abs().mean(dim=(1, 2, 3)) / 255

    monkeypatch.setattr(quality, "load_lpips", lambda _device: (distances, "lpips 0"))
    found = run_reconstruction(make_config(), World())
    assert 0 < found["lpips"] < 1


def test_images_that_come_back_exactly_are_counted(make_config, monkeypatch):
    """Their PSNR is infinite: no mean has it."""
    whole = reconstruction.Reconstructor.__call__

    def with_exact(self, pixels):
        codes, images = whole(self, pixels)
        images[0] = pixels[0]  # of each of the blocks of 5
        return codes, images

    monkeypatch.setattr(reconstruction.Reconstructor, "__call__", with_exact)
    found = run_reconstruction(make_config(), World())
    assert found["exact_images"] == 5
    assert np.isfinite(found["psnr"])


class TestRefused:
    def test_a_size_that_is_no_multiple_of_the_stride(self, make_config, tmp_path):
        with pytest.raises(ValueError, match="not a multiple of the tokenizer's stride"):
            run_reconstruction(make_config(img_size=18), World())
        assert not (tmp_path / "out").exists()

    def test_one_image(self, make_config, tmp_path):
        (tmp_path / "one").mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / "one" / "0.png")
        with pytest.raises(ValueError, match="holds one image"):
            run_reconstruction(make_config(data_path=tmp_path / "one"), World())

    def test_an_unreadable_image(self, make_config, tmp_path):
        (tmp_path / "some").mkdir()
        for number in range(3):
            Image.new("RGB", (16, 16)).save(tmp_path / "some" / f"{number}.png")
        (tmp_path / "some" / "1.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"cannot read the image .*1\.png"):
            run_reconstruction(make_config(data_path=tmp_path / "some"), World())

    def test_the_folder_of_another_tokenizer(self, make_config, run_folder):
        run_reconstruction(make_config(), World())
        with pytest.raises(ValueError, match=r"vqgan_path was .*give another --output_dir"):
            run_reconstruction(make_config(vqgan_path=run_folder / "tokenizer"), World())
