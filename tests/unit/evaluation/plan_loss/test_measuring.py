"""main_eval.py --plan_loss: its numbers are those of lpd.likelihood, kept, and not others'."""

import copy
import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main_eval
from lpd import pretrained
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.evaluation.plan_loss import report as report
from lpd.evaluation.plan_loss.config import MeasuredPlans
from lpd.evaluation.plan_loss.measuring import PLANS_FOLDER, read_losses
from lpd.files import read_json
from lpd.likelihood import HeldOutCodes, PlanLoss, spread_rows
from lpd.models.lpd import LPD, LPDConfig
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, own_group_sizes
from lpd.orders.request import PlanSource
from lpd.weights import save_pretrained

SEED = 3
FLAGS = "--order random lpd nar --generation_steps 16 4 --repulsion_threshold 0 --num_images 9"
FLAGS += f" --seed {SEED}"
PLANS = [("random", 16), ("random", 4), ("lpd", 16), ("lpd", 4), ("nar", 7)]


@pytest.fixture
def model(tmp_path: Path, tiny_model: LPD) -> Path:
    """The folder of a model of 4 x 4 codes."""
    save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
    return tmp_path / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where losses go."""
    return tmp_path / "losses"


@pytest.fixture
def call(
    model: Path, small_cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Calls the program with further flags; gives what it wrote."""

    def call(flags: str) -> dict[str, Any]:
        arguments = ["--plan_loss", "--pretrained_ckpt", str(model), "--device", "cpu"]
        arguments += ["--cached_path", str(small_cache), "--output_dir", str(folder)]
        monkeypatch.setattr(sys, "argv", ["main_eval.py", *arguments, *flags.split()])
        main_eval.main()
        return read_json(folder / report.LOSSES_NAME)

    return call


@pytest.fixture
def measure(small_cache: Path, tiny_model: LPD) -> Callable[..., PlanLoss]:
    """Measures the plan of an order in some passes of nine images beside the program."""
    cache = open_cache(small_cache)
    codes = HeldOutCodes(cache, spread_rows(cache, 9), World())

    def measure(order: str, passes: int, *, one_at_a_time: bool = False) -> PlanLoss:
        source = PlanSource(
            order=OrderConfig(kind=order, locality=LocalityConfig(repulsion_threshold=0)),
            grid=(4, 4),
            group_sizes=own_group_sizes(order, (4, 4)) or make_group_sizes(16, passes),
        )
        return codes.plan_loss(tiny_model, source, seed=SEED, one_at_a_time=one_at_a_time)

    return measure


def test_losses_are_those_of_the_plans_asked_for(
    call: Callable[..., dict[str, Any]], measure: Callable[..., PlanLoss], folder: Path
) -> None:
    told = call(FLAGS)["plans"]
    assert [(each["order"], each["generation_steps"]) for each in told] == PLANS
    for each in told:
        order, passes = each["order"], each["generation_steps"]
        loss, alone = measure(order, passes), measure(order, passes, one_at_a_time=True)
        found = [each["nats_per_image"], each["nats_per_image_error"], each["bits_per_token"]]
        wanted = [loss.mean.value, loss.mean.error, loss.mean.value / 16 / math.log(2)]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert each["images"] == 9
        assert each["group_sizes"] == list(loss.group_sizes)
        more = loss.minus(alone)
        found = [each["more_than_one_at_a_time"], each["more_than_one_at_a_time_error"]]
        np.testing.assert_allclose(found, [more.value, more.error], atol=1e-5)
        if order == "nar":  # seven passes, which the first order was not asked for
            assert each["more_than_first"] is each["more_than_first_error"] is None
        else:
            more = loss.minus(measure("random", passes))
            found = [each["more_than_first"], each["more_than_first_error"]]
            np.testing.assert_allclose(found, [more.value, more.error], atol=1e-5)
        # By pass, and what the passes are of.
        of_passes = each["by_pass"]
        assert [of["tokens"] for of in of_passes] == each["group_sizes"]
        assert [of["tokens_before"] for of in of_passes] == np.cumsum([0, *loss.group_sizes])[
            :-1
        ].tolist()
        means = [of["nats_per_image"] for of in of_passes]
        np.testing.assert_allclose(means, loss.by_pass.mean(0), rtol=1e-5)
        starts = np.cumsum([0, *loss.group_sizes[:-1]])
        difference = loss.by_pass - np.add.reduceat(alone.by_pass, starts, axis=1)
        for name, wanted in {
            "more_than_one_at_a_time": difference.mean(0),
            "more_than_one_at_a_time_error": difference.std(0, ddof=1) / 3,
        }.items():
            np.testing.assert_allclose([of[name] for of in of_passes], wanted, atol=1e-5)
        kept, _ = read_losses(folder / each["file"])
        np.testing.assert_allclose(kept.by_pass, loss.by_pass, rtol=1e-5, atol=1e-5)
        assert (kept.order, kept.group_sizes) == (order, loss.group_sizes)
    one_by_one, parallel = told[2], told[3]
    assert one_by_one["more_than_one_at_a_time"] == 0  # it is the same plan, measured once
    assert parallel["more_than_one_at_a_time"] != 0
    assert parallel["more_than_first"] != 0
    # Each with its orders one at a time, which for 16 passes it is; random orders do not depend on
    # the passes, so that of 10 plans 7 are different.
    assert len(list((folder / PLANS_FOLDER).iterdir())) == 7


