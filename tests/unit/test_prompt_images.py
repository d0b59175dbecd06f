"""scripts/prompt_images.py: the same images in any batches, by any processes; what is recorded."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

import lpd.text_pipeline
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.prompts.config import PromptImagesConfig
from lpd.options import defaults, flatten, from_flat
from lpd.orders.files import save_orders
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.provenance import Origin
from lpd.weights import save_pretrained
from scripts.prompt_images import identity_of, load_pipeline, run

PROMPTS = ["a red three", "ein grüner Drache", "a red three", "six", "one two three four five six"]


@pytest.fixture
def encoder(make_word_encoder, monkeypatch):
    """The text encoder of every pipeline that is loaded."""
    encoder = make_word_encoder()
    monkeypatch.setattr(lpd.text_pipeline, "load_encoder", lambda *_, **__: encoder)
    return encoder


@pytest.fixture
def make_config(text_model, tokenizer_folder, encoder, tmp_path):
    """Makes configurations of a tiny model; arguments replace their values."""
    config = dataclasses.replace(
        text_model.config, text_encoder="words", text_encoder_sha256=encoder.identity.sha256
    )
    save_pretrained(tmp_path / "model", text_model, config)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")

    def make_config(**changes):
        values = {
            "pretrained_ckpt": str(tmp_path / "model"), "vqgan_path": str(tokenizer_folder),
            "prompts": prompts, "output_dir": tmp_path / "out", "num_images_per_prompt": 2,
            "generation_steps": 4, "cfg": 3.0, "device": "cpu",
        }  # fmt: skip
        return from_flat(PromptImagesConfig, {**values, **changes})

    return make_config


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_images_depend_on_neither_batches_nor_processes(make_config, in_threads, tmp_path, said):
    one = make_config(output_dir=tmp_path / "one", eval_bsz=10)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cut")  # it is told in a line, not by batches
        run(one, World())
    assert said().count("1 of 5 prompts have more than the 5 tokens that the model reads") == 1
    whole = files_of(one.output_dir)
    images = [whole[name] for name in sorted(whole) if name.endswith(".png")]
    assert len(set(images)) == len(images) == 10  # also those of equal prompts
    two = make_config(output_dir=tmp_path / "two", eval_bsz=3)
    in_threads(lambda world: run(two, world), 2)
    assert files_of(two.output_dir) == whole
    (two.output_dir / "images" / "00005.png").unlink()
    run(make_config(output_dir=tmp_path / "two", eval_bsz=1), World())
    assert files_of(two.output_dir) == whole


def test_every_field_changes_the_settings_or_is_known_not_to(make_config, tmp_path):
    """A field added later must not slip past the check that guards an output folder."""
    config = make_config()
    run(config, World())
    settings = json.loads((config.output_dir / "settings.json").read_text())
    known = {"output_dir", "eval_bsz", "backend", "cuda_graphs", "device"}
    # Those that records leave out where they have their defaults, or no effect.
    usual = defaults(PromptImagesConfig)
    for name in flatten(config).keys() - known - settings.keys():
        assert getattr(config.options.sampling, name) == usual[name]
    objects, other = tmp_path / "prompts.jsonl", tmp_path / "other.txt"
    objects.write_text(json.dumps({"prompt": "a red three", "tag": "colors"}))
    other.write_text("seven")
    pipeline = load_pipeline(config, World())

    def differing(**changes):
        changed = make_config(**changes)
        prompts = changed.layout_entry.read(changed.prompts)
        return Origin(values=identity_of(changed, prompts, pipeline)).differing(settings)

    assert differing() == []
    assert differing(eval_bsz=1, cuda_graphs=False) == []
    assert differing(prompts=other) == ["prompts"]
    assert differing(layout="geneval", prompts=objects) == ["layout", "prompts"]
    for name, value in {
        "seed": 1, "cfg": 2.0, "negative_prompt": "grey", "num_images_per_prompt": 1,
        "generation_steps": 5, "order": "raster", "refine": 0.5, "temperature": 0.9,
        "repulsion_threshold": 1.0, "cfg_end": 0.5, "bf16": True,
    }.items():  # fmt: skip
        assert name in differing(**{name: value})
    with pytest.raises(InputError, match=r"was made otherwise \(seed was 0, now 1\)"):
        run(make_config(seed=1), World())


def test_another_text_encoder_is_another_setting(make_config, encoder):
    run(make_config(num_images_per_prompt=1), World())
    encoder.max_length = 3
    with pytest.raises(InputError, match="text_length was 5, now 3"):
        run(make_config(num_images_per_prompt=1), World())


def test_too_few_orders_are_refused_before_any_work(make_config, tmp_path):
    plan = make_plan(OrderConfig(kind="lpd"), (4, 4), (1, 3, 5, 7), 0, np.arange(9))
    path = tmp_path / "orders.npz"
    locality = LocalityConfig()
    save_orders(path, plan.orders, plan.group_sizes, kind="lpd", seed=0, locality=locality)
    config = make_config(lpd_order_file=path, group_sizes="1,3,5,7")
    with pytest.raises(InputError, match="holds 9 orders, fewer than the 10 images"):
        run(config, World())
    assert not config.output_dir.exists()


def test_a_model_of_classes_is_refused_in_a_line(make_config, tiny_model, tmp_path):
    save_pretrained(tmp_path / "classes", tiny_model, tiny_model.config)
    with pytest.raises(InputError, match="LPDPipeline"):
        run(make_config(pretrained_ckpt=str(tmp_path / "classes")), World())
