"""main_cache.py with captions and a text encoder, as users start it."""

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.data import code_cache
from lpd.data.published_cache import open_cache
from lpd.texts.encoders import TextEncoder
from lpd.texts.features import OnlineFeatures, open_features

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 7


@pytest.fixture(autouse=True)
def _small_shards() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with mock.patch.object(code_cache, "SHARD_IMAGES", 3):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def flags(tmp_path: Path, tokenizer_folder: Path) -> list[str]:
    """The command's flags but for the encoder; seven images of noise with two captions each."""
    root = tmp_path / "images" / "train"
    root.mkdir(parents=True)
    random = np.random.default_rng(0)
    for row in range(NUM_IMAGES):
        image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.save(root / f"{row}.png")
        (root / f"{row}.txt").write_text(f"a red {row}\nthe same\n")
    return [
        *("--img_size", "8", "--batch_size", "3", "--num_workers", "0", "--device", "cpu"),
        *("--data_path", str(root.parent), "--vqgan_path", str(tokenizer_folder)),
        *("--captions", "txt"),
    ]


@pytest.fixture
def encoder_flags(text_encoder_folder: Callable[[str], Path]) -> list[str]:
    return ["--text_encoder", str(text_encoder_folder("t5")), "--text_length", "8"]


def main_cache(*flags: object) -> object:
    """Run the program in this process; returns its exit code."""
    with mock.patch.object(sys, "argv", ["main_cache.py", *map(str, flags)]):
        try:
            runpy.run_path(str(ROOT / "main_cache.py"), run_name="__main__")
        except SystemExit as exit_:
            return exit_.code
    return 0


def end_with_its_exit_code(*flags: object) -> None:
    sys.exit(main_cache(*flags))


def content(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_two_processes_give_the_bytes_of_one_and_of_two_commands(
    flags: list[str],
    encoder_flags: list[str],
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
    text_encoder_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_cache(*flags, "--cached_path", tmp_path / "one") == 0
    codes_alone = content(tmp_path / "one")
    # A cache that is complete already gets features.
    assert main_cache(*flags, *encoder_flags, "--cached_path", tmp_path / "one") == 0
    out = capsys.readouterr().out
    assert "is complete: 7 images" in out
    assert "cached the features of 14 captions" in out
    assert "7 of them have more than 8 tokens and were cut" in out  # "the same" has 9
    one = content(tmp_path / "one")
    assert codes_alone.items() <= one.items()
    assert len(one) == len(codes_alone) + 4  # three shards and what they are of

    exits, outputs = in_two_processes(
        end_with_its_exit_code, *flags, *encoder_flags, "--cached_path", tmp_path / "two"
    )
    assert exits == [0, 0], outputs
    assert [each.count("cached the features of 14 captions") for each in outputs] == [1, 0]
    assert content(tmp_path / "two") == one

    cache = open_cache(tmp_path / "two")
    encoder = TextEncoder.from_pretrained(
        text_encoder_folder("t5"), torch.device("cpu"), max_length=8
    )
    stored, online = open_features(cache), OnlineFeatures(cache, encoder)
    rows, which = np.arange(NUM_IMAGES), np.arange(NUM_IMAGES) % 2
    for one_, other in zip(stored.get(rows, which), online.get(rows, which), strict=True):
        assert torch.equal(one_, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--text_encoder", "{nothing}"], "is no text encoder: it holds no config.json"),
        (["--text_layer", "9"], "there is no text_layer 9"),
        (["--text_length", "1"], "leaves no room for a text"),
        (["--text_length", "0"], "text_length must be from 1 to 4096"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    changes: list[str],
    message: str,
    flags: list[str],
    encoder_flags: list[str],
    tmp_path: Path,
    said: Callable[[], str],
) -> None:
    changes = [each.format(nothing=tmp_path) for each in changes]
    cached_path = tmp_path / "cache"
    assert main_cache(*flags, *encoder_flags, *changes, "--cached_path", cached_path) == 2
    assert message in said()
    assert not cached_path.exists()


def test_an_encoder_without_captions(
    flags: list[str], encoder_flags: list[str], tmp_path: Path, said: Callable[[], str]
) -> None:
    without = flags[: flags.index("--captions")]
    assert main_cache(*without, *encoder_flags, "--cached_path", tmp_path / "cache") == 2
    assert "text_encoder encodes captions, and none are named" in said()
    length = encoder_flags[2:]
    assert main_cache(*flags, *length, "--cached_path", tmp_path / "cache") == 2
    assert "text_length and text_layer are of a text encoder: name it" in said()
    assert not (tmp_path / "cache").exists()
