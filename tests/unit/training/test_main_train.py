"""main_train.py as users start it."""

import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from lpd.distributed import World
from lpd.training.parallelize import STRATEGIES

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_main(
    small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., object]]:
    """Runs main_train.py with flags; returns the exit code."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*flags: str) -> object:
        defaults = [
            *("--cached_path", str(small_cache), "--output_dir", str(tmp_path / "out")),
            *("--model", "lpd_tiny", "--img_size", "16", "--epochs", "1", "--batch_size", "20"),
            *("--warmup_epochs", "0", "--lr_schedule", "cosine"),
            *("--device", "cpu"),
        ]
        monkeypatch.setattr(sys, "argv", ["main_train.py", *defaults, *flags])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "main_train.py"), run_name="__main__")
        return exit_.value.code

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_a_complete_training_is_not_repeated(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With what published command lines have besides.
    assert run_main("--use_cached", "--resume", str(tmp_path / "out"), "--class_num", "3") == 0
    model = tmp_path / "out" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    assert run_main() == 0
    assert "complete already" in capsys.readouterr().out
    assert model.stat().st_mtime_ns == written
    assert run_main("--seed", "7") == 2
    assert "seed was 1, now 7" in capsys.readouterr().err
    assert model.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "lpd_m"), "unknown model 'lpd_m': choose from"),
        (("--img_size", "256"), "images of 16 pixels, not 256"),
        (("--cached_path", "/nowhere"), "no code cache at /nowhere"),
        (("--pretrained_ckpt", "/nowhere.pth"), "no weight file at /nowhere.pth"),
        (("--device", "tpu9"), "tpu9"),
        (("--class_num", "1000"), "has 3 classes, not 1000"),
        (("--vqgan_path", __file__), "made with another tokenizer"),
        (("--group_sizes_list", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    run_main: Callable[..., object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert run_main(*flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bogus", "1"), "--bogus"),
        (("--epochs", "many"), "--epochs"),
        (("--epochs", "0"), "epochs must be at least 1"),
        (("--warmup_epochs", "2"), "warmup_epochs 2 are more than epochs 1"),
        (("--parallel", "magic"), "unknown parallel 'magic': choose from ddp"),
        (("--lr_schedule", "constant+cosine"), "lr_decay_start_epoch 400 is not before the end"),
        (("--resume", "/elsewhere"), "resume /elsewhere is not output_dir"),
        (("--no-use_cached",), "training reads cached codes"),
    ],
)
def test_flags_that_do_not_go_together_are_told_by_the_parser(
    run_main: Callable[..., object],
    tmp_path: Path,
    said: Callable[[], str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert run_main(*flags) == 2
    assert message in said()
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_output_folders_place(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("in the way")
    assert run_main() == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "out") in error
    assert "Traceback" not in error


def test_divergence_is_told_and_leaves_no_model(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("--lr", "1e30", "--epochs", "3") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the gradient is not finite at step 1" in error
    assert "choose a lower --lr and another --output_dir" in error
    assert not (tmp_path / "out" / "model").exists()


def test_a_parallel_strategy_is_one_entry(
    run_main: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy that puts parameters of its own in place of the model's, as sharding does."""
    worlds = []

    def toy(model: nn.Module, world: World) -> nn.Module:
        worlds.append(world)
        for name, parameter in list(model.named_parameters()):
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], nn.Parameter(parameter.detach().clone()))
        return model

    monkeypatch.setitem(STRATEGIES, "toy", toy)
    assert run_main("--output_dir", str(tmp_path / "ddp")) == 0
    assert worlds == []
    assert run_main("--output_dir", str(tmp_path / "toy"), "--parallel", "toy") == 0
    assert len(worlds) == 1
    models = [tmp_path / name / "model" / "model.safetensors" for name in ("ddp", "toy")]
    assert models[0].read_bytes() == models[1].read_bytes()
    # It is free to change while a training goes on.
    assert run_main("--output_dir", str(tmp_path / "ddp"), "--parallel", "toy") == 0


def test_flags_are_read_without_torch(small_cache: Path) -> None:
    """Importing torch takes seconds; neither --dry_run nor --help has use for it."""
    program = f"""
import contextlib, io, runpy, sys
flags = ["--cached_path", {str(small_cache)!r}, "--output_dir", "/nowhere", "--bf16"]
for last in ("--dry_run", "--help"):
    sys.argv = ["main_train.py", *flags, last]
    try:
        runpy.run_path({str(ROOT / "main_train.py")!r}, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
heavy = {{"torch", "torchvision", "timm", "scipy"}} & sys.modules.keys()
assert not heavy, heavy
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    settings, help_start, help_rest = run.stdout.partition("usage:")
    resolved = json.loads(settings)
    assert resolved["bf16"] is True
    assert resolved["lr"] == 1e-4 * 64 / 256
    assert help_start
    assert "How processes share a training: ddp" in " ".join(help_rest.split())
