"""Runs that commit a1c7edb began are continued: nobody's folder is orphaned.

The runs are in tests/data/recorded_a1c7edb, whose record.py made them and says what is where; its
commands are given to today's programs, on a copy. What is asserted is what is kept, what is made,
and what is refused, never a number that a processor rounded. Later settings, metrics and parts of a
checkpoint may stand beside the recorded ones.
"""

import json
import runpy
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lpd.data import code_cache
from lpd.evaluation.features.extractors import load_feature_extractor
from lpd.evaluation.generated.chunks import read_codes
from lpd.models.lpd import PRESETS

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "data" / "recorded_a1c7edb"
CONTENT = json.loads((RECORDED / "commands.json").read_text())
COMMANDS: dict[str, list[str]] = CONTENT["commands"]


@pytest.fixture(autouse=True)
def _recorded_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the recorded runs as the working folder, and the numbers they were made with."""
    shutil.copytree(RECORDED, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.delenv("LPD_TRACEBACK", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with (
        mock.patch.object(code_cache, "SHARD_IMAGES", CONTENT["shard_images"]),
        mock.patch.dict(PRESETS, {"lpd_tiny": tuple(CONTENT["lpd_tiny"])}),
    ):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(name: str, *changes: str) -> object:
    """Give a recorded command to today's program, with changes; returns the exit code."""
    program, *flags = COMMANDS[name]
    with mock.patch.object(sys, "argv", [program, *flags, *changes]):
        try:
            runpy.run_path(str(ROOT / program), run_name="__main__")
        except SystemExit as exit_:
            return exit_.code
    return 0


def files(folder: str) -> dict[str, bytes]:
    """The content of all files in a folder, or of the one file."""
    path = Path(folder)
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file.as_posix(): file.read_bytes() for file in found}


def written_at(names: Iterable[str]) -> dict[str, int]:
    return {name: Path(name).stat().st_mtime_ns for name in names}


