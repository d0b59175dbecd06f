"""Models of texts are trained exactly: however features come, wherever a run stops, by any number
of processes."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.data.captions import CaptionStore
from lpd.data.code_cache import CacheIndex, CacheWriter
from lpd.data.published_cache import open_cache
from lpd.distributed import World, join_world
from lpd.errors import InputError
from lpd.evaluation.plan_loss.config import MeasuredPlans, PlanLossConfig
from lpd.evaluation.plan_loss.measuring import run_plan_loss
from lpd.evaluation.plan_loss.report import LOSSES_NAME
from lpd.models import presets
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.presets import PRESETS
from lpd.pretrained import load_model
from lpd.texts.caching import run_feature_caching
from lpd.texts.config import TextEncoderOptions
from lpd.training.config import TrainConfig, ValidationOptions
from lpd.training.setup import TrainingSetup
from lpd.training.trainer import Trainer
from lpd.weights import save_pretrained

pytestmark = pytest.mark.slow

COLOURS = ("red", "blue", "", "a green one")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _text_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "lpd_t2i_test", (2, 32, 2))
    monkeypatch.setitem(presets._CONDITIONINGS, "lpd_t2i_test", "text")


def make_cache(path: Path, num_images: int, seed: int) -> Path:
    """Images of 4 x 4 codes, of which the first caption's place among the colours tells the
    range."""
    random = np.random.default_rng(seed)
    colours = random.integers(len(COLOURS), size=num_images)
    captions = [
        (COLOURS[colour], f"it is {COLOURS[colour]}")[: 1 + row % 2]
        for row, colour in enumerate(colours)
    ]
    index = CacheIndex(
        image_size=16,
        vocab_size=32,
        tokenizer_sha256="aa" * 32,
        class_names=(),
        files=tuple(f"{row}.png" for row in range(num_images)),
        labels=np.zeros(num_images, np.int64),
        captions=CaptionStore(captions),
    )
    writer = CacheWriter(path, index)
    writer.write_index()
    codes = 8 * colours[:, None, None] + random.integers(8, size=(num_images, 2, 16))
    writer.write_shard(0, codes.astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def encoder(text_encoder_folder: Callable[[str], Path]) -> str:
    return str(text_encoder_folder("bert"))


@pytest.fixture
def config(tmp_path: Path, encoder: str) -> TrainConfig:
    return TrainConfig(
        cached_path=make_cache(tmp_path / "cache", 41, seed=0),
        output_dir=tmp_path / "out",
        model="lpd_t2i_test",
        img_size=16,
        text=TextEncoderOptions(text_encoder=encoder, text_length=12),
        epochs=3,
        batch_size=8,
        lr=3e-3,
        warmup_epochs=0,
        lr_schedule="cosine",
        label_drop_prob=0.3,
        validation=ValidationOptions(
            val_cached_path=make_cache(tmp_path / "val", 9, seed=1), eval_freq=3, val_steps=(4,)
        ),
        log_freq=1,
        save_last_freq=1,
        device="cpu",
    )


def log(config: TrainConfig) -> list[dict[str, float]]:
    """What was told, without what depends on how fast it went."""
    lines = [json.loads(line) for line in (config.output_dir / "log.jsonl").open()]
    return [
        {name: value for name, value in line.items() if name == "loss" or name.startswith("val_")}
        for line in lines
    ]


def train(config: TrainConfig, world: World | None = None) -> dict[str, torch.Tensor]:
    assert Trainer(TrainingSetup(config, world or World())).train()
    return load_model(config.output_dir / "model", CPU).state_dict()


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    for name, value in left.items():
        assert torch.equal(right[name], value), name


def cache_features_of(config: TrainConfig) -> None:
    assert config.validation.val_cached_path is not None
    for path in (config.cached_path, config.validation.val_cached_path):
        run_feature_caching(config.text, open_cache(path), World())


def test_cached_features_train_as_online_ones(config: TrainConfig, tmp_path: Path) -> None:
    online = train(config)
    cache_features_of(config)
    for name, text in {"named": config.text, "the only ones": TextEncoderOptions()}.items():
        cached = dataclasses.replace(config, text=text, output_dir=tmp_path / name)
        assert_same(online, train(cached))
        assert log(cached) == log(config)
    shape = load_model(config.output_dir / "model", CPU).config
    assert shape.text_encoder == config.text.text_encoder
    assert (shape.text_length, shape.text_layer) == (12, -1)


def test_it_says_where_features_come_from(config: TrainConfig) -> None:
    cache_features_of(config)
    cached = Trainer(TrainingSetup(config, World())).summary()
    assert f"features from {config.cached_path}/features/" in cached
    # Those in the cache are of another length.
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, text_length=13))
    online = Trainer(TrainingSetup(config, World())).summary()
    assert ", encoded as needed on cpu (" in online
    assert "have more than 13 tokens and are cut" in online
    assert "features from" not in online


def test_it_learns_what_the_captions_tell(config: TrainConfig) -> None:
    cache_features_of(config)
    config = dataclasses.replace(config, epochs=30, lr=1e-2, proj_dropout=0.0, label_drop_prob=0.0)
    train(config)
    (measured,) = (line["val_lpd_4"] for line in log(config)[-2:] if "val_lpd_4" in line)
    # 32 codes at random cost 16 ln 32 = 55.5 nats; the captions leave 8 of them, 16 ln 8 = 33.3,
    # and without captions only the first pass's codes cost more.
    assert measured < 38


def test_resuming_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    straight = train(dataclasses.replace(config, output_dir=tmp_path / "straight"))
    trainer = Trainer(TrainingSetup(config, World()))
    step = trainer.train_step

    def crash_in_the_second_epoch(batch: object) -> object:
        if trainer.step == 8:
            raise ZeroDivisionError
        return step(batch)

    trainer.train_step = crash_in_the_second_epoch
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    trainer.checkpoints.wait()
    cache_features_of(config)  # it goes on by them
    assert_same(straight, train(config))
    assert log(config) == log(dataclasses.replace(config, output_dir=tmp_path / "straight"))


def train_a_share(config: TrainConfig) -> None:
    with join_world("cpu") as world:
        train(dataclasses.replace(config, batch_size=config.batch_size // world.size), world)


def test_two_processes_train_as_one(
    config: TrainConfig,
    tmp_path: Path,
    in_two_processes: Callable[..., tuple[list[int | None], list[str]]],
) -> None:
    config = dataclasses.replace(config, proj_dropout=0.0)
    one = train(config)
    shared = dataclasses.replace(config, output_dir=tmp_path / "shared")
    codes, outputs = in_two_processes(train_a_share, shared)
    assert codes == [0, 0], outputs
    for alone, together in zip(log(config), log(shared), strict=True):
        assert together == pytest.approx(alone, abs=1e-3)
    two = load_model(shared.output_dir / "model", CPU).state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-3, rtol=0, msg=name)


def test_it_starts_from_a_model_of_classes(config: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = LPDConfig(
        depth=2, dim=32, num_heads=2, img_size=16, stride=4, vocab_size=32, num_classes=3
    )
    classes = LPD(shape)
    classes.init_weights()
    save_pretrained(tmp_path / "classes", classes, shape)
    published = tmp_path / "published" / "lpd_l_256.pth"  # without a configuration
    published.parent.mkdir()
    torch.save({"model": classes.state_dict()}, published)
    for start in (tmp_path / "classes", published):
        config = dataclasses.replace(config, pretrained_ckpt=start)
        model = Trainer(TrainingSetup(config, World())).model
        state, initial = classes.state_dict(), model.state_dict()
        kept = state.keys() & initial.keys()
        assert state.keys() - kept == {"class_emb.weight"}
        assert_same({name: state[name] for name in kept}, initial)


def test_it_starts_from_no_model_of_another_text_encoder(
    config: TrainConfig, tmp_path: Path, text_encoder_folder: Callable[[str], Path]
) -> None:
    train(dataclasses.replace(config, epochs=1))

    def start(encoder: str, text_length: int = 12) -> Trainer:
        text = TextEncoderOptions(text_encoder=encoder, text_length=text_length)
        later = {"text": text, "output_dir": tmp_path / "later"}
        later |= {"pretrained_ckpt": config.output_dir / "model"}
        return Trainer(TrainingSetup(dataclasses.replace(config, **later), World()))

    own = str(config.text.text_encoder)
    assert_same(
        load_model(config.output_dir / "model", CPU).state_dict(), start(own).model.state_dict()
    )
    with pytest.raises(
        InputError, match=r"the text encoder .* is not that of the model .*out/model"
    ):
        start(str(text_encoder_folder("llama")))  # of the same width
    with pytest.raises(InputError, match="cut them with --text_length 12"):
        start(own, text_length=20)
    with pytest.raises(InputError, match=r"up to 12 tokens, not 8: give --text_length 12, to the"):
        start(own, text_length=8)


def test_losses_of_plans_are_those_of_the_training(config: TrainConfig, tmp_path: Path) -> None:
    train(config)
    assert config.validation.val_cached_path is not None
    run_plan_loss(
        PlanLossConfig(
            pretrained_ckpt=config.output_dir / "model",
            cached_path=config.validation.val_cached_path,
            output_dir=tmp_path / "losses",
            decoding=MeasuredPlans(order=("lpd",), generation_steps=(4,)),
            one_at_a_time=False,
            seed=config.seed,
            device="cpu",
        ),
        World(),
    )
    (plan,) = json.loads((tmp_path / "losses" / LOSSES_NAME).read_text())["plans"]
    (measured,) = (line["val_lpd_4"] for line in log(config) if "val_lpd_4" in line)
    assert plan["nats_per_image"] == pytest.approx(measured, rel=1e-6)


def test_what_does_not_go_together(
    config: TrainConfig, tmp_path: Path, text_encoder_folder: Callable[[str], Path]
) -> None:
    def setup(**changes: object) -> TrainingSetup:
        return TrainingSetup(dataclasses.replace(config, **changes), World())

    nothing = TextEncoderOptions()
    with pytest.raises(InputError, match="has no features of any text encoder"):
        setup(text=nothing)
    with pytest.raises(InputError, match="name it with --text_encoder"):
        setup(text=TextEncoderOptions(text_length=12))
    with pytest.raises(InputError, match="captions and no classes: choose a model of texts"):
        setup(model="lpd_test")
    train(config)
    other = TextEncoderOptions(text_encoder=str(text_encoder_folder("llama")), text_length=12)
    with pytest.raises(InputError, match="text_encoder_sha256"):
        setup(text=other).is_complete()
    # Where it lies makes no difference.
    shutil.copytree(str(config.text.text_encoder), tmp_path / "moved")
    moved = dataclasses.replace(config.text, text_encoder=str(tmp_path / "moved"))
    assert setup(text=moved).is_complete()
