"""The study of orders from trained models to its report, with tiny models."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.generated.report import read_results
from lpd.likelihood import HeldOutCodes, spread_rows
from lpd.models.lpd import LPD
from lpd.pretrained import load_model
from lpd.weights import save_pretrained
from scripts import study_orders
from scripts.order_study.measuring import evaluate_model, measure_losses, measure_model, read_losses
from scripts.order_study.settings import Plan, StudyConfig, main_plans

CPU = torch.device("cpu")


@pytest.fixture
def config(run_folder: Path, small_cache: Path, tiny_model: LPD, tmp_path: Path) -> StudyConfig:
    """A study of two mixtures whose trainings, two of one and one of the other, are complete."""
    quickstart = tmp_path / "quickstart"
    quickstart.mkdir()
    for name in ("tokenizer", "classifier"):
        (quickstart / name).symlink_to(run_folder / name)
    (quickstart / "digits").symlink_to(run_folder / "data")
    (quickstart / "cache_val").symlink_to(small_cache)
    config = StudyConfig(
        quickstart_dir=quickstart,
        output_dir=tmp_path / "study",
        report_dir=tmp_path / "report",
        seeds=(1, 2),
        shares=(0.5, 0.0),
        num_images=12,
    )
    for number, (seed, share) in enumerate([(1, 0.0), (2, 0.0), (2, 0.5)]):
        model = LPD(tiny_model.config)
        weights = tiny_model.state_dict()
        model.load_state_dict({name: each * (1 + 0.1 * number) for name, each in weights.items()})
        save_pretrained(config.model_dir(seed, share), model, model.config)
    return config


@pytest.mark.slow
def test_from_models_to_the_report(config: StudyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    measure_model(config, 1, 0.0, World())
    study_orders.write_report(config)
    text = (config.report_dir / "README.md").read_text()
    assert "(random orders alone: seed 1)" in text
    assert "FID" not in text.partition("## Orders of training")[2]
    for seed, share in ((2, 0.0), (2, 0.5)):
        measure_model(config, seed, share, World())
        evaluate_model(config, seed, share, World())
    study_orders.write_report(config)

    assert {path.name for path in config.report_dir.iterdir()} == {
        "README.md", "plan_loss.csv", "quality.csv", "comparisons.csv", "mixtures.png",
        "differences.png", "thresholds.png", "shapes.png", "quality.png",
    }  # fmt: skip
    text = (config.report_dir / "README.md").read_text()
    assert "random orders alone: seeds 1, 2; 50% locality-aware orders: seed 2" in text
    with (config.report_dir / "plan_loss.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["order"] == "halton"]
    cache = open_cache(config.quickstart_dir / "cache_val")
    held_out = HeldOutCodes(cache, spread_rows(cache, None), World())
    model = load_model(config.model_dir(2, 0.5), CPU)
    loss = held_out.plan_loss(model, Plan(order="halton", passes=4).source((4, 4)), seed=0)
    (found,) = (
        row
        for row in rows
        if (row["locality_aware_share"], row["training_seed"], row["passes"]) == ("0.5", "2", "4")
    )
    assert float(found["nats_per_image"]) == pytest.approx(loss.mean.value, rel=1e-5)
    with (config.report_dir / "quality.csv").open() as file:
        quality = list(csv.DictReader(file))
    assert len(quality) == 2 * 2 * 2 * 2  # models, guidances, sampling seeds, numbers of passes
    folder = config.quality_dir(2, 0.5)
    (numbers,) = (
        each
        for each in read_results(folder)
        if (each.generation_steps, each.cfg, each.seed) == (2, 3.0, 1)
    )
    (row,) = (
        row
        for row in quality
        if (row["locality_aware_share"], row["cfg"], row["sampling_seed"]) == ("0.5", "3", "1")
        and row["passes"] == "2"
    )
    assert float(row["fid"]) == pytest.approx(numbers.metrics["fid"], rel=1e-5)
    assert (numbers.repulsion_threshold, numbers.num_images) == (1.0, int(row["images"]))


def test_losses_are_measured_once(config: StudyConfig, small_cache: Path, tmp_path: Path) -> None:
    model_dir, file = config.model_dir(1, 0.0), tmp_path / "losses.npz"
    some = main_plans(16)[:2]
    measure_losses(model_dir, small_cache, file, some, World())
    before = read_losses(file)
    assert set(before) == {plan.name for plan in some}
    modified = file.stat().st_mtime_ns
    measure_losses(model_dir, small_cache, file, some, World())
    assert file.stat().st_mtime_ns == modified
    # Plans that are new are added to what is there.
    more = main_plans(16)[:3]
    measure_losses(model_dir, small_cache, file, more, World())
    after = read_losses(file)
    assert set(after) == {plan.name for plan in more}
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    with pytest.raises(InputError, match="model was"):
        measure_losses(config.model_dir(2, 0.5), small_cache, file, some, World())


def test_every_training_is_made_and_measured(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the work: all trainings of a seed before those of the next."""
    stages, done = [], []
    monkeypatch.setattr(study_orders, "run_stage", lambda name, *_: stages.append(name))
    monkeypatch.setattr(
        study_orders, "measure_model", lambda _, *which: done.append(("losses", *which[:2]))
    )
    monkeypatch.setattr(
        study_orders, "evaluate_model", lambda _, *which: done.append(("digits", *which[:2]))
    )
    study_orders.run(config)
    assert stages == [
        *("digits", "classifier", "tokenizer", "cache", "cache of held-out digits"),
        *("training of lpd_50 with seed 1", "training of lpd_0 with seed 1"),
        *("training of lpd_50 with seed 2", "training of lpd_0 with seed 2"),
    ]
    assert done == [
        (what, seed, share)
        for seed in (1, 2)
        for what in ("losses", "digits")
        for share in (0.5, 0.0)
    ]
