"""main_cache.py as users start it: in one process, in two that form a group, and its mistakes.

Shards are made small here, so that a few images fill several. The two processes are forks of this
one, told who they are as torchrun tells them: they see the small shards, need not import torch
again, and meet through Gloo like any others.
"""

import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from lpd.data import code_cache

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 18
SHARDS = ["codes_00000.npy", "codes_00001.npy", "codes_00002.npy", "codes_00003.npy"]
INDEX = ["files.txt", "labels.npy", "meta.json"]


@pytest.fixture(autouse=True)
def _small_shards() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with mock.patch.object(code_cache, "SHARD_IMAGES", 5):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """18 images of noise in two classes: four shards, the last one shorter."""
    root = tmp_path / "images"
    random = np.random.default_rng(0)
    for row in range(NUM_IMAGES):
        file = root / "train" / f"class{row % 2}" / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return root


@pytest.fixture
def flags(images: Path, tokenizer_folder: Path) -> list[str]:
    """The command's flags, but for where the cache goes."""
    return [
        *("--img_size", "8", "--batch_size", "3", "--num_workers", "0", "--device", "cpu"),
        *("--data_path", str(images), "--vqgan_path", str(tokenizer_folder)),
    ]


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
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_two_processes_give_the_bytes_of_one(
    flags: list[str],
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_cache(*flags, "--cached_path", tmp_path / "one") == 0
    assert capsys.readouterr().out.count("cached 18 images") == 1
    codes, outputs = in_two_processes(
        end_with_its_exit_code, *flags, "--cached_path", tmp_path / "two"
    )
    assert codes == [0, 0], outputs
    assert [output.count("cached 18 images") for output in outputs] == [1, 0]
    one = content(tmp_path / "one")
    assert sorted(one) == [*SHARDS, *INDEX]
    assert content(tmp_path / "two") == one


def test_an_unreadable_image_of_one_process_ends_both(
    flags: list[str],
    images: Path,
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
    tmp_path: Path,
) -> None:
    whole = (images / "train" / "class0" / "12.png").read_bytes()  # row 6: shard 1, the other's
    (images / "train" / "class0" / "12.png").write_bytes(whole[:30])
    cached_path = tmp_path / "cache"
    codes, outputs = in_two_processes(end_with_its_exit_code, *flags, "--cached_path", cached_path)
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "class0/12.png" in output.splitlines()[-1]
        assert "repair it, or pass --skip_unreadable" in output.splitlines()[-1]
    # Both stopped after a shard each: the first process, 0 and 2 its shards, did not go on to 2.
    assert sorted(content(cached_path)) == [SHARDS[0], *INDEX]
    kept = content(cached_path)
    (images / "train" / "class0" / "12.png").write_bytes(whole)
    assert in_two_processes(end_with_its_exit_code, *flags, "--cached_path", cached_path)[0] == [
        0,
        0,
    ]
    assert sorted(content(cached_path)) == [*SHARDS, *INDEX]
    assert kept.items() <= content(cached_path).items()


def test_held_out_images_are_cached_by_the_same_program(
    flags: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("class0/00.png", "class1/01.png"):
        (images / "val" / name).parent.mkdir(parents=True)
        (images / "train" / name).rename(images / "val" / name)
    assert main_cache(*flags, "--cached_path", tmp_path / "train") == 0
    assert main_cache(*flags, "--cached_path", tmp_path / "val", "--split", "val") == 0
    out = capsys.readouterr().out
    assert "cached 16 images" in out
    assert "cached 2 images" in out
    assert (tmp_path / "val" / "files.txt").read_text() == "class0/00.png\nclass1/01.png\n"
    # What is there already is of another split.
    assert main_cache(*flags, "--cached_path", tmp_path / "train", "--split", "val") == 2
    assert "num_images was 16, now 2; files_sha256 was" in capsys.readouterr().err


def test_mistake_is_one_line(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_cache(*flags, "--cached_path", tmp_path / "cache", "--img_size", 9) == 2
    assert capsys.readouterr().err == (
        "main_cache.py: error: image size 9 is not a multiple of the tokenizer's stride 4; "
        "choose one that is\n"
    )
    assert not (tmp_path / "cache").exists()


def test_flags_are_read_without_torch() -> None:
    program = (
        "import runpy, sys\n"
        "for flag in ('--dry_run', '--help'):\n"
        "    sys.argv = ['main_cache.py', '--data_path', 'a', '--cached_path', 'b', flag]\n"
        "    try:\n"
        "        runpy.run_path('main_cache.py', run_name='__main__')\n"
        "    except SystemExit as exit_:\n"
        "        assert exit_.code == 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'scipy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"cached_path": "b"' in done.stdout
    assert "--cached_path" in done.stdout


def test_two_processes_cache_captions_as_one(
    images: Path,
    tokenizer_folder: Path,
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for file in images.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"number {file.stem}\n日本", encoding="utf-8")
    flags = [
        *("--img_size", "8", "--batch_size", "3", "--num_workers", "0", "--device", "cpu"),
        *("--data_path", str(images), "--vqgan_path", str(tokenizer_folder), "--captions", "txt"),
    ]
    assert main_cache(*flags, "--cached_path", tmp_path / "one") == 0
    two = ("--cached_path", tmp_path / "two")
    codes, output = in_two_processes(end_with_its_exit_code, *flags, *two)
    assert codes == [0, 0], output
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert sorted(content(tmp_path / "two")) == sorted(
        [*SHARDS, *INDEX, "captions.jsonl", "captions_index.npy"]
    )
    # Captions are missing: both processes end with one line, and nothing is written.
    next(images.rglob("*.txt")).unlink()
    flags += ["--cached_path", tmp_path / "three"]
    codes, output = in_two_processes(end_with_its_exit_code, *flags)
    assert codes == [2, 2], output
    for text in output:
        assert text.splitlines()[-1].startswith("main_cache.py: error: 1 of 18 images in ")
    assert not (tmp_path / "three").exists()
    assert main_cache(*flags[:-2], "--cached_path", tmp_path / "one") == 2
    assert "pass --skip_uncaptioned to leave these images out" in capsys.readouterr().err
