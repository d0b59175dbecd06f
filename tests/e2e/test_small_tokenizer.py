"""The quickstart's digits and small tokenizer: the programs of scripts/quickstart."""

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.data.images import index_images, load_pixels
from lpd.errors import InputError
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGANConfig
from scripts.quickstart import make_digits, train_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    make_digits.make_digits(make_digits.DigitsConfig(data_path=path, img_size=16))
    return path


def make_config(digits: Path, output: Path, **changes):
    values = {
        "data_path": digits,
        "output_dir": output,
        "img_size": 16,
        "network": VQGANConfig(
            ch=4,
            ch_mult=(1, 1, 2),
            num_res_blocks=1,
            z_channels=4,
            codebook_size=16,
            codebook_embed_dim=4,
            norm_groups=2,
        ),
        "num_steps": 24,
        "batch_size": 4,
        "restart_every": 3,
        "checkpoint_every": 5,
    }
    return train_tokenizer.TokenizerConfig(**{**values, **changes})


def test_every_digit_is_there_once(digits: Path) -> None:
    train, val = index_images(digits / "train"), index_images(digits / "val")
    assert len(train.files) + len(val.files) == 1797
    assert train.class_names == val.class_names == tuple("0123456789")
    assert not set(train.files) & set(val.files)
    # Stratified: every class holds out a sixth, rounded down.
    for label in range(10):
        held_out, kept = (val.labels == label).sum(), (train.labels == label).sum()
        assert held_out == (held_out + kept) // 6
    picture = np.asarray(Image.open(digits / "train" / "0" / "001.png"))
    assert picture.shape == (16, 16, 3)
    assert picture[8, 8].max() < 50 < picture[8].max()  # the inside of a zero is dark


def test_complete_digits_are_left_alone(digits: Path, capsys) -> None:
    file = digits / "train" / "0" / "001.png"
    before = file.stat().st_mtime_ns
    make_digits.make_digits(make_digits.DigitsConfig(data_path=digits, img_size=16))
    assert "complete" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"img_size was 16, now 24.*another --data_path"):
        make_digits.make_digits(make_digits.DigitsConfig(data_path=digits, img_size=24))


def test_interrupted_training_ends_in_the_same_weights(digits: Path, tmp_path: Path) -> None:
    train_tokenizer.train_tokenizer(make_config(digits, tmp_path / "whole"))
    config = make_config(digits, tmp_path / "part")
    step = train_tokenizer.Trainer.train_step

    def interrupted_at(stop: int):
        def train_step(self) -> float:
            if self.step == stop:
                raise KeyboardInterrupt
            return step(self)

        return train_step

    # Before and after the codebook starts at step 4, and after codes have moved.
    for stop in (3, 7, 18):
        with (
            mock.patch.object(train_tokenizer.Trainer, "train_step", interrupted_at(stop)),
            pytest.raises(KeyboardInterrupt),
        ):
            train_tokenizer.train_tokenizer(config)
    with pytest.raises(InputError, match=r"checkpoint\.pt was made otherwise \(seed was 0, now 1"):
        train_tokenizer.train_tokenizer(dataclasses.replace(config, seed=1))
    train_tokenizer.train_tokenizer(config)
    logs = [json.loads((tmp_path / n / "training.json").read_text()) for n in ("whole", "part")]
    assert len(logs[0]["losses"]) == 24
    assert logs[0]["losses"] == logs[1]["losses"]
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "part")]
    assert weights[0] == weights[1]
    assert {file.name for file in (tmp_path / "part").iterdir()} == {
        *("config.json", "model.safetensors", "training.json"),
    }


def test_cells_are_weighed_by_their_contrast(digits: Path, tmp_path: Path) -> None:
    image = torch.zeros(2, 3, 8, 8)
    image[0, :, :4, 4:] = 0.5  # plain, though not black
    image[1, :, 4:, :4] = torch.tensor([1.0, -1.0]).repeat(8).view(4, 4)
    image[1, :, 4:, 4:] = torch.tensor([0.5, -0.5]).repeat(8).view(4, 4)
    shares = train_tokenizer.contrast_of_cells(image, 4)
    plain, half, whole = 0.001, 0.501, 1.001
    expected = torch.tensor([plain] * 6 + [whole, half], dtype=torch.float64)
    torch.testing.assert_close(shares, expected / expected.sum())
    assert (train_tokenizer.contrast_of_cells(torch.ones(1, 3, 8, 8), 4) == 0.25).all()
    trainer = train_tokenizer.Trainer(
        make_config(digits, tmp_path, contrast_start=True),
        load_pixels(index_images(digits / "val"), 16),
    )
    for _ in range(6):
        assert np.isfinite(trainer.train_step())


def test_trained_folder_is_a_tokenizer_and_stays(digits: Path, tmp_path: Path, capsys) -> None:
    config = make_config(digits, tmp_path / "out", num_steps=60, batch_size=8)
    train_tokenizer.train_tokenizer(config)
    tokenizer = VQTokenizer.from_pretrained(tmp_path / "out", torch.device("cpu"))
    assert (tokenizer.vocab_size, tokenizer.stride) == (16, 4)
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log["codebook_usage"] > 0.5
    assert np.mean(log["losses"][-4:]) < 0.5 * np.mean(log["losses"][:4])
    with mock.patch.object(train_tokenizer, "Trainer", side_effect=AssertionError("trained again")):
        train_tokenizer.train_tokenizer(config)
    assert "complete" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"lr was 0\.003, now 1\.0.*remove it or give another"):
        train_tokenizer.train_tokenizer(make_config(digits, tmp_path / "out", lr=1.0))


def test_bad_input_is_named(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere/train"):
        train_tokenizer.train_tokenizer(make_config(tmp_path / "nowhere", tmp_path / "out"))
    shutil.copytree(digits, tmp_path / "copy")
    (tmp_path / "copy" / "val" / "3" / "006.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"val/3/006\.png: .*; remove the file"):
        train_tokenizer.train_tokenizer(make_config(tmp_path / "copy", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged; remove it"):
        train_tokenizer.train_tokenizer(make_config(digits, tmp_path / "out"))
    for change, words in (
        ({"img_size": 18}, "img_size 18 is not a multiple of the network's stride 4"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"continuous_share": 1.0}, "continuous_share must be at least 0 and below 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"seed": -1}, "seed must be from 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make_config(digits, tmp_path / "out", **change)
