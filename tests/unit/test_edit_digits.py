"""scripts/quickstart/edit_digits.py: what is counted, and that a complete folder stays."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lpd.editing import Editor
from lpd.errors import InputError
from lpd.evaluation.features.extractors import Classifier, Features
from lpd.files import read_json
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD
from lpd.orders.request import OrderOptions
from lpd.pipeline_results import to_images
from lpd.sampling.config import SamplingConfig
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained
from scripts.quickstart import edit_digits
from scripts.quickstart.claims import editing_claim
from scripts.quickstart.edit_digits import EditDigitsConfig, other_classes, spread_over_classes
from scripts.quickstart.run import GUIDANCE, LOCALITY
from scripts.quickstart.tables import editing_table


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_other_classes_are_others(labels: list[int]) -> None:
    others = other_classes(np.array(labels), 5)
    assert ((others >= 0) & (others < 5)).all()
    steps = (others - labels) % 5
    assert steps.min() > 0
    counts = np.bincount(steps, minlength=5)[1:]  # one step to each of the other classes
    assert counts.max() - counts.min() <= 1


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), most=st.integers(1, 40))
def test_chosen_digits_are_of_all_classes(labels: list[int], most: int) -> None:
    rows = spread_over_classes(np.array(labels))
    assert sorted(rows) == list(range(len(labels)))
    chosen = [labels[row] for row in rows[:most]]
    for label in set(labels):  # as many of each as of any other, unless there are no more
        if chosen.count(label) < max(map(chosen.count, set(labels))) - 1:
            assert chosen.count(label) == labels.count(label)


def test_regions_by_hand() -> None:
    lower, middle = (region((2, 3)) for region in edit_digits.REGIONS.values())
    assert lower.tolist() == [[False] * 3, [True] * 3]
    assert middle.tolist() == [[False, True, False]] * 2


@pytest.mark.slow
def test_shares_by_hand(
    tiny_model: LPD, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a classifier that sees whatever the sum of the pixels says."""
    monkeypatch.setattr(edit_digits, "SHOWN_STEPS", 4)
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    editor = Editor(ImageGenerator(tiny_model, tokenizer, batch_size=4))
    labels = np.array([0, 0, 1, 2, 2])
    others = other_classes(labels, 3)
    pixels = np.random.default_rng(0).integers(256, size=(5, 3, 16, 16), dtype=np.uint8)

    def seen(images: np.ndarray) -> np.ndarray:
        return images.astype(np.int64).sum(axis=(1, 2, 3)) % 3

    def classifier(images: torch.Tensor) -> Features:
        return Features(features=torch.zeros(5, 1), logits=torch.eye(3)[seen(images.numpy())])

    result = edit_digits.measure(editor, classifier, pixels, labels, seed=1)
    assert result["images"] == 5
    share = np.mean(seen(pixels) == labels)
    assert result["real"] == pytest.approx(share)
    assert result["real_error"] == pytest.approx(np.sqrt(share * (1 - share) / 4))
    decoded = editor.generator.decode(editor.encode(pixels))
    assert result["reconstructed"] == pytest.approx(np.mean(seen(decoded) == labels))
    plan = OrderOptions(generation_steps=4, locality=LOCALITY).source((4, 4)).plan(1, np.arange(5))
    how = edit_digits.settings_of(1)
    batches = editor.generator.batches(
        others.tolist(), plan, seed=1, sampling=SamplingConfig(cfg=GUIDANCE)
    )
    generated = np.concatenate([batch.images.numpy() for batch in batches])
    assert result["generated"] == pytest.approx(np.mean(seen(generated) == others))
    lower, middle = np.zeros((2, 16, 16), dtype=bool)
    lower[8:] = middle[:, 4:12] = True
    found = iter(result["edits"])
    for name, mask in (("the lower half", lower), ("all but the sides", middle)):
        for wanted in (labels, others):
            edited = editor.inpaint(to_images(pixels), [mask] * 5, wanted.tolist(), how)
            each = next(found)
            assert each["region"] == name
            assert each["is_own_class"] == (wanted is labels)
            assert each["passes"] == edited.num_passes.max()
            assert each["recognised"] == pytest.approx(np.mean(seen(edited.images) == wanted))
            as_before = np.mean(seen(edited.images) == labels)
            assert each["recognised_as_before"] == pytest.approx(as_before)
    assert not list(found)


