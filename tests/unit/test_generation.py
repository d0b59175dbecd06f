"""Images are what the parts make by hand, whatever the batch; previews grow into them."""

import contextlib
import copy
import dataclasses
import itertools
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lpd.errors import InputError
from lpd.generation import Generated, ImageGenerator, Labels, Preview, slices
from lpd.models.lpd import LPD
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import PlanSource
from lpd.randomness import token_uniforms
from lpd.sampling import precision
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import DecodeInputs, Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels

SIZES = (1, 3, 5, 7)
SOURCE = PlanSource(order=OrderConfig(), grid=(4, 4), group_sizes=SIZES)
SAMPLING = SamplingConfig(cfg=2.0)
LABELS = [2, None, 0, 1, 1, 0, 2]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> VQTokenizer:
    return VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_images_are_what_the_parts_make_one_by_one(
    tiny_model: LPD, tokenizer: VQTokenizer, batch_size: int
) -> None:
    """The obvious twin: streams, plan, sampler and tokenizer called by hand, an image at a time."""
    generator = ImageGenerator(tiny_model, tokenizer, batch_size=batch_size)
    indices = np.arange(20, 27)
    batches = list(
        generator.batches(
            LABELS, SOURCE.plan(4, indices), seed=4, sampling=SAMPLING, image_indices=indices
        )
    )
    assert max(len(batch.codes) for batch in batches) <= batch_size
    codes = torch.cat([batch.codes for batch in batches])
    images = torch.cat([batch.images for batch in batches])
    sampler = Sampler(tiny_model, 1)
    for row, (label, index) in enumerate(zip(LABELS, indices, strict=True)):
        alone = np.array([index])
        expected = sampler(
            torch.tensor([3 if label is None else label]),
            make_plan(OrderConfig(), (4, 4), SIZES, 4, alone),
            torch.from_numpy(token_uniforms(4, alone, 16)),
            SAMPLING,
        )
        assert torch.equal(codes[row], expected[0])
        # A batch's size chooses kernels, and a pixel may round the other way.
        pixels = to_pixels(tokenizer.decode(expected))[0]
        assert (images[row].int() - pixels.int()).abs().max() <= 1
    difference = generator.decode(codes.numpy()).astype(int) - images.numpy()
    assert np.abs(difference).max() <= 1


