"""Images from prompts are those of their hidden states, however prompts are given."""

import dataclasses
import inspect
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.editing import Editor
from lpd.errors import InputError
from lpd.models.lpd import LPD
from lpd.options import defaults, from_flat
from lpd.orders.request import OrderOptions
from lpd.pipeline import LPDPipeline
from lpd.pipeline_results import Step
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings
from lpd.text_pipeline import LPDTextPipeline
from lpd.texts.encoders import TextEncoder
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained

HOW: dict[str, Any] = {"generation_steps": 4, "cfg": 20.0, "seed": 5}  # so strong that all counts
PROMPTS = ["a red three", "  ", "ein grüner Drache, 绿色的龙", None, "seven"]


@pytest.fixture
def encoder(make_word_encoder: Callable[..., Any]) -> Any:
    return make_word_encoder()


@pytest.fixture
def folder(text_model: LPD, tmp_path: Path, encoder: Any) -> Path:
    config = dataclasses.replace(
        text_model.config, text_encoder="words", text_encoder_sha256=encoder.identity.sha256
    )
    save_pretrained(tmp_path / "model", text_model, config)
    return tmp_path / "model"


@pytest.fixture
def pipeline(folder: Path, tokenizer_folder: Path, encoder: Any) -> LPDTextPipeline:
    return LPDTextPipeline.from_pretrained(
        folder, tokenizer_folder, text_encoder=encoder, device="cpu"
    )


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_images_are_those_of_hidden_states(pipeline: LPDTextPipeline, encoder: Any) -> None:
    result = pipeline(PROMPTS, **HOW)
    states = [
        None if prompt is None or not prompt.strip() else encoder.encode([prompt])[0]
        for prompt in PROMPTS
    ]
    plan = OrderOptions(generation_steps=4).source((4, 4)).plan(5, np.arange(5))
    (expected,) = pipeline.generator.batches(
        states, plan, seed=5, sampling=SamplingConfig(cfg=20.0)
    )
    np.testing.assert_array_equal(result.codes, expected.codes)
    assert pixels(result.images) == pixels(
        [Image.fromarray(each) for each in expected.images.permute(0, 2, 3, 1).numpy()]
    )
    assert result.labels == tuple(PROMPTS)
    again = pipeline(PROMPTS[2], **HOW, image_indices=[2])
    np.testing.assert_array_equal(again.codes[0], result.codes[2])
    nothing = pipeline(["", None], **HOW, image_indices=[1, 3])
    np.testing.assert_array_equal(nothing.codes, result.codes[[1, 3]])
    assert pipeline([], **HOW).images == []


def test_each_text_is_encoded_once(pipeline: LPDTextPipeline, encoder: Any) -> None:
    pipeline(["a", "b", "a", " "], negative_prompt="b", num_images_per_prompt=3, **HOW)
    assert encoder.encoded == [["a", "b"]]
    # As captions are cached: where a tokenizer keeps white space, it would be another text.
    pipeline(["a\n", "a"], negative_prompt="\tc d ", **HOW)
    assert encoder.encoded[1:] == [["a", "c d"]]


def test_several_images_of_a_prompt(pipeline: LPDTextPipeline) -> None:
    result = pipeline(["red", "blue"], negative_prompt=["", "red"], num_images_per_prompt=2, **HOW)
    assert result.labels == ("red", "red", "blue", "blue")
    plain = pipeline(
        ["red", "red", "blue", "blue"], negative_prompt=[None, None, "red", "red"], **HOW
    )
    np.testing.assert_array_equal(result.codes, plain.codes)
    assert not np.array_equal(result.codes[2:], pipeline(list(result.labels), **HOW).codes[2:])


