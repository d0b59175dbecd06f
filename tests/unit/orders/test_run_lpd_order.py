"""The program that writes order files: orders/run_lpd_order.py."""

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lpd.orders import workers
from lpd.orders.files import load_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions

PROGRAM = Path(__file__).parents[3] / "orders" / "run_lpd_order.py"
FLAGS = ("--img_size", "64", "--generation_steps", "6", "--num_runs", "20")
LONG_RUN = ("--img_size", "512", "--num_runs", "60000", "--max_workers", "2")  # a minute


def command(output: Path, *flags: str) -> list[str]:
    asked = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True))
    asked |= {"--output_file": str(output)} | dict(zip(flags[::2], flags[1::2], strict=True))
    return [str(PROGRAM), *(word for pair in asked.items() for word in pair)]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the program in this process and returns what it printed."""

    def generate(output: Path, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", command(output, *flags))
        handler = signal.getsignal(signal.SIGTERM)
        try:
            runpy.run_path(str(PROGRAM), run_name="__main__")
        finally:
            signal.signal(signal.SIGTERM, handler)
        return capsys.readouterr().out

    return generate


def test_orders_do_not_depend_on_the_number_of_workers(generate, tmp_path: Path) -> None:
    # Three chunks of work, the last one smaller, whatever their size is.
    number = 2 * workers._CHUNK + 7
    for count in ("1", "3"):
        generate(tmp_path / f"{count}.npz", "--max_workers", count, "--num_runs", str(number))
    one, three = (load_orders(tmp_path / f"{count}.npz").orders for count in ("1", "3"))
    assert len(one) == number
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(
    "flags",
    [
        ("--seed", "1"),
        ("--order", "random"),
        ("--repulsion_threshold", "1"),
        ("--proximity_threshold", "0.5"),
        ("--generation_steps", "5"),
        ("--group_sizes", "1x4 2x6"),
        ("--group_size_schedule", "uniform"),
        ("--order", "zipar_3"),
        ("--num_runs", "19"),
    ],
)
def test_a_complete_file_is_left_alone_and_another_made_again(
    generate, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    output = tmp_path / "orders.npz"
    assert "20 orders of 6 passes" in generate(output)
    before = output.read_bytes(), output.stat().st_mtime_ns
    assert "complete already" in generate(output)
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    assert "complete already" not in generate(output, *flags)
    assert "complete already" in generate(output, *flags)
    # And back: the same orders as at first.
    assert "complete already" not in generate(output)
    assert output.read_bytes() == before[0]


def test_an_order_with_its_own_passes(generate, tmp_path: Path) -> None:
    assert "20 orders of 7 passes" in generate(tmp_path / "nar.npz", "--order", "nar")
    file = load_orders(tmp_path / "nar.npz")
    assert (file.recorded["kind"], file.group_sizes) == ("nar", (1, 2, 3, 4, 3, 2, 1))
    assert file.orders[19].tolist()[:6] == [0, 1, 4, 2, 5, 8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--order", "nar", "--group_sizes", "1x16"), "nar has group sizes of its own"),
        (("--order", "zipar_5"), "window must be between 1 and 4"),
        (("--order", "spiral"), "unknown order 'spiral'"),
        (("--group_size_schedule", "cubic"), "unknown group-size schedule 'cubic'"),
    ],
)
def test_after_a_mistake_nothing_is_written(
    generate,
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
    said: Callable[[], str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        generate(tmp_path / "orders.npz", *flags)
    assert exit_.value.code == 2
    assert message in said()
    assert not list(tmp_path.iterdir())


def test_what_does_not_tell_its_origin_is_made_again(generate, tmp_path: Path) -> None:
    for name, content in (("orders.npz", b"PK damaged"), ("orders.json", b"[[0, 1]]")):
        (tmp_path / name).write_bytes(content)
        assert "complete already" not in generate(tmp_path / name)
    npz, json = (load_orders(tmp_path / name).orders for name in ("orders.npz", "orders.json"))
    np.testing.assert_array_equal(npz, json)


def test_the_flags_say_what_is_made(generate, tmp_path: Path) -> None:
    made = (
        generate(tmp_path / "default.npz"),
        generate(
            tmp_path / "other.npz",
            *("--stride", "8", "--generation_steps", "9", "--group_size_schedule", "linear"),
            *("--proximity_threshold", "1.5", "--repulsion_threshold", "1", "--seed", "7"),
        ),
    )
    assert "20 orders of 6 passes" in made[0]
    assert "20 orders of 9 passes" in made[1]
    thresholds = LocalityConfig(proximity_threshold=1.5, repulsion_threshold=1)
    for name, side, config, sizes, seed in (
        ("default", 4, OrderConfig(), make_group_sizes(16, 6), 0),
        ("other", 8, OrderConfig(locality=thresholds), make_group_sizes(64, 9, "linear"), 7),
    ):
        expected = make_plan(config, (side, side), sizes, seed, np.arange(20))
        found = load_orders(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(found.orders, expected.orders)
        assert found.group_sizes == sizes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_runs", "0"), "num_runs must be at least 1, got 0"),
        (("--max_workers", "0"), "max_workers must be at least 1, got 0"),
        (("--output_file", "orders.txt"), "orders.txt: an order file ends in .npz or .json"),
        (("--img_size", "250"), "img_size 250 must be a positive multiple of stride 16"),
        (("--group_sizes", "1,2"), "sum to 3, but the grid has 16 positions"),
        (("--generation_steps", "17"), "17 generation steps do not fit 16 positions"),
        (("--group_size_schedule", "cosin"), "unknown group-size schedule 'cosin'"),
        (("--proximity_threshold", "nan"), "proximity_threshold must be finite"),
        (("--repulsion_threshold", "-1"), "repulsion_threshold must be finite and not negative"),
        (("--order", "zipar_5"), "the window must be between 1 and 4"),
        (("--order", "par_9x"), "its sides must be multiples of 3"),
        (("--order", "nar", "--group_sizes", "1x16"), "leave out group_sizes 1x16"),
        (("--seed", "-1"), "seed must be from 0"),
        (("--img_size", "4112"), "order files hold up to 65536 positions, not 66049"),
    ],
)
def test_a_mistake_is_named(
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command(Path("out/orders.npz"), *flags))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(PROGRAM), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 2
    assert message in said()
    assert not list(tmp_path.iterdir())


def test_as_many_workers_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Pool(workers.ThreadPoolExecutor):
        def __init__(self, max_workers: int) -> None:
            asked.append(max_workers)
            super().__init__(max_workers)

    monkeypatch.setattr(workers, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(workers, "_CHUNK", 2)
    source = OrderOptions(order="random", generation_steps=2).source((2, 2))
    for max_workers in (1, 2, 9):  # there are three chunks of work
        assert len(workers.make_orders(source, 0, 5, max_workers=max_workers)) == 5
    assert asked == [1, 2, 3]


@pytest.mark.slow
# Ctrl-C in a terminal reaches the whole group; a scheduler may tell the main process alone.
@pytest.mark.parametrize(("number", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_interrupted_it_leaves_nothing(
    tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    output = tmp_path / "out" / "orders.npz"
    with subprocess.Popen(
        [sys.executable, *command(output, *LONG_RUN)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default_signals,  # noqa: PLW1509
    ) as process:
        assert process.stderr is not None
        words = ""
        while not re.search(r" [1-9]\d*/60000", words):  # the workers are at work
            words += process.stderr.read(1)
        (os.killpg if to_group else os.kill)(process.pid, number)
        words += process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in words
    assert words.endswith("run_lpd_order.py: interrupted; the same command goes on from here\n")
    assert not list(tmp_path.rglob("*.*"))


def default_signals() -> None:
    """A test run under nohup or in the background ignores signals, and so would its children."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
