"""The training loop: learning, resuming, stopping, refusing."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lpd.classes import class_names_of
from lpd.distributed import World
from lpd.errors import InputError
from lpd.pretrained import load_model
from lpd.training import state_files
from lpd.training.config import TrainConfig
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer


@pytest.fixture
def config(small_cache: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        cached_path=small_cache,
        output_dir=tmp_path / "out",
        model="lpd_test",
        img_size=16,
        epochs=4,
        batch_size=8,
        lr=3e-3,
        warmup_epochs=1,
        lr_schedule="cosine",
        log_freq=1,
        save_last_freq=1,
        save_intermediate_freq=2,
        device="cpu",
    )


def losses(config: TrainConfig) -> list[float]:
    lines = (config.output_dir / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def exported(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_model(config.output_dir / "model", torch.device("cpu")).state_dict()


@pytest.mark.slow
def test_it_learns_what_the_class_tells(config: TrainConfig) -> None:
    config = dataclasses.replace(config, epochs=30, lr=1e-2, proj_dropout=0.0)
    assert Trainer(TrainingSetup(config, World())).train()
    # 24 codes at random cost ln 24 = 3.18; the class leaves 8 of them, ln 8 = 2.08.
    assert losses(config)[0] > 3
    assert sum(losses(config)[-10:]) / 10 < 2.4


def test_resuming_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    straight = dataclasses.replace(config, output_dir=tmp_path / "straight")
    Trainer(TrainingSetup(straight, World())).train()

    class CrashError(Exception):
        pass

    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step

    def crash_in_the_third_epoch(batch: object) -> object:
        if trainer.step == 12:
            raise CrashError
        return step(batch)

    trainer.train_step = crash_in_the_third_epoch
    with pytest.raises(CrashError):
        trainer.train()
    trainer.checkpoints.wait()  # a process that dies would leave nothing half written behind
    resumed = Trainer(TrainingSetup(config, World()))
    assert resumed.step == 10  # two epochs of five steps were saved
    assert resumed.train()
    assert losses(config) == losses(straight)
    for key, value in exported(straight).items():
        assert torch.equal(exported(config)[key], value), key


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        [signal.SIGTERM] * 3,
        [signal.SIGINT, signal.SIGINT, signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGUSR1],
    ],
    ids=lambda signals: "+".join(each.name for each in signals),
)
def test_signals_save_and_stop(config: TrainConfig, signals: list[signal.Signals]) -> None:
    """Schedulers, torchrun and terminals may all pass on the same request."""
    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step

    def told_to_stop(batch: object) -> object:
        if trainer.step == 3:
            for each in signals:
                os.kill(os.getpid(), each)
        return step(batch)

    trainer.train_step = told_to_stop
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        assert not trainer.train()
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert signal.getsignal(signal.SIGTERM) is before
    assert Trainer(TrainingSetup(config, World())).step == trainer.step < 20


def test_nohup_stays_in_force(config: TrainConfig) -> None:
    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step

    def the_terminal_is_closed(batch: object) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        return step(batch)

    trainer.train_step = the_terminal_is_closed
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert trainer.train()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_torchrun_stops_its_processes(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(TrainingSetup(config, World()))
    monkeypatch.setattr("lpd.training.trainer.launcher_is_gone", lambda: trainer.step >= 3)
    assert not trainer.train()
    assert Trainer(TrainingSetup(config, World())).step == trainer.step < 20


def test_being_told_to_stop_at_the_end_loses_nothing(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last checkpoint is written, and while the model is."""
    config = dataclasses.replace(config, epochs=1)
    for place in ("checkpoint", "trainer"):
        save = sys.modules[f"lpd.training.{place}"].save_weights

        def told_to_stop(*arguments: Any, save: Any = save) -> None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            save(*arguments)

        monkeypatch.setattr(f"lpd.training.{place}.save_weights", told_to_stop)
    assert Trainer(TrainingSetup(config, World())).train()
    assert TrainingSetup(config, World()).is_complete()


