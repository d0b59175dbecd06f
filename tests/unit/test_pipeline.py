"""The Python API gives what the command line's pieces give."""

import dataclasses
import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lpd.errors import InputError
from lpd.evaluation.generated.published import ROWS
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD, PRESETS
from lpd.options import defaults
from lpd.orders.files import save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions, PlanSource
from lpd.pipeline import LPDPipeline
from lpd.pipeline_results import Step
from lpd.pretrained import config_of_preset, load_model
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import DecodeInputs, Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
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
    result = pipeline(labels, generation_steps=5, cfg=2.0, top_k=9, seed=4)
    indices = np.arange(3)
    plan = make_plan(OrderConfig(kind="lpd"), (4, 4), make_group_sizes(16, 5), 4, indices)
    codes = Sampler(tiny_model, 3)(
        torch.tensor(labels),
        plan,
        torch.from_numpy(token_uniforms(4, indices, 16)),
        SamplingConfig(cfg=2.0, top_k=9),
    )
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    expected = to_pixels(tokenizer.decode(codes)).permute(0, 2, 3, 1).numpy()
    for image, pixels in zip(result.images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)
    np.testing.assert_array_equal(result.codes, codes)
    np.testing.assert_array_equal(result.plan.orders, plan.orders)
    assert result.plan.group_sizes == plan.group_sizes
    assert result.labels == (2, 0, 1)
    assert 0 < result.seconds < 600


def test_classes_are_called_by_name_or_number(
    tiny_model: LPD, tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_model.config, class_names=("red panda", "crane", "2"))
    save_pretrained(tmp_path, tiny_model, config)
    pipeline = LPDPipeline.from_pretrained(tmp_path, tokenizer_folder, device="cpu")
    result = pipeline(
        ["Red_Panda", 1, np.int64(2), None], generation_steps=4, num_images_per_label=2
    )
    assert result.labels == (0, 0, 1, 1, 2, 2, None, None)
    plain = pipeline([0, 0, 1, 1, 2, 2, None, None], generation_steps=4)
    np.testing.assert_array_equal(result.codes, plain.codes)
    for one in ("crane", 1, np.int64(1), np.array(1), torch.tensor(1)):
        assert pipeline(one, generation_steps=4).labels == (1,)
    assert pipeline(None, generation_steps=4).labels == (None,)
    assert pipeline([], generation_steps=4).images == []
    assert [match.label for match in pipeline.find_classes("panda")] == [0]
    with pytest.raises(InputError, match=r"no class 'cran': did you mean crane = 1"):
        pipeline(["cran"], generation_steps=4)
    assert pipeline(1, generation_steps=4, num_images_per_label=np.int64(2)).labels == (1, 1)
    for count in (0, True, 1.5):
        with pytest.raises(InputError, match=r"num_images_per_label must be at least 1, got"):
            pipeline([0], num_images_per_label=count)


def test_steps_show_what_is_known(folder: Path, tokenizer_folder: Path) -> None:
    pipeline = LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu", batch_size=2)
    steps: list[Step] = []
    result = pipeline([0, 1, 2], group_sizes="1,5,10", callback=steps.append)
    assert [(each.indices.tolist(), each.number, each.num_passes) for each in steps] == [
        *(([0, 1], 1, 3), ([0, 1], 2, 3), ([0, 1], 3, 3)),
        *(([2], 1, 3), ([2], 2, 3), ([2], 3, 3)),
    ]
    passes = result.plan.pass_of_cell
    for step in steps:
        np.testing.assert_array_equal(step.known, passes[step.indices] < step.number)
        np.testing.assert_array_equal(
            step.codes, np.where(step.known, result.codes[step.indices], 0)
        )
        cell = pipeline.img_size // 4
        for image, known in zip(step.images(), step.known, strict=True):
            cells = np.asarray(image).reshape(4, cell, 4, cell, 3).swapaxes(1, 2).reshape(16, -1)
            assert (cells[~known] == 128).all()
            assert not (cells[known] == 128).all(axis=1).any()
        assert step.images([]) == []
        assert step.images([0])[0].tobytes() == step.images()[0].tobytes()
    last = [step for step in steps if step.number == 3]
    shown = [image.tobytes() for step in last for image in step.images()]
    assert shown == [image.tobytes() for image in result.images]
    plain = pipeline([0, 1, 2], group_sizes="1,5,10")
    np.testing.assert_array_equal(plain.codes, result.codes)


