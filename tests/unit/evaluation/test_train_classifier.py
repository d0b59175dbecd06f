"""The quickstart's classifier: augmentation, and a folder that evaluation can use."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.evaluation.features.extractors import load_feature_extractor
from lpd.files import read_json
from scripts.quickstart import train_classifier


@pytest.fixture
def config(tmp_path):
    """Two classes that any classifier tells apart: dark and bright noise."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 10)):
        for name, low in (("bright", 128), ("dark", 0)):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(low, low + 128, size=(16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return train_classifier.TrainClassifierConfig(
        data_path=tmp_path / "data",
        output_dir=tmp_path / "out",
        img_size=16,
        epochs=3,
        batch_size=16,
        device="cpu",
    )


def test_shift_moves_each_image_and_repeats_its_border():
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    moved = train_classifier.shift(images, 2, torch.Generator().manual_seed(0))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    offsets = set()
    for image, wide in zip(moved.numpy(), padded, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if (wide[:, row : row + 8, column : column + 8] == image).all()
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 8  # images move differently, in both directions
    assert torch.equal(train_classifier.shift(images, 0, torch.Generator()), images)


def test_trains_a_folder_that_evaluation_reads_and_leaves_it_alone(config, capsys):
    train_classifier.run(config)
    weights = config.output_dir / "model.safetensors"
    first = weights.read_bytes()
    assert read_json(config.output_dir / "accuracy.json")["accuracy"] == 1.0
    extractor = load_feature_extractor(str(config.output_dir), torch.device("cpu"))
    bright = torch.full((1, 3, 16, 16), 192, dtype=torch.uint8)
    assert extractor(bright).logits.argmax() == 0
    assert extractor(bright // 4).logits.argmax() == 1

    modified = weights.stat().st_mtime_ns
    train_classifier.run(config)  # complete
    assert weights.stat().st_mtime_ns == modified
    assert "complete" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another --output_dir"):
        train_classifier.run(dataclasses.replace(config, seed=1))
    weights.unlink()  # as an interrupt leaves it
    train_classifier.run(config)
    assert weights.read_bytes() == first  # the seed decides everything
