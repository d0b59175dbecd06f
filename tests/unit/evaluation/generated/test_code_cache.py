"""Generated codes as a cache: they come back exactly, and can be measured as real ones."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lpd.data import code_cache
from lpd.data.code_cache import ShardedCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.generated.chunks import Chunk, chunk_path, read_codes
from lpd.evaluation.generated.code_cache import read_generated
from lpd.evaluation.generated.setting import EvalConfig
from lpd.evaluation.plan_loss.config import MeasuredPlans, PlanLossConfig
from lpd.evaluation.plan_loss.measuring import run_plan_loss
from lpd.evaluation.plan_loss.report import LOSSES_NAME
from lpd.files import read_json, write_json
from lpd.models.lpd import LPD
from scripts.cache import from_evaluation

TOKENIZER = "ab" * 32
COUNT = 25
RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(24, size=(COUNT, 16)).astype(np.uint16)
LABELS = np.arange(COUNT) % 3


@pytest.fixture
def setting(tmp_path: Path, tiny_model: LPD) -> Path:
    """The folder of a setting of 25 images in three chunks, the way main_eval.py leaves it."""
    write_json(
        tmp_path / "eval" / "settings.json",
        {
            "num_images": COUNT,
            "chunk_size": 10,
            "vqgan_path": TOKENIZER,
            "model_config": tiny_model.config.shape(),
        },
    )
    for start in (0, 10, 20):
        put(tmp_path / "eval" / "lpd_4", range(start, min(start + 10, COUNT)))
    return tmp_path / "eval" / "lpd_4"


def put(setting: Path, images: range, *, change: int = 0, identity: str | None = "one") -> None:
    """Write a chunk, of other codes where there is a change."""
    rows = slice(images.start, images.stop)
    chunk = Chunk(
        codes=(CODES[rows] + change).astype(np.uint16) % 24,
        labels=LABELS[rows],
        times=(1.0,),  # type: ignore[arg-type]
        measured=None,
        identity=identity,
    )
    chunk.save(chunk_path(setting / "chunks", images))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], None]:
    def command(setting: Path, cache: Path) -> None:
        flags = [f"--evaluation={setting}", f"--cached_path={cache}"]
        monkeypatch.setattr(sys, "argv", ["from_evaluation.py", *flags])
        from_evaluation.main()

    return command


def test_codes_and_labels_come_back(
    setting: Path,
    tmp_path: Path,
    command: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_cache, "SHARD_IMAGES", 8)
    command(setting, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert isinstance(cache, ShardedCache)
    rows, plain = np.arange(COUNT), np.zeros(COUNT, dtype=np.bool_)
    np.testing.assert_array_equal(cache.readable, rows)
    np.testing.assert_array_equal(cache.get(rows, plain), CODES)
    np.testing.assert_array_equal(cache.get(rows, plain), read_codes(setting, num_images=COUNT,
                                                                     old_size=10))  # fmt: skip
    np.testing.assert_array_equal(cache.labels, LABELS)
    assert cache.class_names == ("0", "1", "2")
    assert (cache.image_size, cache.vocab_size, cache.num_positions) == (16, 24, 16)
    assert cache.tokenizer_sha256 == TOKENIZER
    with pytest.raises(InputError, match="codes outside its vocabulary"):
        cache.get(rows[:1], ~plain[:1])  # nothing has generated the mirrored images


def test_an_interrupted_cache_goes_on_and_no_others_codes_are_added(
    setting: Path,
    tmp_path: Path,
    command: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    monkeypatch.setattr(code_cache, "SHARD_IMAGES", 8)
    cache = tmp_path / "cache"
    command(setting, cache)
    whole = {file.name: file.read_bytes() for file in cache.iterdir()}
    (cache / "codes_00001.npy").unlink()
    command(setting, cache)
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == whole
    (cache / "codes_00001.npy").unlink()
    put(setting, range(20, COUNT), change=1)
    with pytest.raises(SystemExit, match="2"):
        command(setting, cache)
    assert "was made otherwise (files_sha256 was" in said()
    assert not (cache / "codes_00001.npy").exists()


def test_they_are_measured_as_those_of_real_images(
    setting: Path, tmp_path: Path, tiny_model: LPD, command: Callable[[Path, Path], None]
) -> None:
    from lpd.weights import save_pretrained

    config = dataclasses.replace(tiny_model.config, tokenizer_sha256=TOKENIZER)
    save_pretrained(tmp_path / "model", tiny_model, config)
    command(setting, tmp_path / "cache")
    plans = PlanLossConfig(
        pretrained_ckpt=tmp_path / "model",
        cached_path=tmp_path / "cache",
        output_dir=tmp_path / "losses",
        decoding=MeasuredPlans(order=("random",), generation_steps=(4,)),
        one_at_a_time=False,
        device="cpu",
    )
    run_plan_loss(plans, World())
    assert read_json(tmp_path / "losses" / LOSSES_NAME)["settings"]["num_images"] == COUNT


@pytest.mark.slow
def test_an_evaluations_output_is_what_is_read(
    make_config: Callable[..., EvalConfig],
) -> None:
    from lpd.evaluation.generated.sweep import run_evaluation

    config = make_config(order="raster", generation_steps=4, reference=None)
    run_evaluation(config, World())
    setting = config.output_dir / "raster_4"
    found = read_generated(setting)
    np.testing.assert_array_equal(found.codes, read_codes(setting, num_images=24, old_size=10))
    np.testing.assert_array_equal(found.labels, np.arange(24) % 3)
    assert found.tokenizer_sha256 == read_json(config.output_dir / "settings.json")["vqgan_path"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: chunk_path(s / "chunks", range(10, 20)).unlink(), "10 of the 25 images of .* "),
        (lambda s: put(s, range(20, COUNT), identity="two"), "of different settings or weights"),
        (lambda s: put(s, range(20, COUNT), identity=None), "of different settings or weights"),
        (lambda s: write_json(s.parent / "settings.json", {}), "does not tell num_images, as"),
        (lambda s: write_json(s.parent / "settings.json", [1]), "does not tell num_images, as"),
        (lambda s: (s.parent / "settings.json").unlink(), "is no setting's folder of main_eval"),
        (lambda s: (s.parent / "settings.json").write_text("{"), "is not valid JSON"),
        (lambda s: recorded(s, vocab_size=12), "holds codes that are not below 12"),
        (lambda s: recorded(s, num_classes=2), "holds labels that are not below 2"),
        (lambda s: recorded(s, img_size=32), r"holds codes \[10, 16\], expected \[10, 64\]"),
        (lambda s: recorded(s, conditioning="text"), "are of text, not of classes"),
        (lambda s: recorded(s, depth="two"), "settings.json is not a LPDConfig"),
        (lambda s: recorded(s, colour=3), "settings.json is not a LPDConfig"),
    ],
)
def test_what_cannot_be_read(setting: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(setting)
    with pytest.raises(InputError, match=message):
        read_generated(setting)
    with pytest.raises(InputError, match=r"is no setting.s folder of main_eval\.py, such as"):
        read_generated(setting.parent)


def recorded(setting: Path, **changes: object) -> None:
    """Have the evaluation's record tell of another model."""
    record = setting.parent / "settings.json"
    told = read_json(record)
    write_json(record, {**told, "model_config": {**told["model_config"], **changes}})
