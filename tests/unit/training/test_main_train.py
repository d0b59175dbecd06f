"""main_train.py as users start it."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lpd.distributed import World
from lpd.errors import InputError
from lpd.locks import only_user_of
from lpd.training.parallelize import STRATEGIES, DataParallel

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
        (("--img_size", "256"), "images of 16 pixels, not 256"),
        (("--cached_path", "/nowhere"), "no code cache at /nowhere"),
        (("--pretrained_ckpt", "/nowhere.pth"), "no weight file at /nowhere.pth"),
        (("--device", "tpu9"), "tpu9"),
        (("--class_num", "1000"), "has 3 classes, not 1000"),
        (("--text_length", "12"), "are for captions, and the code cache"),
        (("--model", "lpd_t2i_l"), "holds classes and no captions, which a model of texts"),
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
        (("--model", "lpd_m"), "unknown model 'lpd_m': choose from"),
        (("--epochs", "many"), "--epochs"),
        (("--epochs", "0"), "epochs must be at least 1"),
        (("--warmup_epochs", "2"), "warmup_epochs 2 are more than epochs 1"),
        (("--parallel", "magic"), "unknown parallel 'magic': choose from ddp"),
        (("--lr_schedule", "constant+cosine"), "lr_decay_start_epoch 400 is not before the end"),
        (("--allow_change", "lr,seed"), "allow_change 'lr,seed': seed cannot change"),
        (("--order_mix", "nar"), "order nar has passes of its own"),
        (("--ema_decay", "1"), "ema_decay must be in [0, 1)"),
        (("--accumulation_steps", "0"), "accumulation_steps must be at least 1"),
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
    diverging = ("--lr", "1e30", "--epochs", "6")
    assert run_main(*diverging) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the gradient was not finite in 10 steps in a row, 2 to 11" in error
    assert "with --allow_change lr at a lower --lr" in error
    assert not (tmp_path / "out" / "model").exists()


def test_a_training_that_ends_in_bad_steps_is_not_complete(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("--lr", "1e30", "--epochs", "3") == 2
    assert "in 5 steps in a row, 2 to 6" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "model").exists()


def test_a_row_of_bad_steps_is_not_saved_and_a_lower_rate_helps(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--epochs", "8", "--warmup_epochs", "4", "--save_last_freq", "1")
    checkpoints = tmp_path / "out" / "checkpoints"
    assert run_main("--lr", "1e30", *flags) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "in 10 steps in a row, 3 to 12" in told
    # The second step broke the weights, and nobody could see it yet.
    assert [each.name for each in checkpoints.iterdir()] == ["step_00000002"]
    lower = ("--lr", "1e-3", *flags, "--allow_change", "lr")
    assert run_main(*lower) == 2
    assert f"remove the newest one in {checkpoints}" in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(checkpoints / "step_00000002")
    assert run_main(*lower) == 0


def test_a_training_goes_on_with_what_may_change(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main() == 0
    assert run_main("--lr", "0.5", "--epochs", "2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "lr was 7.8125e-06, now 0.5" in error
    assert "or let it go on so with --allow_change epochs,lr" in error
    assert run_main("--lr", "0.5", "--epochs", "2", "--allow_change", "epochs") == 2
    assert "epochs was" not in capsys.readouterr().err.splitlines()[-1]
    changed = ("--lr", "0.5", "--epochs", "2", "--allow_change", "epochs, lr")
    assert run_main(*changed) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert lines[2] == {
        "step": 2,
        "changed": ["epochs was 1, now 2", "lr was 7.8125e-06, now 0.5"],
    }
    assert [line["step"] for line in lines] == [1, 2, 2, 4]
    assert lines[3]["lr"] > 0.01
    # From here on these are the training's settings.
    assert run_main("--lr", "0.5", "--epochs", "2") == 0
    assert "complete already" in capsys.readouterr().out


def test_weights_of_a_shorter_training_do_not_pass_for_those_of_a_longer_one(
    run_main: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main() == 0
    model = tmp_path / "out" / "model" / "model.safetensors"
    before = model.read_bytes()
    longer = ("--epochs", "2", "--allow_change", "epochs")

    def killed(*_: object) -> None:
        raise InputError("killed before the weights were there")

    with monkeypatch.context() as patch:
        patch.setattr("lpd.training.trainer.save_weights", killed)
        assert run_main(*longer) == 2
    assert model.read_bytes() == before
    capsys.readouterr()
    assert run_main(*longer) == 0
    assert "trained: " in capsys.readouterr().out
    assert model.read_bytes() != before


@pytest.mark.parametrize(
    "same",
    [
        ("--blr", "1e-4"),
        ("--lr", "7.8125e-06"),
        ("--lr", "7.8125e-06", "--blr", "0.5"),
        ("--lr_decay_start_epoch", "17"),
        ("--order_mix", "random:3"),
        ("--repulsion_threshold", "1"),
        ("--batch_size", "10", "--accumulation_steps", "2"),
        ("--max_bad_steps", "3", "--keep_last", "1", "--chunked_loss"),
    ],
    ids=" ".join,
)
def test_settings_that_come_to_the_same_are_the_same(
    run_main: Callable[..., object], capsys: pytest.CaptureFixture[str], same: tuple[str, ...]
) -> None:
    assert run_main() == 0
    assert run_main(*same) == 0
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--order_mix", "random lpd"), "order_mix was random:1, now random:0.5 lpd:0.5"),
        (("--ema_decay", "0.9"), "ema_decay was None, now 0.9"),
        (("--accumulation_steps", "2"), "global_batch_size was 20, now 40"),
    ],
    ids=str,
)
def test_other_settings_are_named(
    run_main: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    other: tuple[str, ...],
    named: str,
) -> None:
    assert run_main() == 0
    assert run_main(*other) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_other_codes_and_labels_are_noticed(
    run_main: Callable[..., object],
    small_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(small_cache, cache)
    assert run_main("--cached_path", str(cache)) == 0
    codes = np.load(cache / "codes_00000.npy")
    codes[3, 0, 5] = (codes[3, 0, 5] + 1) % 24
    np.save(cache / "codes_00000.npy", codes)
    assert run_main("--cached_path", str(cache)) == 2
    assert "cache_sha256 was" in capsys.readouterr().err.splitlines()[-1]


def test_weights_to_start_from_are_needed_once_and_told_apart(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_main("--output_dir", str(first)) == 0
    assert run_main("--output_dir", str(second), "--seed", "2") == 0
    tuned = ("--epochs", "2", "--pretrained_ckpt")
    start = first / "checkpoints" / "step_00000002"  # a checkpoint will do
    assert run_main(*tuned, str(start)) == 0
    capsys.readouterr()
    assert run_main(*tuned, str(second / "model")) == 2
    assert "pretrained_sha256 was" in capsys.readouterr().err.splitlines()[-1]
    assert run_main("--epochs", "2") == 2
    assert "pretrained_sha256 was" in capsys.readouterr().err.splitlines()[-1]
    # The same weights elsewhere, and weights that are gone, which nobody needs any more.
    assert run_main(*tuned, str(first / "model")) == 0
    shutil.rmtree(first)
    shutil.rmtree(tmp_path / "out" / "model")
    assert run_main(*tuned, str(start)) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_one_run_per_folder(
    run_main: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_user_of(tmp_path / "out", "a training"):
        assert run_main() == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"a training is at work in {tmp_path / 'out'} already (process {os.getpid()}" in told
        assert not (tmp_path / "out" / "checkpoints").exists()
    assert run_main() == 0
    lock = tmp_path / "out" / ".lock"
    assert not lock.exists()
    lock.touch()  # as a run leaves it that is killed with its last breath
    assert run_main() == 0
    assert not lock.exists()


def test_a_parallel_strategy_is_one_entry(
    run_main: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
) -> None:
    """A toy that puts parameters of its own in place of the model's, as sharding does."""

    class Toy(DataParallel):
        def wrap(self, model: nn.Module, world: World, *, bf16: bool) -> nn.Module:
            print("a toy")
            for name, parameter in list(model.named_parameters()):
                owner = model.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], nn.Parameter(parameter.detach().clone()))
            return super().wrap(model, world, bf16=bf16)

    def train(*flags: str) -> None:
        assert run_main("--batch_size", "10", *flags) == 0

    monkeypatch.setitem(STRATEGIES, "toy", Toy())
    for name in ("ddp", "toy"):
        flags = ("--output_dir", str(tmp_path / name), "--parallel", name)
        codes, outputs = in_two_processes(train, *flags)
        assert codes == [0, 0], outputs
        assert [("a toy" in output) for output in outputs] == [name == "toy"] * 2
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
    assert 35 < resolved["memory_gib"]["total"] < 45
    assert help_start
    assert "How processes share a training: ddp" in " ".join(help_rest.split())
