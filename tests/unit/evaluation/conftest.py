"""A tiny run to evaluate: model, tokenizer, classifier and real images, in folders."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.evaluation.features.extractors import (
    Classifier,
    FeatureExtractor,
    Features,
    load_feature_extractor,
)
from lpd.evaluation.generated.making import ChunkMaker
from lpd.evaluation.generated.setting import EvalConfig
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD
from lpd.options import defaults, from_flat
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import save_pretrained

CPU = torch.device("cpu")
SWEPT = {name for name, value in defaults(EvalConfig).items() if isinstance(value, tuple)}


@pytest.fixture(scope="session")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: LPD,
    make_classifier: Callable[[], Classifier],
) -> Path:
    """A folder with model/, tokenizer/, classifier/ and data/train/CLASS/*.png."""
    root = tmp_path_factory.mktemp("run")
    save_pretrained(root / "model", tiny_model, tiny_model.config)
    torch.manual_seed(1)
    tokenizer_config = VQGANConfig(
        ch=8,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        z_channels=8,
        codebook_size=tiny_model.config.vocab_size,
        codebook_embed_dim=4,
        norm_groups=4,
    )
    save_pretrained(root / "tokenizer", VQGAN(tokenizer_config), tokenizer_config)
    make_classifier().save(root / "classifier")
    generator = np.random.default_rng(0)
    for label in range(3):
        folder = root / "data" / "train" / str(label)
        folder.mkdir(parents=True)
        for index in range(8):
            pixels = generator.integers(256, size=(20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def make_generator(run_folder: Path, tiny_model: LPD) -> Callable[[int], ImageGenerator]:
    """Makes a generator of the run, for a batch size."""
    tokenizer = VQTokenizer.from_pretrained(run_folder / "tokenizer", CPU)
    return lambda batch_size: ImageGenerator(tiny_model, tokenizer, batch_size=batch_size)


@pytest.fixture(scope="session")
def extractor(run_folder: Path) -> FeatureExtractor:
    """The run's classifier."""
    return load_feature_extractor(str(run_folder / "classifier"), CPU)


@pytest.fixture(scope="session")
def spatial_extractor(extractor: FeatureExtractor) -> FeatureExtractor:
    """The run's classifier, and a few pixels as spatial features."""

    class Spatial:
        fingerprint, num_classes = "with pixels", extractor.num_classes
        num_features, num_spatial = extractor.num_features, 6

        def __call__(self, images: torch.Tensor) -> Features:
            pixels = images.flatten(1)[:, :6].float()
            return dataclasses.replace(extractor(images), spatial=pixels)

    return Spatial()


@pytest.fixture(scope="session")
def make_maker(
    make_generator: Callable[[int], ImageGenerator], extractor: FeatureExtractor
) -> Callable[..., ChunkMaker]:
    """Makes what makes the run's chunks, for a batch size."""

    def make(batch_size: int) -> ChunkMaker:
        return ChunkMaker(make_generator(batch_size), extractor)

    return make


@pytest.fixture
def make_config(run_folder: Path, tmp_path: Path) -> Callable[..., EvalConfig]:
    """Makes a configuration of a small sweep; arguments replace its values."""

    def make(**changes: Any) -> EvalConfig:
        values: dict[str, Any] = {
            "pretrained_ckpt": run_folder / "model",
            "vqgan_path": run_folder / "tokenizer",
            "output_dir": tmp_path / "out",
            "img_size": 16,
            "num_images": 24,
            "eval_bsz": 5,
            "chunk_size": 10,
            "order": ("raster", "lpd"),
            "generation_steps": (16, 4),
            "cfg": 1.5,
            "feature_extractor": str(run_folder / "classifier"),
            "reference": run_folder / "data",
            "num_workers": 0,
            "device": "cpu",
        }
        values |= changes
        for name in set(values) & SWEPT:
            if not isinstance(values[name], tuple):
                values[name] = (values[name],)
        return from_flat(EvalConfig, values)

    return make


@pytest.fixture
def count_generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images generated so far."""
    generated: list[int] = []
    prepared: dict[int, Any] = {}
    prepare, run = ImageGenerator.prepare, ImageGenerator.run

    def noting(self, *args, image_indices, **kwargs):
        inputs = prepare(self, *args, image_indices=image_indices, **kwargs)
        prepared[id(inputs)] = image_indices
        return inputs

    def counting(self, inputs):
        generated.extend(prepared.pop(id(inputs)))
        return run(self, inputs)

    monkeypatch.setattr(ImageGenerator, "prepare", noting)
    monkeypatch.setattr(ImageGenerator, "run", counting)
    return generated