@pytest.mark.slow
def test_a_complete_folder_stays(
    tiny_model: LPD,
    tokenizer_folder: Path,
    make_classifier: Callable[[], Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(edit_digits, "SHOWN_STEPS", 4)
    save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
    make_classifier().save(tmp_path / "classifier")
    random = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "digits" / "val" / str(label)
        folder.mkdir(parents=True)
        for number in range(2):
            scan = random.integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(scan).save(folder / f"{number}.png")
    config = EditDigitsConfig(
        data_path=tmp_path / "digits",
        pretrained_ckpt=tmp_path / "model",
        vqgan_path=tokenizer_folder,
        classifier=tmp_path / "classifier",
        output_dir=tmp_path / "out",
        num_images=4,
    )
    edit_digits.run(config)
    made = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert made.keys() == {"editing.json", "editing.png"}
    result = read_json(tmp_path / "out" / "editing.json")
    assert result["images"] == 4
    for edits in result["edits"]:
        assert 0 <= edits["recognised"] <= 1
    with Image.open(tmp_path / "out" / "editing.png") as picture:
        assert picture.width == 12 * 60 - 4
    capsys.readouterr()
    edit_digits.run(config)
    assert "complete" in capsys.readouterr().out
    assert made == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "editing.png").unlink()
    edit_digits.run(config)
    assert made == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match=r"out was made otherwise \(seed was 0, now 1\)"):
        edit_digits.run(dataclasses.replace(config, seed=1))
    (tmp_path / "digits" / "val" / "3").mkdir()
    scan = Image.new("RGB", (16, 16))
    scan.save(tmp_path / "digits" / "val" / "3" / "0.png")
    other = dataclasses.replace(config, output_dir=tmp_path / "other")
    with pytest.raises(InputError, match="has 4 classes, the model 3 and the classifier 3"):
        edit_digits.run(other)


def test_mistakes_are_named() -> None:
    here = dict.fromkeys(
        ("data_path", "pretrained_ckpt", "vqgan_path", "classifier", "output_dir"), Path()
    )
    with pytest.raises(InputError, match="num_images must be at least 2, got 1"):
        EditDigitsConfig(**here, num_images=1)
    with pytest.raises(InputError, match="seed must be from 0"):
        EditDigitsConfig(**here, seed=-1)


def test_what_the_report_says_of_edits() -> None:
    def edits(own: bool, share: float, before: float) -> dict[str, Any]:
        return {
            "region": "the lower half",
            "is_own_class": own,
            "passes": 6,
            "recognised": share,
            "recognised_error": 0.03,
            "recognised_as_before": before,
            "recognised_as_before_error": 0.01,
        }

    shares = {"real": 0.99, "reconstructed": 0.98, "generated": 0.9}
    editing = {
        "images": 100,
        **shares,
        **{f"{name}_error": 0.04 for name in shares},
        "edits": [edits(True, 0.97, 0.97), edits(False, 0.5, 0.25)],
    }
    cells = re.findall(r"<td>(.*?)</td>", editing_table(editing))
    assert cells == [
        *("real, held out", "", "99.0 ± 4.0", ""),
        *("real, after the tokenizer", "", "98.0 ± 4.0", ""),
        *("generated from nothing", "16", "90.0 ± 4.0", ""),
        *("the lower half anew, as its own class", "6", "97.0 ± 3.0", ""),
        *("the lower half anew, as another class", "6", "50.0 ± 3.0", "25.0 ± 1.0"),
    ]
    assert editing_claim(editing).endswith("is lower with the lower half anew (-0.400 ± 0.050).")
    editing["edits"][1]["recognised"] = 0.85
    assert editing_claim(editing).endswith(
        "is within noise with the lower half anew (-0.050 ± 0.050)."
    )
