"""scripts/order_loss.py: its numbers are those of lpd.orders.gaussian_loss, tabled and drawn."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpd.orders.covariances import exponential_covariance, matern_covariance
from lpd.orders.gaussian_loss import gaussian_loss
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan, own_group_sizes
from lpd.orders.request import PlanSource
from scripts import order_loss
from scripts.order_theory.naming import names_of, shape_of, thresholds_of

ROOT = Path(__file__).parents[2]
FLAGS = "--img_size 64 --order random nar --generation_steps 4 8 --num_orders 5 --seed 3"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Calls the program with flags; gives the file."""

    def call(flags: str) -> Path:
        file = tmp_path / "losses.csv"
        arguments = ["--output_file", str(file), *flags.split()]
        monkeypatch.setattr(sys, "argv", ["order_loss.py", *arguments])
        order_loss.main()
        return file

    return call


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_the_table_holds_the_loss_of_every_pass(call: Callable[[str], Path]) -> None:
    flags = f"{FLAGS} --covariance matern --length 3 --smoothness 0.75"
    rows = rows_of(call(flags))
    covariance = matern_covariance((4, 4), 3.0, 0.75)
    assert {row["covariance"] for row in rows} == {"Matern, length 3, smoothness 0.75"}
    sources = {"random 4": make_group_sizes(16, 4), "random 8": make_group_sizes(16, 8)}
    sources["nar 7"] = own_group_sizes("nar", (4, 4))
    assert {row["repulsion_threshold"] for row in rows} == {""}
    assert list(dict.fromkeys(f"{row['order']} {row['passes']}" for row in rows)) == list(sources)
    for name, sizes in sources.items():
        kind, passes = name.split()
        plan = make_plan(OrderConfig(kind=kind), (4, 4), sizes, 3, np.arange(5))
        losses = gaussian_loss(plan, covariance)
        found = [row for row in rows if (row["order"], row["passes"]) == (kind, passes)]
        expected = np.column_stack([losses.sum(axis=1), losses])  # pass 0 stands for all
        assert [int(row["pass_number"]) for row in found] == list(range(len(sizes) + 1))
        assert [int(row["cells"]) for row in found] == [16, *sizes]
        means = [float(row["nats"]) for row in found]
        np.testing.assert_allclose(means, expected.mean(axis=0), rtol=1e-5, atol=1e-12)
        errors = [float(row["error"]) for row in found]
        wanted = expected.std(axis=0, ddof=1) / np.sqrt(5)
        np.testing.assert_allclose(errors, wanted, rtol=1e-4, atol=1e-12)


def test_the_printed_table_compares_with_the_first(
    call: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    call("--img_size 64 --order random halton nar --generation_steps 8 --num_orders 6")
    head, _, first, second, own, _ = capsys.readouterr().out.splitlines()
    assert head == "nats lost per image, of 6; covariance: exponential, length 2"
    sizes, covariance = make_group_sizes(16, 8), exponential_covariance((4, 4), 2.0)
    random, halton = (
        gaussian_loss(
            make_plan(OrderConfig(kind=kind), (4, 4), sizes, 0, np.arange(6)), covariance
        ).sum(axis=1)
        for kind in ("random", "halton")
    )
    more = halton - random
    error = more.std(ddof=1) / np.sqrt(6)
    assert first.split()[:3] == ["random", "8", f"{random.mean():.4f}"]
    assert first.split()[-3:] == ["+0.0000", "±", "0.0000"]
    assert second.split()[:3] == ["Halton", "8", f"{halton.mean():.4f}"]
    assert second.split()[-3:] == [f"{more.mean():+.4f}", "±", f"{error:.4f}"]
    assert own.split()[:2] == ["NAR", "7"]


def test_one_image_tells_of_no_error(
    call: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = call("--img_size 64 --order random halton --generation_steps 8 --num_orders 1")
    assert "inf" not in capsys.readouterr().out
    assert {row["error"] for row in rows_of(file)} == {""}


def test_the_figure_is_drawn(call: Callable[[str], Path], tmp_path: Path) -> None:
    figure = tmp_path / "losses.png"
    call(f"{FLAGS} --figure_file {figure}")
    with Image.open(figure) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def source(
    kind: str, passes: int, shape: str = "cosine", repulsion: float = 2.0, sizes: tuple = ()
) -> PlanSource:
    grid = (4, 4)
    locality = LocalityConfig(repulsion_threshold=repulsion)
    sizes = sizes or own_group_sizes(kind, grid) or make_group_sizes(16, passes, shape)
    order = OrderConfig(kind=kind, locality=locality)
    return PlanSource(order=order, grid=grid, group_sizes=sizes)


def test_names_tell_apart_what_differs() -> None:
    assert names_of([source("lpd", 4), source("lpd", 8), source("nar", 0)]) == [
        "locality-aware",
        "locality-aware",
        "NAR",
    ]
    assert names_of([source("lpd", 4), source("lpd", 4, repulsion=1), source("random", 4)]) == [
        "locality-aware 1/2",
        "locality-aware 1/1",
        "random",
    ]
    assert names_of([source("lpd", 4), source("random", 4, "uniform"), source("nar", 0)]) == [
        "locality-aware, cosine",
        "random, uniform",
        "NAR",
    ]
    assert thresholds_of(source("lpd", 4, repulsion=3)) == (1, 3)
    assert thresholds_of(source("random", 4)) == (None, None)
    assert shape_of(source("nar", 0)) == "own"
    assert shape_of(source("random", 4, "uniform")) == "uniform"
    assert shape_of(source("random", 2, sizes=(9, 7))) == "given"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output_file a.json", "the losses go into a .csv file"),
        ("--figure_file a.gif", "a figure ends in .png, .pdf, .svg"),
        ("--num_orders 0", "num_orders must be at least 1, got 0"),
        ("--img_size 60", "img_size 60 must be a positive multiple of stride 16"),
        ("--seed -1", "seed must be from 0"),
        ("--order spiral", "unknown order 'spiral'"),
        ("--covariance white", "unknown covariance 'white': choose from exponential, matern"),
        ("--length 0", "length must be above 0 and finite, got 0.0"),
        ("--img_size 64 --generation_steps 99", "99 generation steps do not fit 16 positions"),
        ("--covariance estimated", "--cached_path CODES --vqgan_path TOKENIZER"),
        ("--covariance matern --smoothness 30 --length 20", "not positive definite"),
    ],
)
def test_a_mistake_is_named(
    call: Callable[[str], Path], said: Callable[[], str], flags: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(flags)
    assert ended.value.code == 2
    assert words in said()


@pytest.mark.parametrize("script", ["order_loss", "order_search"])
def test_help_imports_no_torch(script: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path('scripts/{script}.py', run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--smoothness" in told.stdout