def test_other_data_is_refused(config: TrainConfig, small_cache: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(config, epochs=1)
    Trainer(TrainingSetup(short, World())).train()
    other = tmp_path / "other"
    shutil.copytree(small_cache, other)
    files = (other / "files.txt").read_bytes().replace(b"00.png", b"99.png")
    (other / "files.txt").write_bytes(files)
    meta = json.loads((other / "meta.json").read_text())
    meta["files_sha256"] = hashlib.sha256(files).hexdigest()
    (other / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="files_sha256 was"):
        Trainer(TrainingSetup(dataclasses.replace(short, cached_path=other), World()))


def test_intermediate_checkpoints_stay(config: TrainConfig) -> None:
    Trainer(TrainingSetup(config, World())).train()
    names = sorted(path.name for path in (config.output_dir / "checkpoints").iterdir())
    assert names == ["step_00000010", "step_00000015", "step_00000020"]  # the last two, too


def test_a_diverged_step_changes_logs_and_saves_nothing(config: TrainConfig) -> None:
    config = dataclasses.replace(config, log_freq=3, max_bad_steps=1)
    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step
    before: dict[str, torch.Tensor] = {}

    def diverge_in_the_fifth_step(batch: Any) -> Any:
        if trainer.step == 4:
            trainer.model.head.weight.data[0, 0] = torch.inf
            before.update({key: p.clone() for key, p in trainer.model.state_dict().items()})
        return step(batch)

    trainer.train_step = diverge_in_the_fifth_step
    # The checkpoint of the fifth step is due before the log entry of the sixth.
    with pytest.raises(InputError, match=r"in 1 steps in a row, 5 to 5 \(.*loss: nan, .*images"):
        trainer.train()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    lines = (config.output_dir / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]
    assert not (config.output_dir / "checkpoints").exists()


def test_what_is_being_saved_gets_there_though_something_is_to_be_mended(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = state_files.save
    monkeypatch.setattr(state_files, "save", lambda *a, **b: (time.sleep(1), write(*a, **b)))
    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step

    def fail_in_the_sixth_step(batch: Any) -> Any:
        if trainer.step == 5:  # saved just before
            raise InputError("the disk with the logs is full")
        return step(batch)

    trainer.train_step = fail_in_the_sixth_step
    with pytest.raises(InputError, match="the disk with the logs"):
        trainer.train()
    assert [path.name for path in trainer.checkpoints.folder.iterdir()] == ["step_00000005"]


def test_only_steps_that_are_logged_or_saved_wait_for_the_device(config: TrainConfig) -> None:
    """On a GPU, each of these operations would bring a number to the host, when it is there."""
    waiting = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"}
    config = dataclasses.replace(config, log_freq=4, save_last_freq=3, save_intermediate_freq=9)
    trainer = Trainer(TrainingSetup(config, World()))
    steps: dict[int, set[str]] = defaultdict(set)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            steps[trainer.step].add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        trainer.train()
    assert set(steps) == set(range(21))
    assert all("_fused_adamw_" in steps[step] for step in range(20))
    logged, saved = {1, 4, 8, 12, 16, 20}, {15, 20}
    assert {step for step, names in steps.items() if names & waiting} == logged | saved


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed"),
        ({"lr": 1e-4}, "lr"),
        ({"batch_size": 4}, "global_batch_size"),
        ({"proj_dropout": 0.5}, "proj_dropout"),
    ],
)
def test_another_training_in_the_same_folder(
    config: TrainConfig, change: dict[str, float], named: str
) -> None:
    short = dataclasses.replace(config, epochs=1)
    Trainer(TrainingSetup(short, World())).train()
    with pytest.raises(ValueError, match=rf"\b{named} was .*, now .*--output_dir"):
        Trainer(TrainingSetup(dataclasses.replace(short, **change), World()))


def test_a_setting_younger_than_the_folder_counts_as_its_default(config: TrainConfig) -> None:
    short = dataclasses.replace(config, epochs=1, proj_dropout=0.1, random_flip=False)
    Trainer(TrainingSetup(short, World())).train()
    manifest = config.output_dir / "checkpoints" / "step_00000005" / "manifest.json"
    exported = config.output_dir / "model" / "training.json"
    for file in (manifest, exported):
        content = json.loads(file.read_text())
        del content["fingerprint"]["proj_dropout"]
        file.write_text(json.dumps(content))
    assert TrainingSetup(short, World()).is_complete()
    assert Trainer(TrainingSetup(short, World())).step == 5
    other = TrainingSetup(dataclasses.replace(short, proj_dropout=0.0), World())
    with pytest.raises(InputError, match=r"proj_dropout was 0\.1, now 0\.0"):
        other.is_complete()
    with pytest.raises(InputError, match=r"proj_dropout was 0\.1, now 0\.0"):
        Trainer(other)


def test_the_model_knows_what_its_classes_are_called(config: TrainConfig) -> None:
    Trainer(TrainingSetup(dataclasses.replace(config, epochs=1), World())).train()
    for folder in ("model", "checkpoints/step_00000005"):
        shape = load_model(config.output_dir / folder, torch.device("cpu")).config
        assert shape.class_names == ("a", "b", "c")
        assert class_names_of(shape).labels(["B", "c", 0]) == [1, 2, 0]


def test_where_and_how_fast_may_change(config: TrainConfig) -> None:
    short = dataclasses.replace(config, epochs=1)
    Trainer(TrainingSetup(short, World())).train()
    other = dataclasses.replace(short, log_freq=7, grad_checkpointing=True)
    assert Trainer(TrainingSetup(other, World())).step == 5


def test_cache_for_another_image_size(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="images of 16 pixels, not 256"):
        Trainer(TrainingSetup(dataclasses.replace(config, img_size=256), World()))


def test_pretrained_weights_are_the_start(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(TrainingSetup(config, World())).train()
    fine = dataclasses.replace(
        config,
        output_dir=tmp_path / "fine",
        pretrained_ckpt=config.output_dir / "model",
    )
    trainer = Trainer(TrainingSetup(fine, World()))
    for key, value in exported(config).items():
        assert torch.equal(trainer.model.state_dict()[key], value), key


def test_pretrained_weights_for_another_tokenizer(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(TrainingSetup(config, World())).train()
    file = config.output_dir / "model" / "config.json"
    file.write_text(file.read_text().replace("0" * 64, "1" * 64))
    fine = dataclasses.replace(
        config, output_dir=tmp_path / "fine", pretrained_ckpt=config.output_dir / "model"
    )
    with pytest.raises(ValueError, match="made with another tokenizer"):
        Trainer(TrainingSetup(fine, World()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": -1.0},
        {"lr_schedule": "step"},
        {"parallel": "magic"},
        {"label_drop_prob": 1.5},
        {"warmup_epochs": float("nan")},
        {"seed": -1},
    ],
    ids=str,
)
def test_bad_configuration(config: TrainConfig, wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(config, **wrong)


def test_published_learning_rates(config: TrainConfig) -> None:
    # 4 nodes of 8 GPUs, 64 (L) and 32 (XL) images each.
    published = dataclasses.replace(config, lr=None)
    assert published.schedule(1, 2048).lr == pytest.approx(8e-4)
    assert published.schedule(1, 1024).lr == pytest.approx(4e-4)
