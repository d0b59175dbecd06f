"""The Python API gives what the command line's pieces give."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD
from lpd.options import defaults
from lpd.orders.files import save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions
from lpd.pipeline import LPDPipeline
from lpd.pretrained import load_model
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels
from lpd.weights import save_pretrained


@pytest.fixture
def folder(tiny_model: LPD, tmp_path: Path) -> Path:
    save_pretrained(tmp_path, tiny_model, tiny_model.config)
    return tmp_path


@pytest.fixture
def pipeline(folder: Path, tokenizer_folder: Path) -> LPDPipeline:
    return LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu")


def test_images_are_those_of_sampler_and_tokenizer(
    pipeline: LPDPipeline, tiny_model: LPD, tokenizer_folder: Path
) -> None:
    labels = [2, 0, 1]
    images = pipeline(labels, generation_steps=5, cfg=2.0, top_k=9, seed=4)
    indices = np.arange(3)
    codes = Sampler(tiny_model, 3)(
        torch.tensor(labels),
        make_plan(OrderConfig(kind="lpd"), (4, 4), make_group_sizes(16, 5), 4, indices),
        torch.from_numpy(token_uniforms(4, indices, 16)),
        SamplingConfig(cfg=2.0, top_k=9),
    )
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    expected = to_pixels(tokenizer.decode(codes)).permute(0, 2, 3, 1).numpy()
    for image, pixels in zip(images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_an_order_with_its_own_passes_takes_those(
    pipeline: LPDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    original = Sampler.upload

    def watched(self: Sampler, labels: torch.Tensor, plan: DecodePlan, *rest: object):
        passes.append(plan.group_sizes)
        return original(self, labels, plan, *rest)

    monkeypatch.setattr(Sampler, "upload", watched)
    pipeline([0], order="nar")  # the default number of passes, 20, does not fit 16 positions
    pipeline([0], order="halton", generation_steps=2)
    assert passes == [(1, 2, 3, 4, 3, 2, 1), (1, 15)]


def test_an_image_depends_on_label_seed_and_place_alone(pipeline: LPDPipeline) -> None:
    one = pipeline([1], generation_steps=4)[0]
    several = pipeline([1, 0, 2, 1], generation_steps=4)  # a larger batch makes a new cache
    again = pipeline([1], generation_steps=4)[0]
    assert one.tobytes() == several[0].tobytes() == again.tobytes()
    assert one.tobytes() != several[3].tobytes()
    assert one.tobytes() != pipeline([1], generation_steps=4, seed=1)[0].tobytes()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([4], {}, "there is no class 4: labels are from 0 to 2, and None is for no class"),
        ([0, 3], {}, "there is no class 3"),
        ([-1], {}, "there is no class -1"),
        ([0], {"generation_steps": 17}, "17 generation steps do not fit 16 positions"),
        ([0], {"order": "spiral"}, "unknown order 'spiral'"),
        ([0], {"cfg": float("inf")}, "cfg must be from 0 to 1000"),
    ],
)
def test_bad_requests(
    pipeline: LPDPipeline, labels: list[int], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(labels, **{"generation_steps": 4, **settings})


def test_options_are_those_of_the_command_line(pipeline: LPDPipeline, tmp_path: Path) -> None:
    asked = inspect.signature(LPDPipeline.__call__).parameters
    expected = {**defaults(OrderOptions), **defaults(SamplingConfig)}
    assert {name: asked[name].default for name in expected} == expected
    assert asked["lpd_order_file"].default is None
    # What tyro is told about a flag does not show in a notebook.
    assert asked["cfg_schedule"].annotation is asked["order"].annotation is str
    with pytest.raises(TypeError, match=r"no option 'repulsion'; did you mean 'repulsion_thr"):
        pipeline([0], repulsion=1.0)
    sizes = pipeline([0], group_sizes="1,5,10")[0]
    assert sizes.tobytes() != pipeline([0], group_sizes="8,8")[0].tobytes()
    # A file of the very orders that would have been made: the same image.
    locality = LocalityConfig(proximity_threshold=1.5, repulsion_threshold=1.0)
    plan = make_plan(OrderConfig(locality=locality), (4, 4), (1, 5, 10), 0, np.arange(1))
    file = tmp_path / "orders.npz"
    save_orders(file, plan.orders, plan.group_sizes, kind="lpd", seed=0, locality=locality)
    thresholds = dataclasses.asdict(locality)
    made = pipeline([0], group_sizes="1,5,10", **thresholds)[0]
    read = pipeline([0], group_sizes="1,5,10", lpd_order_file=file, **thresholds)[0]
    assert made.tobytes() == read.tobytes()
    with pytest.raises(ValueError, match=r"repulsion_threshold was 1\.0, now 2\.0"):
        pipeline([0], group_sizes="1,5,10", lpd_order_file=file)


def test_shapes_of_group_sizes(pipeline: LPDPipeline) -> None:
    uniform = pipeline([1], generation_steps=4, group_size_schedule="uniform", seed=2)[0]
    expected = make_group_sizes(16, 4, "uniform")
    assert expected != make_group_sizes(16, 4)
    written = pipeline([1], group_sizes=",".join(map(str, expected)), seed=2)[0]
    assert uniform.tobytes() == written.tobytes()


def test_bf16_and_the_batch_size_are_the_generators(folder: Path, tokenizer_folder: Path) -> None:
    cpu = torch.device("cpu")
    labels = [0, 2, None, 1, 2]
    images = LPDPipeline.from_pretrained(
        folder, tokenizer_folder, device="cpu", bf16=True, batch_size=2
    )(labels, generation_steps=4, cfg=2.0, seed=6)
    generator = ImageGenerator(
        load_model(folder, cpu),
        VQTokenizer.from_pretrained(tokenizer_folder, cpu),
        batch_size=2,
        bf16=True,
    )
    source = OrderOptions(generation_steps=4).source((4, 4))
    batches = generator.batches(labels, source, seed=6, sampling=SamplingConfig(cfg=2.0))
    expected = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert len(images) == len(labels)
    for image, pixels in zip(images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_model_of_another_tokenizer(
    tiny_model: LPD, tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_model.config, tokenizer_sha256="0" * 64)
    save_pretrained(tmp_path, tiny_model, config)
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        LPDPipeline.from_pretrained(tmp_path, tokenizer_folder, device="cpu")
