"""Captured generation on a GPU against the eager twin on the same one."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.editing import Editor
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings
from lpd.tokenizer.vq_tokenizer import VQTokenizer

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
GUIDED = SamplingConfig(cfg=3.0)
CONFIGS = [
    SamplingConfig(),
    GUIDED,
    SamplingConfig(cfg=3.0, top_k=5),
    SamplingConfig(cfg=2.0, top_p=0.8, temperature=0.7),
    SamplingConfig(cfg=3.0, cfg_start=0.5, temperature_schedule="entropy"),
    SamplingConfig(cfg=3.0, temperature_schedule="linear", refine=0.4),
]


@pytest.fixture(autouse=True)
def _no_fallback() -> Iterator[None]:
    """A capture or a compilation that fails is a failure here; other libraries may warn."""
    with warnings.catch_warnings():
        for told in ("decoding is not captured", "blocks are run operator by operator"):
            warnings.filterwarnings("error", message=told)
        yield


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> VQTokenizer:
    return VQTokenizer.from_pretrained(tokenizer_folder, DEVICE)


def generator(model: LPD, tokenizer: VQTokenizer, **options: Any) -> ImageGenerator:
    on_gpu = copy.deepcopy(model).to(DEVICE)
    return ImageGenerator(on_gpu, tokenizer, batch_size=64, **options)


def batch(
    seed: int,
    count: int = 64,
    sizes: tuple[int, ...] = (1, 2, 5, 8),
    sampling: SamplingConfig = GUIDED,
    num_known: int = 0,
) -> dict[str, Any]:
    images = np.arange(count)
    known = np.zeros((count, 16), dtype=bool)
    known[:, seed % 4 : seed % 4 + num_known] = True
    return {
        "labels": ((images + seed) % 3).tolist(),
        "plan": make_plan(OrderConfig(), (4, 4), sizes, seed, images, known),
        "seed": seed,
        "image_indices": images,
        "sampling": sampling,
        "known_codes": np.random.default_rng(seed).integers(24, size=(count, 16)),
    }


def share_of_other_images(
    ours: ImageGenerator, twin: ImageGenerator, arguments: dict[str, Any]
) -> float:
    """How many images have another code somewhere."""
    codes, expected = (each.generate(**arguments).codes for each in (ours, twin))
    return (codes != expected).any(dim=1).float().mean().item()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_captured_body_is_the_eager_twin_token_for_token(
    tiny_model: LPD, tokenizer: VQTokenizer, config: SamplingConfig
) -> None:
    eager = generator(tiny_model, tokenizer, backend="eager", cuda_graphs=False)
    captured = generator(tiny_model, tokenizer, backend="eager")
    for seed in range(3):
        assert share_of_other_images(captured, eager, batch(seed, sampling=config)) == 0
    assert captured.graphs is not None
    assert captured.graphs.num_recorded == 1


def test_plans_alternate_and_known_cells_are_kept(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    eager = generator(tiny_model, tokenizer, backend="eager", cuda_graphs=False)
    captured = generator(tiny_model, tokenizer, backend="eager")
    for seed in range(3):
        for sizes, num_known, count in [((1, 2, 5, 8), 0, 64), ((4, 12), 0, 7), ((3, 10), 3, 33)]:
            arguments = batch(seed, count, sizes, num_known=num_known)
            assert share_of_other_images(captured, eager, arguments) == 0


def test_edits_are_the_eager_twin_s(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    """Run eagerly, then recorded, then replayed; seen pass by pass; and over a larger canvas."""
    eager, captured = (
        Editor(generator(tiny_model, tokenizer, backend="eager", cuda_graphs=graphs))
        for graphs in (False, True)
    )
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(5)
    ]
    labels = [0, 1, 2, None, 1]
    how = EditSettings(decoding=OrderOptions(generation_steps=6), sampling=GUIDED)
    for _ in range(3):
        keep = random.permuted(np.tile(np.arange(16) < 7, (5, 1)), axis=1)
        edits = [each.variations(images, labels, how, keep=keep) for each in (eager, captured)]
        edits.append(captured.variations(images, labels, how, keep=keep, on_pass=lambda *_: None))
        for each in edits[1:]:
            np.testing.assert_array_equal(each.codes, edits[0].codes)
            np.testing.assert_array_equal(each.known, keep)
            np.testing.assert_array_equal(each.codes[keep], edits[0].codes[keep])
    assert captured.generator.graphs is not None
    assert captured.generator.graphs.num_recorded == 1
    canvases = [
        each.outpaint(images, labels, how, OutpaintOptions(left=12, bottom=4))
        for each in (eager, captured)
    ]
    np.testing.assert_array_equal(canvases[0].codes, canvases[1].codes)


# Rounding in another order moves a border between two tokens by some 1e-6 in float32, and by some
# 1e-3 in bfloat16; an image has 16 tokens of some borders each, and a flip changes what follows.
@pytest.mark.parametrize("backend", ["compiled", "fused"])
@pytest.mark.parametrize(("bf16", "most"), [(False, 0.02), (True, 0.5)])
def test_other_backends_flip_few_tokens(
    tiny_model: LPD, tokenizer: VQTokenizer, backend: str, bf16: bool, most: float
) -> None:
    eager = generator(tiny_model, tokenizer, backend="eager", cuda_graphs=False, bf16=bf16)
    fast = generator(tiny_model, tokenizer, backend=backend, bf16=bf16)
    share = np.mean([share_of_other_images(fast, eager, batch(seed)) for seed in range(4)])
    print(f"{backend}, bf16={bf16}: {share:.2%} of the images have another code")
    assert share <= most


def test_repeated_calls_do_not_grow_memory(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    captured = generator(tiny_model, tokenizer, backend="eager")
    for seed in range(3):
        captured.generate(**batch(seed))
    before = torch.cuda.memory_allocated(DEVICE), torch.cuda.memory_reserved(DEVICE)
    for seed in range(20):
        captured.generate(**batch(seed))
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(DEVICE), torch.cuda.memory_reserved(DEVICE)) == before


def test_graphs_that_come_and_go_share_their_memory(
    tiny_model: LPD, tokenizer: VQTokenizer
) -> None:
    captured = generator(tiny_model, tokenizer, backend="eager")
    assert captured.graphs is not None
    captured.graphs._capacity = 2
    reserved = []
    for first in range(1, 13):  # a plan of its own each
        captured.generate(**batch(0, sizes=(first, 16 - first)))
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved(DEVICE))
    assert max(reserved[3:]) <= reserved[2] + 2**21 * 4  # a few blocks of the allocator's


@pytest.mark.parametrize(
    ("bf16", "fused", "most"), [(False, True, 1), (True, False, 8), (True, True, 8)]
)
def test_pixels_on_a_gpu_are_the_cpus(
    tokenizer_folder: Path, tokenizer: VQTokenizer, bf16: bool, fused: bool, most: int
) -> None:
    codes = torch.randint(24, (4, 16), generator=torch.Generator().manual_seed(0))
    on_cpu = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    expected = on_cpu.pixel_decoder()(codes, (4, 4)).int()
    pixels = tokenizer.pixel_decoder(bf16=bf16, fused=fused)(codes.to(DEVICE), (4, 4)).cpu().int()
    difference = (pixels - expected).abs()
    assert difference.max() <= most
    assert difference.float().mean() <= most / 4