def test_previews_grow_into_the_image(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    generator = ImageGenerator(tiny_model, tokenizer)
    indices = np.arange(2)
    known = np.zeros((2, 16), dtype=bool)
    known[0, :3] = known[1, 5:8] = True
    codes = np.full((2, 16), 9)
    plan = make_plan(OrderConfig(), (4, 4), (2, 4, 7), 0, indices, known)
    how = {"seed": 0, "image_indices": indices, "sampling": SAMPLING, "known_codes": codes}
    final = generator.generate([0, 1], plan, **how).codes
    assert (final.numpy()[known] == 9).all()
    previews: list[Preview] = []

    def watch(found: npt.NDArray[np.int64], number: int, num_passes: int, known: Preview) -> None:
        assert (found.tolist(), num_passes) == ([0, 1], 3)
        previews.append(known)
        assert number == len(previews)

    (watched,) = generator.batches([0, 1], plan, on_pass=watch, **how)
    (plain,) = generator.batches([0, 1], plan, **how)
    for found in (watched, plain):
        assert torch.equal(found.codes, final)
        assert torch.equal(found.images, watched.images)
    assert [int(each.known[0].sum()) for each in previews] == [5, 9, 16]
    for before, after in itertools.pairwise(previews):
        assert (after.known | ~before.known).all()
        assert torch.equal(after.codes[before.known], before.codes[before.known])
    for each in previews:
        assert torch.equal(each.codes[each.known], final[each.known])
        assert not each.codes[~each.known].any()
    assert not torch.is_inference_mode_enabled()


def test_previews_go_on_while_codes_are_decoded_again(
    tiny_model: LPD, tokenizer: VQTokenizer
) -> None:
    generator = ImageGenerator(tiny_model, tokenizer)
    plan = make_plan(OrderConfig(), (4, 4), (2, 5, 9), 0, np.arange(2))
    how = {"seed": 0, "image_indices": np.arange(2)}
    plain = SamplingConfig(cfg=2.0)
    refined = dataclasses.replace(plain, refine=0.4, refine_steps=2)  # 6 of 16
    first = generator.generate([0, 1], plan, **how, sampling=plain)
    final = generator.generate([0, 1], plan, **how, sampling=refined)
    assert not torch.equal(first.codes, final.codes)
    assert first.log_probs is final.log_probs is None
    previews: list[Preview] = []
    watched = generator.run(
        generator.prepare([0, 1], plan, **how, sampling=refined),
        lambda _number, known: previews.append(known),
    )
    assert torch.equal(watched.codes, final.codes)
    assert [each.known.sum(1).tolist() for each in previews] == [
        [2, 2], [7, 7], [16, 16], [11, 11], [16, 16],
    ]  # fmt: skip
    for number, each in enumerate(previews):
        expected = first if number < 3 else final
        assert torch.equal(each.codes[each.known], expected.codes[each.known])
        assert not each.codes[~each.known].any()
    kept = previews[3].known
    changed = (first.codes != final.codes) & kept
    assert changed.sum(1).tolist() <= [1, 1]  # the one code that the first pass has decoded again


def test_bf16_keeps_the_weights_in_bfloat16(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    model = LPD(tiny_model.config).eval().requires_grad_(False)
    model.load_state_dict(tiny_model.state_dict())
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, np.arange(3))
    how = {"seed": 0, "image_indices": np.arange(3), "sampling": SamplingConfig()}
    codes = ImageGenerator(model, tokenizer, bf16=True).generate([0, 1, 2], plan, **how).codes
    assert model.head.weight.dtype == torch.bfloat16
    uniforms = torch.from_numpy(token_uniforms(0, np.arange(3), 16))
    expected = Sampler(tiny_model, 3, tiny_model.stack(torch.bfloat16))(
        torch.arange(3), plan, uniforms, SamplingConfig()
    )
    assert torch.equal(codes, expected)


@pytest.mark.parametrize(("speedup", "pays"), [(0.6, False), (1.1, False), (2.0, True)])
def test_bf16_on_a_cpu_is_chosen_by_measurement(
    tiny_model: LPD,
    tokenizer: VQTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    speedup: float,
    pays: bool,
) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    model = copy.deepcopy(tiny_model)
    assert not ImageGenerator(model, tokenizer).bf16  # by default results do not depend on it
    assert ImageGenerator(model, tokenizer, bf16=None).bf16 == pays
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ImageGenerator(model, tokenizer, bf16=True).bf16
    assert [str(each.message) for each in caught] == (
        [] if pays else ["on this processor bfloat16 is hardly faster than float32, or slower"]
    )


def test_bf16_leaves_a_model_in_training_as_it_is(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    plan = make_plan(OrderConfig(), (4, 4), SIZES, 0, np.arange(3))
    how = {"seed": 0, "image_indices": np.arange(3), "sampling": SAMPLING}
    codes = []
    for in_training in (True, False):
        model = LPD(tiny_model.config).eval().requires_grad_(in_training)
        model.load_state_dict(tiny_model.state_dict())
        generator = ImageGenerator(model, tokenizer, bf16=True)
        codes.append(generator.generate([0, 1, 2], plan, **how).codes)
        kept = all(weight.dtype == torch.float32 for weight in model.parameters())
        assert kept == in_training
    assert torch.equal(*codes)


def test_batches_are_prepared_on_the_stream_that_runs_them(
    tiny_model: LPD, tokenizer: VQTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread begins on the default stream, whatever the caller's is."""
    generator = ImageGenerator(tiny_model, tokenizer)
    current = threading.local()
    current.stream = "the caller's"

    @contextlib.contextmanager
    def enter(stream: str) -> Iterator[None]:
        before = getattr(current, "stream", "the default")
        current.stream = stream
        yield
        current.stream = before

    monkeypatch.setattr(ImageGenerator, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current.stream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    seen = []

    def prepare(item: int) -> int:
        seen.append((item, current.stream, threading.current_thread()))
        return item

    assert list(generator.prepare_ahead(prepare, range(3))) == [0, 1, 2]
    assert [each[:2] for each in seen] == [(item, "the caller's") for item in range(3)]
    assert seen[1][2] is not threading.current_thread()
    assert current.stream == "the caller's"


def test_a_label_is_refused_before_anything_is_generated(
    tiny_model: LPD, tokenizer: VQTokenizer
) -> None:
    generator = ImageGenerator(tiny_model, tokenizer, batch_size=2)
    with pytest.raises(InputError, match="there is no class 3"):
        generator.batches([0, 1, 2, 3], SOURCE.plan(0, np.arange(4)), seed=0, sampling=SAMPLING)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (6, 3), (7, 3)])
def test_slices_cover_everything_once(count: int, size: int) -> None:
    rows = [np.arange(count)[part] for part in slices(count, size)]
    assert all(0 < len(part) <= size for part in rows)
    np.testing.assert_array_equal(np.concatenate([*rows, np.empty(0, int)]), np.arange(count))


def test_the_next_batch_is_prepared_while_one_runs(
    tiny_model: LPD, tokenizer: VQTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = ImageGenerator(tiny_model, tokenizer, batch_size=2)
    entered = [threading.Event() for _ in range(3)]
    prepare, run = generator.prepare, generator.run

    def entering(labels: Labels, plan: DecodePlan, **how: Any) -> DecodeInputs:
        entered[int(how["image_indices"][0]) // 2].set()
        return prepare(labels, plan, **how)

    ran: list[Generated] = []

    def run_until_entered(inputs: DecodeInputs, on_pass: None) -> Generated:
        assert len(ran) == 2 or entered[len(ran) + 1].wait(60)
        ran.append(run(inputs, on_pass))
        return ran[-1]

    plan = SOURCE.plan(4, np.arange(5))
    expected = list(generator.batches(LABELS[:5], plan, seed=4, sampling=SAMPLING))
    monkeypatch.setattr(generator, "prepare", entering)
    monkeypatch.setattr(generator, "run", run_until_entered)
    found = list(generator.batches(LABELS[:5], plan, seed=4, sampling=SAMPLING))
    assert [id(batch) for batch in found] == [id(batch) for batch in ran]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.images, other.images)