def count_backward() -> mock._patch:
    """Counts training steps: each has one backward pass."""
    backward = torch.Tensor.backward
    return mock.patch.object(torch.Tensor, "backward", autospec=True, side_effect=backward)


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("tokenizer", "tokenizer", "is complete"),
        ("classifier", "classifier", "complete, accuracy"),
        ("cache", "cache", "is complete: 20 images"),
        ("training_done", "training_done", "is complete already"),
        ("orders", "orders.npz", "complete already"),
    ],
)
def test_what_is_complete_is_left_alone(
    name: str, folder: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    times = written_at(before)
    assert run(name) == 0
    assert words in capsys.readouterr().out
    assert files(folder) == before
    assert written_at(before) == times


@pytest.mark.parametrize(
    ("name", "folder", "change", "word"),
    [
        ("tokenizer", "tokenizer", ("--lr", "0.1"), "tokenizer"),
        ("tokenizer_part", "tokenizer_part", ("--seed", "9"), "tokenizer_part"),
        ("classifier", "classifier", ("--epochs", "2"), "epochs"),
        ("cache", "cache", ("--img_size", "16"), "image_size"),
        ("cache_part", "cache_part", ("--data_path", "other"), "files_sha256"),
        ("cache_part", "cache_part", ("--vqgan_path", "other/tokenizer"), "tokenizer_sha256"),
        ("training", "training", ("--seed", "4"), "seed"),
        ("training", "training", ("--proj_dropout", "0"), "proj_dropout"),
        ("training", "training", ("--cached_path", "other/cache"), "files_sha256"),
        ("training_done", "training_done", ("--lr", "0.02"), "lr"),
        ("evaluation", "evaluation", ("--num_images", "23"), "num_images"),
        ("evaluation", "evaluation", ("--repulsion_threshold", "0"), "repulsion"),
        ("evaluation", "evaluation", ("--reference", "images"), "reference"),
    ],
)
def test_a_changed_setting_is_refused(
    name: str,
    folder: str,
    change: tuple[str, ...],
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Other images under the same number, the cache of them, and a tokenizer with other weights.
    shutil.copytree("images", "other")
    Path("other/train/a/00.png").rename("other/train/a/99.png")
    shutil.copytree("tokenizer", "other/tokenizer")
    weights = Path("other/tokenizer/model.safetensors").read_bytes()
    Path("other/tokenizer/model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\0")
    if "other/cache" in change:
        assert run("cache", "--data_path", "other", "--cached_path", "other/cache") == 0
    before = files(folder)
    capsys.readouterr()
    assert run(name, *change) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert word in last
    assert files(folder) == before


def test_an_interrupted_tokenizer_goes_on() -> None:
    losses = torch.load("tokenizer_part/checkpoint.pt", weights_only=True)["losses"]
    with count_backward() as backward:
        assert run("tokenizer_part") == 0
    assert backward.call_count == 12 - 5
    log = json.loads(Path("tokenizer_part/training.json").read_text())
    assert len(log["losses"]) == 12
    assert log["losses"][:5] == losses
    recorded = json.loads(Path("tokenizer/training.json").read_text())
    assert log.keys() >= recorded.keys()
    assert log["config"].items() >= recorded["config"].items()
    assert files("tokenizer_part").keys() == {
        name.replace("tokenizer/", "tokenizer_part/") for name in files("tokenizer")
    }


def test_an_interrupted_cache_gets_the_shards_it_lacks() -> None:
    before = files("cache_part")
    assert set(before) == {
        f"cache_part/{name}" for name in ("meta.json", "files.txt", "labels.npy", "codes_00000.npy")
    }
    times = written_at(before)
    assert run("cache_part") == 0
    after = files("cache_part")
    assert after.keys() - before.keys() == {f"cache_part/codes_0000{k}.npy" for k in (1, 2)}
    assert before.items() <= after.items()
    assert written_at(before) == times
    # The shards that were made are those of a cache made today from the beginning.
    assert run("cache_part", "--cached_path", "fresh") == 0
    for name in ("meta.json", "files.txt", "labels.npy", "codes_00001.npy", "codes_00002.npy"):
        assert after[f"cache_part/{name}"] == Path("fresh", name).read_bytes(), name


def test_an_interrupted_training_goes_on_from_its_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = Path("training/log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]  # two after the checkpoint
    # Marked, so that lines that were written anew can be told from those that were kept.
    log.write_text("".join(json.dumps(line | {"recorded": True}) + "\n" for line in lines))
    kept = log.read_text().splitlines()[:5]
    before = files("training/checkpoints/step_00000005")
    with count_backward() as backward:
        assert run("training") == 0
    assert backward.call_count == 10 - 5
    assert "from step 5" in capsys.readouterr().out
    assert log.read_text().splitlines()[:5] == kept
    new = [json.loads(line) for line in log.read_text().splitlines()[5:]]
    assert [line["step"] for line in new] == [6, 7, 8, 9, 10]
    assert all(line.keys() >= lines[0].keys() for line in new)
    assert files("training/checkpoints/step_00000005") == before

    # The last checkpoint holds what the first one did, and the optimizer's steps were counted on.
    parts = [
        FileSystemReader(f"training/checkpoints/step_{step:08d}").read_metadata()
        for step in (5, 10)
    ]
    assert parts[0].state_dict_metadata.keys() <= parts[1].state_dict_metadata.keys()
    counted = []
    for step in (5, 10):
        dcp_to_torch_save(f"training/checkpoints/step_{step:08d}", "whole.pt")
        state = torch.load("whole.pt", weights_only=False)["optimizer"]["state"]
        counted.append({name: values["step"].item() for name, values in state.items()})
    assert set(counted[0].values()) == {5}
    assert counted[1] == dict.fromkeys(counted[0], 10)

    # It ends in what the same training ends in that was never interrupted.
    manifests = [
        json.loads(Path(f"training/checkpoints/step_{step:08d}/manifest.json").read_text())
        for step in (5, 10)
    ]
    done = json.loads(Path("training/model/training.json").read_text())
    recorded = json.loads(Path("training_done/model/training.json").read_text())
    assert done["steps"] == recorded["steps"] == 10
    assert recorded["fingerprint"].items() <= done["fingerprint"].items()
    assert manifests[0]["fingerprint"].items() <= manifests[1]["fingerprint"].items()
    assert files("training/model").keys() == {
        name.replace("training_done/", "training/") for name in files("training_done/model")
    }
    # It was begun before models knew what their classes are called.
    assert "class_names" not in json.loads(Path("training_done/model/config.json").read_text())
    names = json.loads(Path("cache/meta.json").read_text())["class_names"]
    for folder in ("training/model", "training/checkpoints/step_00000010/model"):
        assert json.loads(Path(folder, "config.json").read_text())["class_names"] == names
    assert run("training") == 0
    assert "complete already" in capsys.readouterr().out


def name_the_classifier() -> None:
    """Have the evaluation's record name its classifier as it is named now: its user's word that it
    is the same."""
    record = Path("evaluation/settings.json")
    values = json.loads(record.read_text())
    extractor = load_feature_extractor("classifier", torch.device("cpu"))
    assert values["feature_extractor"] == f"classifier {extractor.fingerprint.split()[-1]}"
    record.write_text(json.dumps(values | {"feature_extractor": extractor.fingerprint}))


def test_an_evaluation_does_not_say_how_its_classifier_was_configured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its record names the weights alone; with another mean, say, they give other features."""
    before = files("evaluation")
    assert run("evaluation") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "made otherwise (feature_extractor was classifier 0007549" in last
    assert last.endswith("give another --output_dir")
    assert files("evaluation") == before


def test_a_setting_younger_than_an_evaluation_counts_as_its_default() -> None:
    """Group sizes grow as the cosine where the record does not say how: what was made is that."""
    name_the_classifier()
    record = Path("evaluation/settings.json")
    whole = json.loads(record.read_text())
    assert whole["group_size_schedule"] == "cosine"
    older = {name: value for name, value in whole.items() if name != "group_size_schedule"}
    record.write_text(json.dumps(older))
    before = written_at(files("evaluation/lpd_4"))
    assert run("evaluation") == 0
    assert whole.items() <= json.loads(record.read_text()).items()
    assert written_at(before) == before
    assert not Path("evaluation/lpd_4_cosine").exists()


def test_an_interrupted_evaluation_makes_what_is_missing() -> None:
    name_the_classifier()
    before = files("evaluation")
    assert "evaluation/raster_4/metrics.json" not in before
    settings = json.loads(before["evaluation/settings.json"])
    # Settings and results are written again on every run, the reference's features for the
    # classifier's name, and features of images go once they have served; all else stays.
    written = {
        *("settings.json", "results.json", "reference.npz"),
        "raster_4/chunks/chunk_00000.npz",
    }
    times = written_at(before.keys() - {f"evaluation/{name}" for name in written})
    assert run("evaluation") == 0
    after = files("evaluation")
    assert after.keys() - before.keys() == {
        "evaluation/raster_4/chunks/chunk_00000008_00000016.npz",
        "evaluation/raster_4/chunks/chunk_00000016_00000024.npz",
        *(f"evaluation/raster_4/{name}" for name in ("metrics.json", "samples.png")),
        *("evaluation/raster_4/statistics.npz", "evaluation/results.csv"),
        "evaluation/raster_4/class_accuracy.json",
    }
    assert written_at(times) == times
    assert settings.items() <= json.loads(after["evaluation/settings.json"]).items()

    lpd, raster = json.loads(after["evaluation/results.json"])["results"]
    recorded, made = (
        json.loads(after[f"evaluation/{setting}/metrics.json"]) for setting in ("lpd_4", "raster_4")
    )
    assert recorded == json.loads(before["evaluation/lpd_4/metrics.json"])
    # What did not say how it was drawn is of what the folder has recorded.
    assert lpd.items() >= recorded.items()
    assert (lpd["cfg"], lpd["seed"]) == (settings["cfg"], settings["seed"])
    assert raster == made
    # The same numbers are there, and the same are missing.
    assert made.keys() >= recorded.keys()
    for name, number in recorded.items():
        assert (made[name] is None) == (number is None), name
    assert (made["order"], made["generation_steps"], made["num_images"]) == ("raster", 4, 24)

    # The chunks that were made are those of an evaluation made today from the beginning.
    assert run("evaluation", "--output_dir", "fresh") == 0
    found, fresh = (
        read_codes(Path(name, "raster_4"), num_images=24, old_size=8)
        for name in ("evaluation", "fresh")
    )
    np.testing.assert_array_equal(found, fresh)


def test_a_recorded_evaluation_grows_by_other_ways_to_draw() -> None:
    name_the_classifier()
    before = written_at(files("evaluation/lpd_4"))
    assert run("evaluation", "--order", "lpd", "--cfg", "1.5", "2", "--seed", "3", "4") == 0
    assert written_at(before) == before
    results = json.loads(Path("evaluation/results.json").read_text())["results"]
    assert sorted((each["cfg"], each["seed"]) for each in results) == [
        (1.5, 3), (1.5, 4), (2.0, 3), (2.0, 4),
    ]  # fmt: skip


def test_orders_of_another_seed_take_the_place_of_the_old() -> None:
    with np.load("orders.npz") as content:
        old = {name: content[name] for name in content.files}
    assert run("orders", "--seed", "4") == 0
    with np.load("orders.npz") as content:
        new = {name: content[name] for name in content.files}
    assert new.keys() >= old.keys()
    assert (old["seed"], new["seed"]) == (3, 4)
    assert new["orders"].shape == old["orders"].shape == (24, 16)
    assert (new["orders"] != old["orders"]).any()
