"""What a model in training generates, and how it is evaluated."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.data.code_cache import CacheIndex, CacheWriter
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.extractors import Classifier
from lpd.evaluation.generated.setting import EvalConfig
from lpd.evaluation.generated.sweep import run_evaluation
from lpd.evaluation.images import references
from lpd.orders.request import SweepOptions
from lpd.pipeline import LPDPipeline
from lpd.sampling.config import SamplingConfig, SamplingSweep
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.training import online
from lpd.training.config import OnlineOptions, TrainConfig, ValidationOptions
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer


@pytest.fixture
def config(tokenizer_folder: Path, tmp_path: Path) -> TrainConfig:
    """Two epochs of three steps on random codes of the tests' tokenizer."""
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    labels = np.arange(24) % 3
    index = CacheIndex(
        image_size=16,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        class_names=("a", "b", "c"),
        files=tuple(f"{'abc'[label]}/{i}.png" for i, label in enumerate(labels)),
        labels=labels,
    )
    writer = CacheWriter(tmp_path / "cache", index)
    writer.write_index()
    codes = np.random.default_rng(0).integers(24, size=(24, 2, 16))
    writer.write_shard(0, codes.astype(np.uint16))
    return TrainConfig(
        cached_path=tmp_path / "cache",
        output_dir=tmp_path / "out",
        vqgan_path=tokenizer_folder,
        model="lpd_test",
        img_size=16,
        epochs=2,
        batch_size=8,
        lr=3e-2,
        warmup_epochs=0,
        lr_schedule="constant",
        validation=ValidationOptions(eval_freq=1),
        online=OnlineOptions(sample_grid=6, generation_steps=4, sampling=SamplingConfig(cfg=2.0)),
        ema_decay=0.5,
        device="cpu",
    )


def train(config: TrainConfig) -> None:
    assert Trainer(TrainingSetup(config, World())).train()


def test_grids_are_what_the_pipeline_makes_of_the_same_seed(config: TrainConfig) -> None:
    train(config)
    grids = sorted((config.output_dir / "samples").iterdir())
    assert [grid.name for grid in grids] == ["step_00000003.png", "step_00000006.png"]
    first, last = (np.asarray(Image.open(grid)) for grid in grids)
    assert first.shape == last.shape == (20, 2 + 6 * 18, 3)
    assert (first != last).any()
    assert config.vqgan_path is not None
    pipeline = LPDPipeline.from_pretrained(config.output_dir / "model_ema", config.vqgan_path)
    images = pipeline([0, 0, 1, 1, 2, 2], generation_steps=4, cfg=2.0, seed=config.seed).images
    for place, image in enumerate(images):
        left = 2 + 18 * place
        assert np.array_equal(last[2:18, left : left + 16], np.asarray(image)), place


def test_no_pictures_where_none_are_wanted(config: TrainConfig) -> None:
    train(dataclasses.replace(config, online=OnlineOptions()))
    assert not list(config.output_dir.rglob("samples"))


@pytest.fixture
def with_evaluation(
    config: TrainConfig, tmp_path: Path, make_classifier: Callable[[], Classifier]
) -> TrainConfig:
    make_classifier().save(tmp_path / "classifier")
    torch.manual_seed(9)
    make_classifier().save(tmp_path / "judge")
    options = dataclasses.replace(
        config.online,
        online_eval=True,
        num_images=12,
        eval_bsz=6,
        feature_extractor=str(tmp_path / "classifier"),
        classifier=str(tmp_path / "judge"),
    )
    return dataclasses.replace(config, online=options)


def evaluations(config: TrainConfig) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (config.output_dir / "log.jsonl").open()]
    return [line for line in lines if any(key.startswith("eval_") for key in line)]


def test_numbers_are_those_of_an_evaluation(with_evaluation: TrainConfig, tmp_path: Path) -> None:
    config = with_evaluation
    train(config)
    lines = evaluations(config)
    assert [line["step"] for line in lines] == [3, 3, 6, 6]
    assert config.vqgan_path is not None
    (expected,) = run_evaluation(
        EvalConfig(
            pretrained_ckpt=config.output_dir / "model_ema",
            vqgan_path=config.vqgan_path,
            output_dir=tmp_path / "evaluation",
            img_size=16,
            num_images=12,
            eval_bsz=6,
            decoding=SweepOptions(generation_steps=(4,)),
            sampling=SamplingSweep(cfg=(2.0,)),
            seed=(config.seed,),
            feature_extractor=config.online.feature_extractor,
            classifier=config.online.classifier,
        ),
        World(),
    )
    measured = {k.removeprefix("eval_ema_"): v for k, v in lines[-1].items() if k != "step"}
    metrics = {key: value for key, value in expected.metrics.items() if value is not None}
    assert metrics
    assert measured == pytest.approx({"num_images": 12, **metrics})


