"""Images that are there already, on a GPU: what a CPU tells of them, and the same bits again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.distributed import World
from lpd.evaluation.features.extractors import Classifier
from lpd.evaluation.images.modes import ReconstructConfig, SamplesConfig
from lpd.evaluation.images.reconstruction import run_reconstruction
from lpd.evaluation.images.samples import run_samples
from lpd.options import from_flat

pytestmark = pytest.mark.gpu

CPU, GPU = World(), World(device=torch.device("cuda", 0))


@pytest.fixture
def options(
    make_classifier: Callable[[], Classifier], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Makes flags for an output folder; beside it are 100 images of 16 pixels."""
    make_classifier().save(tmp_path / "classifier")
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(100):
        pixels = generator.integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:03d}.png")
    return lambda name: {
        "output_dir": tmp_path / name,
        "feature_extractor": str(tmp_path / "classifier"),
        "num_workers": 0,
    }


def test_samples(options: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def run(name: str, world: World) -> dict[str, Any]:
        flags = {"samples": tmp_path / "images", "reference": tmp_path / "images"}
        return run_samples(from_flat(SamplesConfig, {**options(name), **flags}), world)

    cpu, first, again = run("cpu", CPU), run("first", GPU), run("again", GPU)
    assert first["metrics"] == again["metrics"]
    assert first["pixels"] == cpu["pixels"]
    assert first["metrics"]["fid"] == pytest.approx(0, abs=1e-6)  # of images with themselves
    expected = pytest.approx(cpu["metrics"]["inception_score"], rel=1e-4)
    assert first["metrics"]["inception_score"] == expected


def test_reconstructions(
    options: Callable[..., dict[str, Any]], tokenizer_folder: Path, tmp_path: Path
) -> None:
    def run(name: str, world: World) -> dict[str, Any]:
        flags = {"vqgan_path": tokenizer_folder, "data_path": tmp_path / "images", "img_size": 16}
        return run_reconstruction(from_flat(ReconstructConfig, {**options(name), **flags}), world)

    cpu, first = run("cpu", CPU), run("first", GPU)
    # A code that nearly ties may be another one.
    assert first["psnr"] == pytest.approx(cpu["psnr"], rel=1e-2)
    assert first["ssim"] == pytest.approx(cpu["ssim"], abs=1e-2)
    assert first["perplexity"] == pytest.approx(cpu["perplexity"], rel=2e-2)
