"""main_eval.py --plan_loss: its numbers are those of lpd.likelihood, kept, and not others."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import main_eval
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.evaluation.plan_losses import LOSSES_NAME
from lpd.files import read_json
from lpd.likelihood import HeldOutCodes, PlanLoss, spread_rows
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.weights import save_pretrained


@pytest.fixture
def model(tmp_path: Path, tiny_model: LPD) -> Path:
    """The folder of a model of 4 x 4 codes."""
    save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
    return tmp_path / "model"


@pytest.fixture
def call(
    model: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Calls the program with further flags; gives the file."""

    def call(flags: str) -> Path:
        arguments = ["--plan_loss", "--pretrained_ckpt", str(model), "--device", "cpu"]
        arguments += ["--cached_path", str(small_cache), "--output_dir", str(tmp_path / "losses")]
        monkeypatch.setattr(sys, "argv", ["main_eval.py", *arguments, *flags.split()])
        main_eval.main()
        return tmp_path / "losses" / LOSSES_NAME

    return call


FLAGS = "--order random lpd --generation_steps 16 4 --repulsion_threshold 0 --num_images 9 --seed 3"


def test_losses_are_those_of_the_plans_asked_for(
    call: Callable[..., Path], small_cache: Path, tiny_model: LPD
) -> None:
    cache = open_cache(small_cache)
    codes = HeldOutCodes(cache, spread_rows(cache, 9), World())

    def expected(order: str, passes: int) -> PlanLoss:
        locality = LocalityConfig(repulsion_threshold=0)
        source = PlanSource(
            order=OrderConfig(kind=order, locality=locality),
            grid=(4, 4),
            group_sizes=make_group_sizes(16, passes),
        )
        return codes.plan_loss(tiny_model, source, seed=3)

    content = read_json(call(FLAGS))
    assert content["images"] == 9
    assert {order: list(each) for order, each in content["orders"].items()} == {
        "random": ["16", "4"],
        "lpd": ["16", "4"],
    }
    for order, by_passes in content["orders"].items():
        for passes, numbers in by_passes.items():
            loss = expected(order, int(passes))
            more = loss.minus(expected("random", int(passes)))
            found = [numbers["nats_per_image"], numbers["error"], numbers["bits_per_token"]]
            wanted = [loss.mean.value, loss.mean.error, loss.bits_per_token]
            np.testing.assert_allclose(found, wanted)
            found = [numbers["more_than_first"], numbers["more_than_first_error"]]
            np.testing.assert_allclose(found, [more.value, more.error], atol=1e-9)
    assert content["orders"]["lpd"]["4"]["more_than_first"] != 0


def test_complete_losses_are_kept(
    call: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = call(FLAGS)
    assert "lpd" in capsys.readouterr().out
    modified = file.stat().st_mtime_ns
    call(FLAGS)
    assert capsys.readouterr().out == f"the losses are complete in {file}\n"
    assert file.stat().st_mtime_ns == modified


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (FLAGS.replace("--seed 3", "--seed 4"), "seed was 3, now 4"),
        (FLAGS.replace("16 4", "16"), "generation_steps was"),
        (f"{FLAGS} --group_size_schedule linear", "group_size_schedule was cosine, now linear"),
    ],
)
def test_losses_of_others_are_not_taken_for_ones_own(
    call: Callable[..., Path], said: Callable[[], str], flags: str, words: str
) -> None:
    call(FLAGS)
    with pytest.raises(SystemExit) as ended:
        call(flags)
    assert ended.value.code == 2
    assert words in said()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--num_images 0", "num_images must be at least 1, got 0"),
        ("--eval_bsz 0", "eval_bsz must be at least 1, got 0"),
        ("--seed -1", "seed must be from 0"),
        ("--order spiral", "unknown order 'spiral'"),
    ],
)
def test_a_mistake_is_named(
    call: Callable[..., Path], said: Callable[[], str], flags: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(flags)
    assert ended.value.code == 2
    assert words in said()