def test_a_run_that_was_killed_in_an_evaluation_does_it_again(
    with_evaluation: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_evaluation
    evaluate = online.evaluate_online

    def killed(*arguments: Any) -> dict[str, float]:
        if arguments[2].parent.name == "step_00000003" and arguments[2].name == "model_ema":
            raise InterruptedError
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("lpd.training.measuring.evaluate_online", killed)
        with pytest.raises(InterruptedError):
            train(config)
    train(config)
    names = [(line["step"], "eval_ema" in "".join(line)) for line in evaluations(config)]
    assert names == [(3, False), (3, True), (6, False), (6, True)]


def test_what_was_measured_of_other_weights_is_not_kept(with_evaluation: TrainConfig) -> None:
    config = with_evaluation
    train(config)
    picture = config.output_dir / "samples" / "step_00000006.png"
    own = picture.with_name("step_i_like.png")
    own.write_bytes(b"a user's")
    before = picture.read_bytes(), evaluations(config)
    for lost in ("model/training.json", "checkpoints/step_00000006/manifest.json"):
        (config.output_dir / lost).unlink()
    train(dataclasses.replace(config, lr=0.3, allow_change="lr"))
    assert picture.read_bytes() != before[0]
    assert own.read_bytes() == b"a user's"
    after = evaluations(config)
    assert [line["step"] for line in after] == [3, 3, 6, 6]
    assert after[:2] == before[1][:2]
    assert after[2:] != before[1][2:]


def test_an_unfinished_evaluation_may_go_on_with_other_options(
    with_evaluation: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(with_evaluation, epochs=1)

    def killed(*_: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("lpd.evaluation.generated.sweep.report.write_results", killed)
        with pytest.raises(InterruptedError):
            train(config)
    train(dataclasses.replace(config, online=dataclasses.replace(config.online, num_images=18)))
    assert [line.get("eval_num_images") for line in evaluations(config)] == [18, None]


def test_an_average_that_begins_late_can_be_evaluated(with_evaluation: TrainConfig) -> None:
    config = dataclasses.replace(with_evaluation, epochs=1, ema_decay=None)
    train(config)
    longer = dataclasses.replace(config, epochs=2, ema_decay=0.5, allow_change="ema_decay,epochs")
    train(longer)
    told = [(line["step"], "eval_ema_num_images" in line) for line in evaluations(config)]
    assert told == [(3, False), (3, True), (6, False), (6, True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation_steps": 17}, "17 generation steps do not fit 16 positions"),
        ({"reference": Path("/nowhere")}, "/nowhere"),
        ({"feature_extractor": "/nowhere"}, "/nowhere"),
        ({"classifier": "/nowhere"}, "/nowhere"),
    ],
    ids=str,
)
def test_what_would_fail_in_the_first_evaluation_fails_at_the_start(
    with_evaluation: TrainConfig, change: dict[str, Any], message: str
) -> None:
    options = dataclasses.replace(with_evaluation.online, **change)
    with pytest.raises(InputError, match=message):
        TrainingSetup(dataclasses.replace(with_evaluation, online=options), World())


@pytest.mark.parametrize("wanted", [{"online_eval": True}, {"sample_grid": 8}], ids=str)
def test_images_need_the_tokenizer(config: TrainConfig, wanted: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="name the tokenizer with --vqgan_path"):
        dataclasses.replace(config, vqgan_path=None, online=OnlineOptions(**wanted))


def test_a_reference_folder_is_read_once(
    with_evaluation: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in "abc":
        folder = tmp_path / "images" / "train" / label
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(ord(label) + number).integers(256, size=(16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    options = dataclasses.replace(with_evaluation.online, reference=tmp_path / "images")
    config = dataclasses.replace(with_evaluation, online=options)
    read = mock.Mock(side_effect=references.measure_reference)
    monkeypatch.setattr(references, "measure_reference", read)
    train(config)
    assert read.call_count == 1
    assert [("fid" in "".join(line)) for line in evaluations(config)] == [True] * 4
    assert not list(config.output_dir.rglob("chunks"))
