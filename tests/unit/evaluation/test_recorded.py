"""Evaluations that earlier versions began go on.

``tests/data/evaluation_a1c7edb`` was made by commit a1c7edb on one CPU: a random model (1 layer of
width 16), tokenizer (4 channels) and classifier (resnet10t of 4 to 8 channels) in the shapes of
their ``config.json``, saved by that commit; 12 images of noise as ``reference.npz``; and in ``out``
the evaluation of them that :data:`OPTIONS` describes, by its ``run_evaluation``. Then it was made
to look interrupted: the metrics and the second of three chunks of ``lpd_4`` went to ``expected``,
and what ends a run (results.json, pictures) was deleted.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.chunks import Chunk
from lpd.evaluation.setting import EvalConfig
from lpd.evaluation.sweep import run_evaluation
from lpd.options import from_flat

RECORDED = Path(__file__).parents[2] / "data" / "evaluation_a1c7edb"
OPTIONS = {
    "img_size": 16,
    "num_images": 24,
    "eval_bsz": 8,
    "chunk_size": 8,
    "order": ("raster", "lpd"),
    "generation_steps": (4,),
    "cfg": 1.5,
    "num_workers": 0,
    "device": "cpu",
}


@pytest.fixture
def folder(tmp_path):
    """A copy of what was recorded."""
    return shutil.copytree(RECORDED, tmp_path / "recorded")


def evaluate(folder, **changes):
    places = {
        "pretrained_ckpt": folder / "model",
        "vqgan_path": folder / "tokenizer",
        "feature_extractor": str(folder / "classifier"),
        "reference": folder / "reference.npz",
        "output_dir": folder / "out",
    }
    return run_evaluation(from_flat(EvalConfig, {**OPTIONS, **places, **changes}), World())


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_of_commit_a1c7edb_goes_on_and_ends(folder):
    before = files_of(folder)
    lpd, raster = evaluate(folder)
    after = files_of(folder)
    for path, content in before.items():  # nothing is made again, settings.json stays word for word
        assert after[path] == content, path
    made = Chunk.load(folder / "out" / "lpd_4" / "chunks" / "chunk_00001.npz")
    expected = Chunk.load(folder / "expected" / "lpd_4" / "chunks" / "chunk_00001.npz")
    np.testing.assert_array_equal(made.codes, expected.codes)
    np.testing.assert_array_equal(made.labels, expected.labels)
    # Other processors round differently.
    np.testing.assert_allclose(made.features, expected.features, rtol=1e-3, atol=1e-3)
    for result, place in ((lpd, "expected/lpd_4"), (raster, "out/raster_4")):
        recorded = json.loads((folder / place / "metrics.json").read_text())
        assert list(result.flat()) == list(recorded)
        del recorded["seconds_per_image"]
        assert {name: result.flat()[name] for name in recorded} == {
            name: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            for name, value in {**recorded, "group_sizes": (1, 3, 5, 7)}.items()
        }
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["settings"] == json.loads((folder / "out" / "settings.json").read_text())
    assert results["orders"].keys() == {"lpd", "raster"}


def test_a_setting_younger_than_a_folder_counts_as_its_default(folder):
    record = folder / "out" / "settings.json"
    whole = json.loads(record.read_text())
    assert whole["group_size_schedule"] == "cosine"
    older = {name: value for name, value in whole.items() if name != "group_size_schedule"}
    record.write_text(json.dumps(older))
    with pytest.raises(InputError, match=r"group_size_schedule was cosine, now linear.*--output_d"):
        evaluate(folder, group_size_schedule="linear")
    assert json.loads(record.read_text()) == older
    assert len(evaluate(folder, order=("raster",))) == 1
    assert json.loads(record.read_text()) == whole