def test_orders_are_made_batch_by_batch(
    folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    plan_of = PlanSource.plan

    def noting(self: PlanSource, seed: int, indices: np.ndarray, *known: Any) -> DecodePlan:
        asked.append(indices.tolist())
        return plan_of(self, seed, indices, *known)

    whole = OrderOptions(generation_steps=4).source((4, 4)).plan(6, np.arange(5))
    pipeline = LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu", batch_size=2)
    monkeypatch.setattr(PlanSource, "plan", noting)
    result = pipeline([0] * 5, generation_steps=4, seed=6)
    assert asked == [[], [0, 1], [2, 3], [4]]
    np.testing.assert_array_equal(result.plan.orders, whole.orders)
    assert result.plan.group_sizes == whole.group_sizes


class Graphs:
    """Runs batches as captured graphs would, and takes note of them."""

    def __init__(self, generator: ImageGenerator) -> None:
        self._work = generator._work
        self.run: list[int] = []

    def __call__(self, inputs: DecodeInputs) -> tuple[torch.Tensor, ...]:
        self.run.append(len(inputs))
        return self._work(inputs)


def test_batches_that_nobody_watches_run_by_graphs(folder: Path, tokenizer_folder: Path) -> None:
    pipeline = LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu", batch_size=2)
    plain = pipeline([0, 1, 2, 0, 1, 2, 0], generation_steps=4)
    steps: list[Step] = []
    for watched, run in (
        (None, []),
        ([3, np.int64(2)], [2, 2, 1]),
        (np.array([6, 0]), [2, 2]),
        ((), [2, 2, 2, 1]),
    ):
        steps.clear()
        graphs: Any = Graphs(pipeline.generator)
        pipeline.generator.graphs = graphs
        result = pipeline(
            [0, 1, 2, 0, 1, 2, 0],
            generation_steps=4,
            callback=steps.append,
            callback_images=watched,
        )
        np.testing.assert_array_equal(result.codes, plain.codes)
        assert graphs.run == run
        wanted = range(7) if watched is None else watched
        batches = {index // 2 for index in wanted}
        assert {int(step.indices[0]) // 2 for step in steps} == batches
        assert len(steps) == 4 * len(batches)
    for wrong in ([7], [-1], [0.0], 3, "0", [True, False]):
        with pytest.raises(InputError, match="indices of the call's 2 images, from 0 on, got"):
            pipeline([0, 1], generation_steps=4, callback=steps.append, callback_images=wrong)


def test_the_whole_is_saved_in_one_folder(
    pipeline: LPDPipeline, folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = LPDPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.model.config == pipeline.model.config
    assert again.tokenizer.sha256 == pipeline.tokenizer.sha256
    one, other = (each([1, 2], generation_steps=4) for each in (pipeline, again))
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    half = LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"load it with dtype=torch\.float32 to save it"):
        half.save_pretrained(tmp_path / "half")
    with pytest.raises(InputError, match="weights are rounded to bfloat16"):
        LPDPipeline(half.model, half.tokenizer)
    assert not (tmp_path / "half").exists()


def test_the_whole_comes_from_the_hub_too(
    pipeline: LPDPipeline,
    folder: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    serve_hub: Callable[[Mapping[str, Path]], str],
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    state = load_file(tokenizer_folder / "model.safetensors")
    tokenizer_file = tmp_path / "pickle" / "vq_ds16_c2i.pt"  # as the published one is called
    tokenizer_file.parent.mkdir()
    torch.save(state, tokenizer_file)
    shutil.copy(tokenizer_folder / "config.json", tokenizer_file.parent)
    pickled = LPDPipeline.from_pretrained(folder, tokenizer_file, device="cpu")
    pickled.save_pretrained(tmp_path / "pickled")
    served = {
        "my/digits": tmp_path / "saved",
        "my/pickled": tmp_path / "pickled",
        "my/model": folder,
    }
    hub = {"endpoint": serve_hub(served), "cache_dir": tmp_path / "cache", "device": "cpu"}
    for name, saved in (("my/digits", pipeline), ("my/pickled", pickled)):
        again = LPDPipeline.from_pretrained(name, **hub)
        assert again.tokenizer.sha256 == saved.tokenizer.sha256
    for name in (folder, "my/model"):  # whose codes the published tokenizer does not have
        with pytest.raises(InputError, match=r"no tokenizer with .*: name the model's tokenizer"):
            LPDPipeline.from_pretrained(name, **hub)


def test_a_revision_is_the_models(
    folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(name: str, _patterns: list[str], **hub: Any) -> Path:
        asked.append((name, hub))
        return {"my/model": folder, "my/tokenizer": tokenizer_folder}[name]

    monkeypatch.setattr("lpd.pretrained.fetch_folder", fetched)
    LPDPipeline.from_pretrained("my/model", "my/tokenizer", revision="v2", token="t")
    assert asked == [
        ("my/model", {"revision": "v2", "token": "t"}),
        ("my/tokenizer", {"token": "t"}),
    ]


def test_options_that_there_are_not_are_named(folder: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(TypeError, match=r"no option 'torch_dtype'; the hub's are .*revision"):
        LPDPipeline.from_pretrained(folder, tokenizer_folder, torch_dtype=torch.bfloat16)


def test_passes_that_decode_again_are_counted(pipeline: LPDPipeline) -> None:
    steps: list[Step] = []
    how = {"generation_steps": 4, "refine": 0.5, "refine_steps": 3}
    result = pipeline([0], callback=steps.append, **how)
    assert result.num_passes == len(steps) == 7
    assert result.pass_of_cell.max() == 3


def test_published_models_have_settings(
    pipeline: LPDPipeline,
    tiny_model: LPD,
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="is no published one"):
        pipeline.recommended(20)
    config = tiny_model.config
    monkeypatch.setitem(PRESETS, "lpd_l", (config.depth, config.dim, config.num_heads))
    rows = {
        name: dataclasses.replace(row, img_size=config.img_size)
        for name, row in ROWS.items()
        if row.img_size == 256
    }
    monkeypatch.setattr("lpd.pipeline.ROWS", rows)
    # Of the same shape, but of other classes than ImageNet's.
    with pytest.raises(InputError, match="is no published one"):
        pipeline.recommended(32)
    monkeypatch.setattr("lpd.pipeline.NUM_CLASSES", config.num_classes)
    expected = {"generation_steps": 32, "cfg": 5.4, "repulsion_threshold": 2.0}  # the paper's
    assert pipeline.recommended(32) == expected
    with pytest.raises(InputError, match=r"settings of 20 or 32 passes, so none of 48 passes"):
        pipeline.recommended(48)


def test_everything_from_the_hub_by_name(
    tokenizer_folder: Path,
    tmp_path: Path,
    serve_hub: Callable[[Mapping[str, Path]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published names with networks scaled down; nothing else is given."""
    monkeypatch.setitem(PRESETS, "lpd_l", (1, 32, 2))
    small = VQGANConfig(
        ch=8,
        ch_mult=(1, 1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=8,
        norm_groups=4,
    )

    class Default(VQGANConfig):
        def __init__(self, **values: Any) -> None:
            super().__init__(**{**dataclasses.asdict(small), **values})

    monkeypatch.setattr("lpd.tokenizer.vq_tokenizer.VQGANConfig", Default)
    model, vqgan = LPD(config_of_preset("lpd_l")), VQGAN(small)
    model.init_weights()
    folders = {"mit-han-lab/lpd_l_256": "model", "FoundationVision/LlamaGen": "tokenizer"}
    hub = {name: tmp_path / folder for name, folder in folders.items()}
    for folder in hub.values():
        folder.mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "model" / "lpd_l_256.pth")
    torch.save({"model": vqgan.state_dict()}, tmp_path / "tokenizer" / "vq_ds16_c2i.pt")
    where = {"endpoint": serve_hub(hub), "cache_dir": tmp_path / "cache", "device": "cpu"}
    pipeline = LPDPipeline.from_pretrained("mit-han-lab/lpd_l_256", **where)
    assert (pipeline.img_size, pipeline.num_classes, pipeline.grid) == (256, 1000, (16, 16))
    result = pipeline(["golden retriever", 207, "volcano"], **pipeline.recommended(20))
    assert result.labels == (207, 207, 980)
    assert result.plan.num_groups == 20
    local = LPDPipeline.from_pretrained(
        tmp_path / "model" / "lpd_l_256.pth", tmp_path / "tokenizer" / "vq_ds16_c2i.pt"
    )
    again = local([207, 207, 980], generation_steps=20, cfg=4.8, repulsion_threshold=2)
    np.testing.assert_array_equal(result.codes, again.codes)
    # Once fetched, it needs no hub; what was never fetched does.
    offline = {**where, "local_files_only": True}
    assert LPDPipeline.from_pretrained("mit-han-lab/lpd_l_256", **offline).num_classes == 1000
    with pytest.raises(InputError, match="mit-han-lab/lpd_xl_256 is neither a folder nor a repos"):
        LPDPipeline.from_pretrained("mit-han-lab/lpd_xl_256", **offline)


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
    one = pipeline([1], generation_steps=4).images[0]
    several = pipeline([1, 0, 2, 1], generation_steps=4).images  # a larger batch makes a new cache
    again = pipeline([1], generation_steps=4).images[0]
    assert one.tobytes() == several[0].tobytes() == again.tobytes()
    assert one.tobytes() != several[3].tobytes()
    assert one.tobytes() != pipeline([1], generation_steps=4, seed=1).images[0].tobytes()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([4], {}, "there is no class 4: labels are from 0 to 2, and None is for no class"),
        ([0, 3], {}, "there is no class 3"),
        ([-1], {}, "there is no class -1"),
        ([0], {"generation_steps": 17}, "17 generation steps do not fit 16 positions"),
        ([0], {"order": "spiral"}, "unknown order 'spiral'"),
        ([0], {"cfg": float("inf")}, "cfg must be from 0 to 1000"),
        ([0], {"cfg": "3"}, "cfg must be a number, got '3'"),
        ([0], {"generation_steps": 4.0}, "generation_steps must be a whole number or None"),
        ([0], {"order": None}, "order must be text, got None"),
        ([0], {"group_sizes": 16}, "group_sizes must be text or None, got 16"),
        ([0], {"group_sizes": (1, 14)}, r"group sizes \(1 14\) sum to 15"),
        ([0], {"group_sizes": ()}, "group sizes must be positive integers"),
        ([0], {"group_sizes": (1.0, 15)}, r"whole numbers, or text such as 1,3,5, got \(1.0, 15"),
        ([0], {"group_sizes": [True, 15]}, r"whole numbers, or text such as 1,3,5, got \[True"),
        ([0], {"callback": 3}, "callback must be a function of a Step, got 3"),
        ([0], {"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ([0], {"seed": "a"}, "seed must be a whole number, got 'a'"),
        (b"0", {}, "a class is given by its name"),
        (np.array(1.5), {}, "a class is given by its name"),
    ],
)
def test_bad_requests(
    pipeline: LPDPipeline, labels: Any, settings: dict[str, object], message: str
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
    for name, meant in (
        ("repulsion", "repulsion_threshold"),
        ("num_inference_steps", "generation_steps"),
        ("guidance_scale", "cfg"),
    ):
        with pytest.raises(TypeError, match=rf"no option '{name}'; did you mean '{meant}'\?"):
            pipeline([0], **{name: 1})
    sizes = pipeline([0], group_sizes="1,5,10").images[0]
    for given in ((1, 5, 10), [np.int64(1), 5, 10], np.array([1, 5, 10]), torch.tensor([1, 5, 10])):
        assert sizes.tobytes() == pipeline([0], group_sizes=given).images[0].tobytes()
    assert sizes.tobytes() != pipeline([0], group_sizes="8,8").images[0].tobytes()
    # A file of the very orders that would have been made: the same image.
    locality = LocalityConfig(proximity_threshold=1.5, repulsion_threshold=1.0)
    plan = make_plan(OrderConfig(locality=locality), (4, 4), (1, 5, 10), 0, np.arange(1))
    file = tmp_path / "orders.npz"
    save_orders(file, plan.orders, plan.group_sizes, kind="lpd", seed=0, locality=locality)
    thresholds = dataclasses.asdict(locality)
    made = pipeline([0], group_sizes="1,5,10", **thresholds).images[0]
    read = pipeline([0], group_sizes="1,5,10", lpd_order_file=file, **thresholds).images[0]
    assert made.tobytes() == read.tobytes()
    with pytest.raises(ValueError, match=r"repulsion_threshold was 1\.0, now 2\.0"):
        pipeline([0], group_sizes="1,5,10", lpd_order_file=file)


def test_shapes_of_group_sizes(pipeline: LPDPipeline) -> None:
    uniform = pipeline([1], generation_steps=4, group_size_schedule="uniform", seed=2).images[0]
    expected = make_group_sizes(16, 4, "uniform")
    assert expected != make_group_sizes(16, 4)
    written = pipeline([1], group_sizes=",".join(map(str, expected)), seed=2).images[0]
    assert uniform.tobytes() == written.tobytes()


@pytest.mark.parametrize("dtype", [[1], np.zeros(2), "float16", torch.float16, 32])
def test_dtypes_that_there_are_not(folder: Path, tokenizer_folder: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match="dtype must be float32, bfloat16 or None, got"):
        LPDPipeline.from_pretrained(folder, tokenizer_folder, device="cpu", dtype=dtype)
    with pytest.raises(InputError, match="dtype must be float32, bfloat16 or None, got"):
        LPDPipeline.from_pretrained("there/is_none", dtype=dtype)  # said before it is looked for


def test_bf16_and_the_batch_size_are_the_generators(folder: Path, tokenizer_folder: Path) -> None:
    cpu = torch.device("cpu")
    labels = [0, 2, None, 1, 2]
    result = LPDPipeline.from_pretrained(
        folder, tokenizer_folder, device="cpu", dtype="bfloat16", batch_size=2
    )(labels, generation_steps=4, cfg=2.0, seed=6)
    generator = ImageGenerator(
        load_model(folder, cpu),
        VQTokenizer.from_pretrained(tokenizer_folder, cpu),
        batch_size=2,
        bf16=True,
    )
    plan = OrderOptions(generation_steps=4).source((4, 4)).plan(6, np.arange(5))
    batches = generator.batches(labels, plan, seed=6, sampling=SamplingConfig(cfg=2.0))
    expected = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert len(result.images) == len(labels)
    for image, pixels in zip(result.images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_model_of_another_tokenizer(
    tiny_model: LPD, tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_model.config, tokenizer_sha256="0" * 64)
    save_pretrained(tmp_path, tiny_model, config)
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        LPDPipeline.from_pretrained(tmp_path, tokenizer_folder, device="cpu")