def test_negative_prompts(pipeline: LPDTextPipeline) -> None:
    prompts = ["a red three", "seven", "a", None]
    guided = pipeline(prompts, **HOW)
    for nothing in (None, " ", [None, "", "  ", None]):
        same = pipeline(prompts, negative_prompt=nothing, **HOW)
        np.testing.assert_array_equal(same.codes, guided.codes)
    itself = pipeline(prompts, negative_prompt=prompts, **HOW)
    unguided = pipeline(prompts, **{**HOW, "cfg": 1.0})
    np.testing.assert_array_equal(itself.codes, unguided.codes)
    one_for_all = pipeline(prompts, negative_prompt="blue", **HOW)
    each = pipeline(prompts, negative_prompt=["blue"] * 4, **HOW)
    np.testing.assert_array_equal(one_for_all.codes, each.codes)
    assert (one_for_all.codes != guided.codes).any(axis=1).all()
    with pytest.warns(UserWarning, match="negative_prompt has no effect without guidance"):
        idle = pipeline(prompts, negative_prompt="blue", **{**HOW, "cfg": 1.0})
    np.testing.assert_array_equal(idle.codes, unguided.codes)
    with pytest.raises(InputError, match="one for each of the 4 prompts, got 2"):
        pipeline(prompts, negative_prompt=["a", "b"], **HOW)


def test_long_prompts_are_cut_with_one_warning(pipeline: LPDTextPipeline) -> None:
    long = "one two three four five six"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = pipeline([long, f"{long} seven", "short"], **HOW)
    (message,) = [str(each.message) for each in told]
    assert message.startswith("2 prompts are cut to 5 tokens, which are the most that the model")
    assert repr(long) in message
    cut = pipeline([long.removesuffix(" six")] * 2 + ["short"], **HOW)
    np.testing.assert_array_equal(result.codes, cut.codes)


def test_an_image_of_an_index_is_the_same_in_every_call(
    pipeline: LPDTextPipeline, tiny_model: LPD, tokenizer_folder: Path
) -> None:
    of_classes = LPDPipeline(tiny_model, pipeline.tokenizer, batch_size=2)
    for pipe, wanted in ((pipeline, ["a", "b", "c", "d", "e"]), (of_classes, [0, 1, 2, None, 1])):
        run = pipe(wanted, **HOW)
        steps: list[Step] = []
        rows = np.array([4, 1, 3])
        part = pipe([wanted[row] for row in rows], image_indices=rows, callback=steps.append, **HOW)
        np.testing.assert_array_equal(part.codes, run.codes[rows])
        assert pixels(part.images) == pixels([run.images[row] for row in rows])
        np.testing.assert_array_equal(part.plan.orders, run.plan.orders[rows])
        # A callback is told the place in its own call.
        assert sorted({int(row) for step in steps for row in step.indices}) == [0, 1, 2]
        image = run.images[0]
        whole = pipe.variations(image, wanted, **HOW)
        some = pipe.variations(image, [wanted[row] for row in rows], image_indices=rows, **HOW)
        np.testing.assert_array_equal(some.codes, whole.codes[rows])
        np.testing.assert_array_equal(some.known, whole.known[rows])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0], "a whole number for each of the 2 images, got int64 of shape"),
        ([0.0, 1.0], "got float64"),
        ([True, False], "got bool"),
        ([0, -1], "must be from 0 to 9223372036854775807, got -1 to 0"),
        (np.array([0, 2**63], dtype="u8"), "must be from 0 to"),
        ([0, 2**64], "got object"),
        ([[0, 1]], r"of shape \(1, 2\)"),
        ("01", "got <U2"),
    ],
)
def test_indices_that_are_none(pipeline: LPDTextPipeline, indices: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline(["a", "b"], image_indices=indices, **HOW)


def test_edits_by_prompts_are_the_editors(pipeline: LPDTextPipeline, encoder: Any) -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(256, size=(16, 16, 3), dtype="u1")) for _ in range(2)]
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[4:9, 3:9] = True
    editor, settings = Editor(pipeline.generator), from_flat(EditSettings, HOW)
    red, blue = encoder.encode(["red", "blue"])
    negative = {"null_labels": [blue, blue]}
    for edited, expected in (
        (
            pipeline.inpaint(images, mask, "red", negative_prompt="blue", **HOW),
            editor.inpaint(images, [mask] * 2, [red] * 2, settings, **negative),
        ),
        (
            pipeline.variations(images[0], "red", num_images_per_prompt=2, keep=0.25, **HOW),
            editor.variations([images[0]] * 2, [red] * 2, settings, keep=0.25),
        ),
        (
            pipeline.outpaint(images, ["red", None], negative_prompt="blue", right=8, **HOW),
            editor.outpaint(images, [red, None], settings, OutpaintOptions(right=8), **negative),
        ),
    ):
        np.testing.assert_array_equal(edited.codes, expected.codes)
        np.testing.assert_array_equal(edited.known, expected.known)
        assert edited.labels in (("red", "red"), ("red", None))
    with pytest.raises(InputError, match=r"images, masks and prompts must be as many.*got 2, 1, 3"):
        pipeline.inpaint(images, mask, ["a", "b", "c"], **HOW)


