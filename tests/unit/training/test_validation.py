"""What a training measures on images that it does not learn from, and when."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lpd.distributed import World
from lpd.errors import InputError
from lpd.orders.mixture import OrderMixOptions
from lpd.pretrained import load_model
from lpd.training.config import TrainConfig, ValidationOptions
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer


@pytest.fixture
def val_cache(make_cache: Callable[..., Path]) -> Path:
    return make_cache(11, 4)


@pytest.fixture
def config(small_cache: Path, val_cache: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        cached_path=small_cache,
        output_dir=tmp_path / "out",
        model="lpd_test",
        img_size=16,
        epochs=3,
        batch_size=8,
        lr=3e-3,
        warmup_epochs=0,
        lr_schedule="cosine",
        validation=ValidationOptions(val_cached_path=val_cache, eval_freq=2),
        save_last_freq=1,
        device="cpu",
    )


def lines(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output_dir / "log.jsonl").open()]


def test_it_is_measured_when_due_and_at_the_end(config: TrainConfig) -> None:
    assert Trainer(TrainingSetup(config, World())).train()
    measured = [line for line in lines(config) if "val_loss" in line]
    assert [line["step"] for line in measured] == [10, 15]
    # 16 codes: 4, 2 and 1 passes.
    plans = {f"val_{order}_{steps}" for order in ("random", "lpd") for steps in (4, 2, 1)}
    for line in measured:
        assert line.keys() == {"step", "val_loss", *plans, *(f"{plan}_error" for plan in plans)}


@pytest.mark.parametrize("mix", ["random", "lpd", "random:3 lpd:1"])
def test_the_loss_is_that_of_the_training_on_other_images(config: TrainConfig, mix: str) -> None:
    """Of every image under one of the schedules, in the orders of the mix by their weights."""
    config = dataclasses.replace(config, orders=OrderMixOptions(order_mix=mix))
    setup = TrainingSetup(config, World())
    trainer = Trainer(setup)
    assert setup.validation is not None
    measured = setup.validation.measure(trainer.model, trainer.parallel_model)
    assert trainer.model.training  # as it was
    model = trainer.model.eval()
    total = 0.0
    weights = {"random": {"random": 1}, "lpd": {"lpd": 1}}.get(mix, {"random": 0.75, "lpd": 0.25})
    seen = [(weight, source.order.kind) for weight, source, _ in setup.validation.parts]
    assert seen == [(weight, kind) for kind, weight in weights.items()] * len(setup.schedules)
    for weight, source, images in setup.validation.parts:
        rows = np.arange(setup.schedules.index(source.group_sizes), 11, len(setup.schedules))
        assert images.rows.tolist() == rows.tolist()
        orders = torch.from_numpy(source.plan(config.seed, np.arange(len(rows))).orders.copy())
        cache = images.cache
        tokens = torch.from_numpy(cache.get(rows, np.zeros(len(rows), dtype=bool)))
        with torch.no_grad():
            logits = model(
                tokens,
                torch.from_numpy(cache.labels[rows]),
                orders,
                trainer.attention[source.group_sizes],
            )
        targets = tokens.gather(1, orders)
        losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        total += weight * losses.item()
    assert measured["loss"] == pytest.approx(total / 11 / 16, rel=1e-5)


def test_measuring_changes_nothing_of_the_training(config: TrainConfig, tmp_path: Path) -> None:
    without = dataclasses.replace(
        config, output_dir=tmp_path / "without", validation=ValidationOptions(), ema_decay=0.5
    )
    config = dataclasses.replace(config, ema_decay=0.5)
    for each in (config, without):
        assert Trainer(TrainingSetup(each, World())).train()
    for folder in ("model", "model_ema"):
        one, other = (
            load_model(each.output_dir / folder, torch.device("cpu")).state_dict()
            for each in (config, without)
        )
        for name, value in one.items():
            assert torch.equal(value, other[name]), (folder, name)
    # What is measured is free: the one goes on where the other stopped.
    assert TrainingSetup(dataclasses.replace(without, output_dir=config.output_dir), World())
    measured = [line for line in lines(config) if "val_ema_loss" in line]
    assert [line["step"] for line in measured] == [10, 15]
    losses = [line["val_loss"] for line in lines(config) if "val_loss" in line]
    assert losses != [line["val_ema_loss"] for line in measured]


def test_the_average_is_measured_in_the_weights_place(config: TrainConfig) -> None:
    config = dataclasses.replace(config, ema_decay=0.5)
    setup = TrainingSetup(config, World())
    trainer = Trainer(setup)
    assert trainer.train()
    averaged = load_model(config.output_dir / "model_ema", torch.device("cpu"))
    assert setup.validation is not None
    expected = setup.validation.measure(averaged, averaged)
    last = [line for line in lines(config) if "val_ema_loss" in line][-1]
    for name, value in expected.items():
        assert last[f"val_ema_{name}"] == pytest.approx(value, rel=1e-6), name


def test_plans_are_those_asked_for(config: TrainConfig, val_cache: Path) -> None:
    options = ValidationOptions(
        val_cached_path=val_cache, val_orders=("raster", "halton"), val_steps=(3, 16), val_images=5
    )
    setup = TrainingSetup(dataclasses.replace(config, validation=options), World())
    assert setup.validation is not None
    plans = [(plan.order.kind, len(plan.group_sizes)) for plan in setup.validation.plans]
    assert plans == [("raster", 3), ("raster", 16), ("halton", 3), ("halton", 16)]
    assert setup.validation.held_out.rows.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a", "b", "d"]}, "differ in their class_names"),
        ({"vocab_size": 25}, "differ in their vocab_size"),
        ({"tokenizer_sha256": "1" * 64}, "made with another tokenizer"),
        ({"image_size": 32}, "images of 32 pixels, not 16"),
        ({}, "holds the images that are trained on"),
    ],
    ids=str,
)
def test_other_images_do_not_compare(
    config: TrainConfig, val_cache: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(val_cache if change else config.cached_path, other)
    meta = json.loads((other / "meta.json").read_text())
    if "class_names" in change:
        files = (other / "files.txt").read_text().replace("c/", "d/")
        (other / "files.txt").write_text(files)
        meta["files_sha256"] = hashlib.sha256(files.encode()).hexdigest()
    (other / "meta.json").write_text(json.dumps(meta | change))
    options = dataclasses.replace(config.validation, val_cached_path=other)
    with pytest.raises(InputError, match=message):
        TrainingSetup(dataclasses.replace(config, validation=options), World())


@pytest.mark.parametrize(
    "wrong", [{"eval_freq": 0}, {"val_images": 0}, {"val_orders": ("nar",)}], ids=str
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=name):
        ValidationOptions(**wrong)


def test_a_run_that_was_stopped_before_it_measured_does_it_after(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop at a step at which something is due, it saves at once."""
    due = dataclasses.replace(config.validation, eval_freq=1)
    config = dataclasses.replace(config, epochs=2, validation=due, ema_decay=0.5)
    monkeypatch.setattr("lpd.training.trainer._STOP_CHECK_STEPS", 5)
    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step

    def told_to_stop(batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return step(batch)

    trainer.train_step = told_to_stop  # type: ignore[method-assign]
    assert not trainer.train()
    assert trainer.step == 5
    assert not [line for line in lines(config) if "val_loss" in line]
    for _ in range(2):
        assert Trainer(TrainingSetup(config, World())).train()
        told = [
            (line["step"], "val_loss" in line)
            for line in lines(config)
            if any(key.startswith("val_") for key in line)
        ]
        assert told == [(5, True), (5, False), (10, True), (10, False)]