def test_tables_have_a_row_per_plan_and_pass(
    call: Callable[..., dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = call(FLAGS)["plans"]
    with (folder / report.TABLE_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["order"], int(row["generation_steps"])) for row in rows] == PLANS
    assert [float(row["nats_per_image"]) for row in rows] == [e["nats_per_image"] for e in told]
    assert [row["repulsion_threshold"] for row in rows] == ["", "", "0.0", "0.0", ""]
    assert [row["more_than_first"] == "" for row in rows] == [False] * 4 + [True]
    assert rows[1]["group_sizes"] == " ".join(map(str, make_group_sizes(16, 4)))
    with (folder / report.PASSES_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(*plan, number) for plan in PLANS for number in range(1, plan[1] + 1)]
    assert [(r["order"], int(r["generation_steps"]), int(r["pass"])) for r in rows] == expected
    nats = [of["nats_per_image"] for each in told for of in each["by_pass"]]
    assert [float(row["nats_per_image"]) for row in rows] == nats
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["order", "passes", "bits", "per", "token"]
    assert [line.split()[:2] for line in lines[1:6]] == [[o, str(p)] for o, p in PLANS]
    assert f"{told[3]['more_than_first']:+.2f}" in lines[4]
    assert lines[6] == f"numbers of 9 images: {folder}"


def test_one_at_a_time_can_be_left_out(
    call: Callable[..., dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (told,) = call("--order halton --generation_steps 4 --no_one_at_a_time --num_images 1")["plans"]
    assert told["more_than_one_at_a_time"] is None
    assert told["by_pass"][0]["more_than_one_at_a_time"] is None
    assert told["nats_per_image_error"] is None  # of one image
    assert len(list((folder / PLANS_FOLDER).iterdir())) == 1
    assert "at a time" not in capsys.readouterr().out


def test_what_is_there_is_not_measured_again(
    call: Callable[..., dict[str, Any]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a kill: of a plan whose file is not there no more than that is measured."""
    before = call(FLAGS)
    content = (folder / report.LOSSES_NAME).read_bytes()
    measured = []
    original = HeldOutCodes.plan_loss

    def counting(self: HeldOutCodes, model: LPD, source: PlanSource, **options: Any) -> PlanLoss:
        measured.append((source.order.kind, options["one_at_a_time"]))
        return original(self, model, source, **options)

    monkeypatch.setattr(HeldOutCodes, "plan_loss", counting)
    call(FLAGS)
    assert measured == []
    assert (folder / report.LOSSES_NAME).read_bytes() == content
    (folder / before["plans"][3]["file"]).unlink()
    (folder / report.LOSSES_NAME).unlink()
    call(FLAGS)
    assert measured == [("lpd", False)]
    assert (folder / report.LOSSES_NAME).read_bytes() == content
    # Other plans go into the same folder.
    more = call(f"{FLAGS} --order random --generation_steps 8")["plans"]
    assert measured[1:] == [("random", False)]
    assert [(each["order"], each["generation_steps"]) for each in more] == [("random", 8)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--seed 4", "seed was 3, now 4"),
        ("--bf16", "bf16 was False, now True"),
        ("--num_images 8", "num_images was 9, now 8"),
    ],
)
def test_losses_of_others_are_not_taken_for_ones_own(
    call: Callable[..., dict[str, Any]], said: Callable[[], str], change: str, words: str
) -> None:
    call(FLAGS)
    with pytest.raises(SystemExit) as ended:
        call(f"{FLAGS} {change}")
    assert ended.value.code == 2
    assert words in said()


def test_nor_are_those_of_another_model(
    call: Callable[..., dict[str, Any]], model: Path, said: Callable[[], str]
) -> None:
    call(FLAGS)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_heads": 4}))
    with pytest.raises(SystemExit) as ended:
        call(FLAGS)
    assert ended.value.code == 2
    assert "model was" in said()


def test_losses_that_are_no_numbers_are_refused(
    call: Callable[..., dict[str, Any]],
    model: Path,
    folder: Path,
    tiny_model: LPD,
    said: Callable[[], str],
) -> None:
    broken = copy.deepcopy(tiny_model)
    broken.head.weight.data.sign_().mul_(3e38)  # finite, but its products are not
    save_pretrained(model, broken, broken.config)
    with pytest.raises(SystemExit) as ended:
        call(FLAGS)
    assert ended.value.code == 2
    assert "9 of 9 images in order random are not finite" in said()
    assert not list(folder.glob(f"{PLANS_FOLDER}/*"))


@pytest.mark.parametrize("damage", ["another plan's", "cut", "nothing"])
def test_damaged_losses_are_refused(
    call: Callable[..., dict[str, Any]], folder: Path, said: Callable[[], str], damage: str
) -> None:
    files = [folder / each["file"] for each in call(FLAGS)["plans"]]
    content = files[1].read_bytes()
    files[0].write_bytes(
        {"another plan's": content, "cut": content[: len(content) // 2], "nothing": b""}[damage]
    )
    with pytest.raises(SystemExit) as ended:
        call(FLAGS)
    assert ended.value.code == 2
    words = said()
    assert str(files[0].name) in words
    assert "remove it" in words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--num_images 0", "num_images must be at least 1, got 0"),
        ("--eval_bsz 0", "eval_bsz must be at least 1, got 0"),
        ("--seed -1", "seed must be from 0"),
        ("--order spiral", "unknown order 'spiral'"),
        ("--generation_steps 17", "17 generation steps do not fit 16 positions"),
        ("--cached_path nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_named(
    call: Callable[..., dict[str, Any]],
    folder: Path,
    said: Callable[[], str],
    flags: str,
    words: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(flags)
    assert ended.value.code == 2
    assert words in said()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 25}, "has vocab_size 24, the model 25"),
        ({"num_classes": 2}, "has num_classes 3, the model 2"),
        ({"img_size": 32}, "is for images of 16 pixels, not 32"),
        ({"tokenizer_sha256": "1" * 64}, "was made with another tokenizer"),
    ],
)
def test_codes_of_another_kind_are_refused(
    call: Callable[..., dict[str, Any]],
    model: Path,
    tiny_config: LPDConfig,
    said: Callable[[], str],
    change: dict[str, Any],
    words: str,
) -> None:
    other = LPDConfig(**{**vars(tiny_config), **change})
    network = LPD(other)
    network.init_weights()
    save_pretrained(model, network, other)
    with pytest.raises(SystemExit) as ended:
        call(FLAGS)
    assert ended.value.code == 2
    assert words in said()


def test_a_preset_is_for_the_images_of_the_codes(
    tiny_model: LPD, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of published weights, which do not say for which images they are."""
    made = []

    def make(name: str, *, img_size: int) -> LPDConfig:
        made.append((name, img_size))
        return tiny_model.config

    monkeypatch.setattr(pretrained, "config_of_preset", make)
    torch.save(tiny_model.state_dict(), tmp_path / "weights.pth")
    flags = ["--plan_loss", "--model", "lpd_l", "--pretrained_ckpt", f"{tmp_path / 'weights.pth'}"]
    flags += ["--cached_path", str(small_cache), "--output_dir", str(tmp_path), "--device", "cpu"]
    flags += ["--order", "raster", "--generation_steps", "1", "--num_images", "2"]
    monkeypatch.setattr(sys, "argv", ["main_eval.py", *flags])
    main_eval.main()
    assert made == [("lpd_l", 16)]


@pytest.mark.parametrize(
    ("side", "passes"), [(16, [32, 20]), (32, [48]), (8, [16, 8, 4]), (2, [1])]
)
def test_passes_are_the_published_ones_unless_told(side: int, passes: list[int]) -> None:
    found = MeasuredPlans().sources((side, side))
    assert [(each.order.kind, len(each.group_sizes)) for each in found] == [
        (order, steps) for order in ("random", "halton", "lpd") for steps in passes
    ]
    found = MeasuredPlans(order=("lpd",), generation_steps=(3,)).sources((side, side))
    assert [len(each.group_sizes) for each in found] == [3]


def _run(arguments: list[str]) -> None:
    sys.argv = ["main_eval.py", *arguments]
    main_eval.main()


@pytest.mark.slow
def test_two_processes_and_any_batches_give_the_same_numbers(
    call: Callable[..., dict[str, Any]],
    model: Path,
    small_cache: Path,
    tmp_path: Path,
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
) -> None:
    alone = call(f"{FLAGS} --eval_bsz 7")["plans"]
    arguments = ["--plan_loss", "--pretrained_ckpt", str(model), "--device", "cpu"]
    arguments += ["--cached_path", str(small_cache), "--output_dir", str(tmp_path / "two")]
    codes, outputs = in_two_processes(_run, [*arguments, *FLAGS.split(), "--eval_bsz", "3"])
    assert codes == [0, 0], outputs
    assert [output.count("numbers of 9 images") for output in outputs] == [1, 0]
    both = read_json(tmp_path / "two" / report.LOSSES_NAME)["plans"]
    for one, other in zip(alone, both, strict=True):
        assert one["file"] == other["file"]  # named by all that the losses depend on
        for name, value in one.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