def test_each_model_has_its_pipeline(
    folder: Path, tiny_model: LPD, tokenizer_folder: Path, tmp_path: Path, encoder: Any
) -> None:
    save_pretrained(tmp_path / "classes", tiny_model, tiny_model.config)
    for pipe, name, right in (
        (LPDPipeline, folder, r"lpd\.text_pipeline\.LPDTextPipeline"),
        (LPDTextPipeline, tmp_path / "classes", r"lpd\.pipeline\.LPDPipeline"),
    ):
        with pytest.raises(InputError, match=rf"{name} is conditioned on .*: use {right}$"):
            pipe.from_pretrained(name, tmp_path / "no tokenizer", device="cpu")
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    with pytest.raises(InputError, match=r"use lpd\.pipeline\.LPDPipeline"):
        LPDTextPipeline(tiny_model, tokenizer, encoder)


def test_the_encoder_is_the_models(
    folder: Path,
    text_model: LPD,
    tokenizer_folder: Path,
    tmp_path: Path,
    make_word_encoder: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def loaded(name: str, device: torch.device, **options: Any) -> Any:
        asked.append((name, device.type, options))
        return make_word_encoder(name=str(name))

    monkeypatch.setattr("lpd.prompts.TextEncoder.from_pretrained", loaded)
    how = {"device": "cpu", "revision": "v2", "token": "t"}
    pipeline = LPDTextPipeline.from_pretrained(folder, tokenizer_folder, **how)
    moved = LPDTextPipeline.from_pretrained(folder, tokenizer_folder, text_encoder="moved", **how)
    options = {"max_length": 5, "layer": -1, "token": "t"}  # a revision is the model's
    assert asked == [("words", "cpu", options), ("moved", "cpu", options)]
    np.testing.assert_array_equal(pipeline("red", **HOW).codes, moved("red", **HOW).codes)
    save_pretrained(tmp_path / "unnamed", text_model, text_model.config)
    with pytest.raises(InputError, match="names no text encoder: name it with text_encoder"):
        LPDTextPipeline.from_pretrained(tmp_path / "unnamed", tokenizer_folder, device="cpu")
    for identity, message in (
        ({"sha256": "2" * 64}, "words.*2222.*"),
        ({"width": 7}, "7"),
        ({"layer": -2}, "layer"),
        ({"max_length": 9}, "texts of up to 9 tokens are more than the 5 that this model reads"),
    ):
        with pytest.raises(InputError, match=message):
            LPDTextPipeline.from_pretrained(
                folder, tokenizer_folder, text_encoder=make_word_encoder(**identity), device="cpu"
            )


def test_the_whole_is_saved_in_one_folder_but_the_encoder(
    pipeline: LPDTextPipeline,
    tmp_path: Path,
    make_word_encoder: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    names = {file.relative_to(tmp_path / "saved").parts[0] for file in tmp_path.rglob("saved/**/*")}
    assert names == {"config.json", "model.safetensors", "tokenizer"}
    monkeypatch.setattr(
        "lpd.prompts.TextEncoder.from_pretrained",
        lambda name, device, **options: make_word_encoder(name=name),
    )
    again = LPDTextPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.text_encoder.identity.name == "words"
    expected = pipeline(PROMPTS, **HOW)
    assert pixels(again(PROMPTS, **HOW).images) == pixels(expected.images)
    assert pixels(again.to("cpu")(PROMPTS, **HOW).images) == pixels(expected.images)


def test_what_is_saved_names_the_encoder_that_was_given(
    text_model: LPD, tokenizer_folder: Path, tmp_path: Path, encoder: Any
) -> None:
    """A model that was trained on features of an encoder that nobody named."""
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    LPDTextPipeline(text_model, tokenizer, encoder).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="words"):
        LPDTextPipeline.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (3, "a prompt is text, or None for none, got 3 of type int"),
        (b"red", "got b'red' of type bytes"),
        (["red", 1.5], "got 1.5 of type float"),
        ([["red"]], r"got \['red'\] of type list"),
    ],
)
def test_what_is_no_prompt(pipeline: LPDTextPipeline, prompts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline(prompts, **HOW)
    with pytest.raises(InputError, match=message):
        pipeline(["blue"] * np.size(prompts), negative_prompt=prompts, **HOW)


def test_options_are_those_of_the_command_line(pipeline: LPDTextPipeline) -> None:
    asked = inspect.signature(LPDTextPipeline.__call__).parameters
    expected = {**defaults(OrderOptions), **defaults(SamplingConfig)}
    assert {name: asked[name].default for name in expected} == expected
    with pytest.raises(TypeError, match="no option 'num_images_per_label'"):
        pipeline("red", num_images_per_label=2)
    with pytest.raises(InputError, match="num_images_per_prompt must be at least 1, got 0"):
        pipeline("red", num_images_per_prompt=0)
    assert not hasattr(pipeline, "recommended")


@pytest.mark.slow
def test_with_a_text_encoder_of_transformers(
    make_text_model: Callable[..., LPD],
    text_encoder_folder: Callable[[str], Path],
    tokenizer_folder: Path,
    tmp_path: Path,
) -> None:
    """By its name in the configuration, in any script; and from a folder that was moved."""
    name = text_encoder_folder("t5")
    cpu = torch.device("cpu")
    encoder = TextEncoder.from_pretrained(name, cpu, max_length=12)
    model = make_text_model(text_width=16, text_length=12)
    config = dataclasses.replace(
        model.config, text_encoder=str(name), text_encoder_sha256=encoder.identity.sha256
    )
    save_pretrained(tmp_path / "model", model, config)
    pipeline = LPDTextPipeline.from_pretrained(tmp_path / "model", tokenizer_folder, device="cpu")
    prompts = ["red 3", "", "绿龙", "a very long prompt"]
    with pytest.warns(UserWarning, match="a prompt is cut to 12 tokens.*'a very long prompt'"):
        result = pipeline(prompts, **HOW)
    expected = LPDTextPipeline(model, pipeline.tokenizer, encoder)(["", *prompts[1:]], **HOW)
    np.testing.assert_array_equal(result.codes[1:], expected.codes[1:])
    assert not np.array_equal(result.codes[0], expected.codes[0])
    moved = shutil.copytree(name, tmp_path / "moved")
    again = LPDTextPipeline.from_pretrained(
        tmp_path / "model", tokenizer_folder, text_encoder=moved, device="cpu"
    )
    np.testing.assert_array_equal(again(prompts[:3], **HOW).codes, result.codes[:3])
    with pytest.raises(InputError, match="not valid Unicode"):
        pipeline("\ud800", **HOW)
    with pytest.raises(InputError, match=r"the text encoder .* is not that of this model"):
        LPDTextPipeline.from_pretrained(
            tmp_path / "model", tokenizer_folder, text_encoder=text_encoder_folder("llama")
        )
