import argparse
import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels
from lpd.weights import load_state_dict_file

CPU = torch.device("cpu")


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> VQTokenizer:
    return VQTokenizer.from_pretrained(tokenizer_folder, CPU)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_codes_come_from_the_whole_vocabulary(tokenizer: VQTokenizer, images) -> None:
    assert (tokenizer.stride, tokenizer.vocab_size) == (4, 24)
    codes = tokenizer.encode(images)
    assert codes.dtype == torch.int64
    assert codes.shape == (3, tokenizer.num_positions(16))
    assert len(codes.unique()) > 10


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "args": argparse.Namespace(codebook_size=24)},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}, "steps": 7},
        lambda state: {"model": {**state, "quantize.codebook_used": torch.zeros(65536)}},
        lambda state: {
            "model": state,
            "ema": {key: value + 1 for key, value in state.items()},
            "optimizer": {
                "state": {0: {"step": torch.tensor(7.0)}},
                "param_groups": [{"lr": 1e-4}],
            },
            "discriminator": {"conv.weight": torch.zeros(3)},
            "steps": 7,
            "args": argparse.Namespace(vq_model="VQ-16"),
        },
    ],
    ids=["bare", "args", "ddp", "compiled", "usage buffer", "a whole training"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_every_wrapping_gives_the_same_tokenizer(
    tokenizer_folder: Path, tokenizer: VQTokenizer, images, tmp_path: Path, wrap, suffix: str
) -> None:
    file = tmp_path / f"vq{suffix}"
    torch.save(wrap(load_state_dict_file(tokenizer_folder)), file)
    shutil.copy(tokenizer_folder / "config.json", tmp_path)
    other = VQTokenizer.from_pretrained(file, CPU)
    assert other.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() != tokenizer.sha256
    codes = tokenizer.encode(images)
    assert torch.equal(other.encode(images), codes)
    assert torch.equal(other.decode(codes), tokenizer.decode(codes))


def test_images_need_not_be_square(tokenizer: VQTokenizer) -> None:
    wide = torch.rand(2, 3, 8, 24) * 2 - 1
    codes = tokenizer.encode(wide)
    assert tokenizer.decode(codes, (2, 6)).shape == wide.shape
    with pytest.raises(ValueError, match=r"12 codes per image do not fill a grid of 3 x 3"):
        tokenizer.decode(codes)
    with pytest.raises(ValueError, match=r"12 codes per image do not fill a grid of 3 x 5"):
        tokenizer.decode(codes, (3, 5))


def test_batch_size_does_not_change_an_image(tokenizer: VQTokenizer, images) -> None:
    codes = tokenizer.encode(images)
    one_by_one = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(codes, one_by_one)


def test_image_sizes_off_the_stride_are_refused(tokenizer: VQTokenizer) -> None:
    assert tokenizer.num_positions(32) == 64
    with pytest.raises(ValueError, match=r"image size 30 is not a multiple .* stride 4"):
        tokenizer.num_positions(30)


def test_other_models_codes_are_refused(tokenizer: VQTokenizer) -> None:
    tokenizer.check_fits(vocab_size=24, stride=4)
    with pytest.raises(ValueError, match=r"tokenizer has 24 codes of 4 x 4 .* expects 24 .* 8 x 8"):
        tokenizer.check_fits(vocab_size=24, stride=8)
    with pytest.raises(ValueError, match="expects 16384 codes"):
        tokenizer.check_fits(vocab_size=16384, stride=4)


def test_weights_that_do_not_fit_are_named(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no weight file at .*nothing\.pt"):
        VQTokenizer.from_pretrained(tmp_path / "nothing.pt", CPU)
    # Without a config.json the weights are taken for the published VQ-16, which these are not.
    shutil.copy(tokenizer_folder / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit this VQGAN"):
        VQTokenizer.from_pretrained(tmp_path, CPU)


def test_pixels_are_clamped_and_rounded() -> None:
    values = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.5, 1.0, 1.7])
    # (x + 1) / 2 * 255 = 0, 0, 0.1275, 127.5 (to even), 191.25, 255, 255
    expected = torch.tensor([0, 0, 0, 128, 191, 255, 255], dtype=torch.uint8)
    assert torch.equal(to_pixels(values), expected)


def test_the_published_rounding_is_in_the_decoders_dtype() -> None:
    """In bfloat16 numbers from 1 to 2 are 1/128 apart: half of these are on the way to a pixel."""
    values = torch.tensor([-1.0, -0.5, 0.0, 1 / 256, 3 / 256, 0.5, 1 - 1 / 256, 1.0])
    # x + 1 is exact, or rounded to a multiple of 1/128 (to even): 1, 1 + 2/128, ..., 2.
    expected = (
        torch.tensor([0, 0.5, 1, 1, 1 + 2 / 128, 1.5, 2, 2]).mul(127.5).round().to(torch.uint8)
    )
    assert torch.equal(to_pixels(values, torch.bfloat16), expected)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(100_000, generator=generator) * 2 - 1).bfloat16()
    differ = (to_pixels(images).int() - to_pixels(images, torch.bfloat16).int()).abs()
    assert differ.max() == 1
    assert 0.05 < differ.float().mean() < 0.3
