"""Generation by recorded graphs, with a recorder that needs no GPU."""

import copy
import dataclasses
import gc
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpd.editing import Editor
from lpd.generation import ImageGenerator
from lpd.models.condition import Condition
from lpd.models.lpd import LPD
from lpd.orders.plan import DecodePlan
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import OrderOptions
from lpd.sampling import graphs
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditSettings
from lpd.sampling.graphs import GraphRunner, Outputs
from lpd.sampling.sampler import DecodeInputs
from lpd.tokenizer.vq_tokenizer import VQTokenizer

PLAIN = SamplingConfig()
GUIDED = SamplingConfig(cfg=3.0)


class Tape(TorchDispatchMode):
    """Records operators with the memory they work on, as a CUDA graph records kernels: what Python
    decided while recording is fixed, and only what is in that memory may differ in a replay."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.steps.append((function, args, kwargs, result))
        return result

    def replay(self) -> None:
        with torch.inference_mode():
            for function, args, kwargs, result in self.steps:
                if function is torch.ops.aten.empty.memory_format:
                    result.fill_(77)  # what is read before it is written shows
                    continue
                inputs = {memory(each) for each in tensors((args, kwargs))}
                again = function(*args, **kwargs)
                for old, new in zip(tensors(result), tensors(again), strict=True):
                    assert (old.shape, old.stride()) == (new.shape, new.stride())
                    if memory(old) not in inputs:  # else a view, or written in place
                        old.copy_(new)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class TapeRecorder:
    """Records tapes."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        tape = Tape()
        with tape:
            outputs = work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            for each in outputs:
                each.fill_(77)  # what is not written shows
            tape.replay()

        return replay, outputs


class Unable:
    """Records nothing."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> VQTokenizer:
    return VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))


@pytest.fixture
def eager(tiny_model: LPD, tokenizer: VQTokenizer) -> ImageGenerator:
    return ImageGenerator(tiny_model, tokenizer, batch_size=6)


@pytest.fixture
def captured(tiny_model: LPD, tokenizer: VQTokenizer) -> ImageGenerator:
    return recording_generator(tiny_model, tokenizer, TapeRecorder())


def recording_generator(
    model: LPD, tokenizer: VQTokenizer, recorder: Any, **options: Any
) -> ImageGenerator:
    generator = ImageGenerator(model, tokenizer, batch_size=6)
    generator.graphs = GraphRunner(generator._work, recorder, batch_size=6, **options)
    return generator


def batch(
    seed: int,
    count: int,
    sizes: tuple[int, ...] = (1, 2, 5, 8),
    sampling: SamplingConfig = GUIDED,
    num_known: int = 0,
) -> dict[str, Any]:
    """The arguments of generating ``count`` images that are another run's for every seed."""
    images = np.arange(count)
    rows = np.stack([np.random.default_rng((seed, i)).permutation(16) for i in images])
    known = np.zeros((count, 16), dtype=bool)
    np.put_along_axis(known, rows[:, :num_known], True, axis=1)
    return {
        "labels": [None if each == 3 else int(each) for each in (images + seed) % 4],
        "plan": make_plan(OrderConfig(), (4, 4), sizes, seed, images, known),
        "seed": seed,
        "image_indices": images,
        "sampling": sampling,
        "known_codes": np.random.default_rng(seed).integers(24, size=(count, 16)),
    }


def check_same(eager: ImageGenerator, captured: ImageGenerator, arguments: dict[str, Any]) -> None:
    expected, actual = eager.generate(**arguments), captured.generate(**arguments)
    assert torch.equal(actual.codes, expected.codes)
    # A batch's size chooses kernels, and a pixel may round the other way.
    assert (actual.images.int() - expected.images.int()).abs().max() <= 1


def test_log_probabilities_are_replayed_where_they_are_asked_for(
    tiny_model: LPD, tokenizer: VQTokenizer
) -> None:
    asked = ImageGenerator(tiny_model, tokenizer, batch_size=6, log_probs=True)
    captured = ImageGenerator(tiny_model, tokenizer, batch_size=6, log_probs=True)
    captured.graphs = GraphRunner(captured._work, TapeRecorder(), batch_size=6)
    for seed in range(2):  # recorded, then replayed with other values
        expected, actual = (each.generate(**batch(seed, 4)) for each in (asked, captured))
        assert expected.log_probs is not None
        assert actual.log_probs is not None
        assert expected.log_probs.shape == (4, 16)
        assert torch.equal(actual.codes, expected.codes)
        torch.testing.assert_close(actual.log_probs, expected.log_probs)


def test_nothing_of_them_is_captured_otherwise(
    eager: ImageGenerator, captured: ImageGenerator
) -> None:
    assert eager.generate(**batch(0, 2)).log_probs is None
    assert captured.generate(**batch(0, 2)).log_probs is None
    assert len(captured._work(captured.prepare(**batch(0, 2)))) == 3


@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        GUIDED,
        SamplingConfig(cfg=0.5, cfg_schedule="constant", temperature=0.7),
        SamplingConfig(cfg=3.0, top_k=5),
        SamplingConfig(top_p=0.8),
        SamplingConfig(top_k=1),
        SamplingConfig(cfg=3.0, cfg_schedule="power_cosine", cfg_start=0.5),
        SamplingConfig(temperature_schedule="linear", temperature_end=2.0),
        SamplingConfig(cfg=2.0, temperature_schedule="entropy"),
        SamplingConfig(refine=0.4),
        SamplingConfig(cfg=2.0, temperature_schedule="linear", refine=0.6, refine_steps=3),
        SamplingConfig(cfg=3.0, cfg_end=0.5, refine=0.25, top_p=0.9),
    ],
    ids=str,
)
def test_a_replay_draws_the_eager_twins_tokens(
    eager: ImageGenerator, captured: ImageGenerator, sampling: SamplingConfig
) -> None:
    for seed in range(4):  # the first records; the others have other labels, orders and uniforms
        check_same(eager, captured, batch(seed, 4, sampling=sampling))
    assert captured.graphs is not None
    assert captured.graphs.num_recorded == 1


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_a_replay_in_bfloat16_flips_nothing(
    tiny_model: LPD, tokenizer: VQTokenizer, backend: str
) -> None:
    """The same operators in the same order; between backends and against float32, about one token
    in a hundred flips (test_bf16.py)."""
    eager, captured = (
        ImageGenerator(
            copy.deepcopy(tiny_model), tokenizer, batch_size=4, bf16=True, backend=backend
        )
        for _ in range(2)
    )
    captured.graphs = GraphRunner(captured._work, TapeRecorder(), batch_size=4)
    for seed in range(3):
        expected, actual = (each.generate(**batch(seed, 4)) for each in (eager, captured))
        assert torch.equal(actual.codes, expected.codes)
        assert torch.equal(actual.images, expected.images)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_sequence_of_batches_gives_what_the_eager_twin_gives(
    tiny_model: LPD, tokenizer: VQTokenizer, data: st.DataObject
) -> None:
    """Plans, batch sizes, guidance and known cells in any order; graphs come and go."""
    eager = ImageGenerator(tiny_model, tokenizer, batch_size=6)
    captured = recording_generator(tiny_model, tokenizer, TapeRecorder(), capacity=2)
    for seed in range(data.draw(st.integers(1, 6))):
        num_known = data.draw(st.sampled_from([0, 3, 3]))
        sizes = data.draw(st.sampled_from([(1, 2, 5, 8 - num_known), (6, 10 - num_known)]))
        check_same(
            eager,
            captured,
            batch(
                seed,
                data.draw(st.integers(1, 6)),
                sizes,
                data.draw(st.sampled_from([PLAIN, GUIDED])),
                num_known,
            ),
        )


def test_two_plans_alternate_between_two_graphs(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder)
    for seed in range(3):
        check_same(eager, captured, batch(seed, 2, (1, 2, 5, 8)))
        check_same(eager, captured, batch(seed, 2, (4, 4, 8)))
    assert (recorder.recorded, recorder.replayed) == (2, 6)


def test_a_shape_with_known_cells_is_recorded_when_it_is_met_again(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    """Masks of many sizes push no graph out that is in use."""
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder, capacity=2)
    check_same(eager, captured, batch(0, 2))
    for num_known in range(1, 9):
        check_same(eager, captured, batch(0, 2, (1, 15 - num_known), num_known=num_known))
    check_same(eager, captured, batch(1, 2))
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    for seed in range(2):
        check_same(eager, captured, batch(seed, 2, (1, 10), num_known=5))
        check_same(eager, captured, batch(seed, 2))
    assert (recorder.recorded, recorder.replayed) == (2, 6)


def test_of_shapes_met_once_a_bounded_number_is_kept(
    captured: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_MOST_MET", 2)
    assert captured.graphs is not None
    for num_known in (1, 2, 3, 1, 3):  # the first is forgotten by the time it comes again
        captured.generate(**batch(0, 2, (1, 15 - num_known), num_known=num_known))
    assert captured.graphs.num_recorded == 1
    assert len(captured.graphs._met) <= 2


def test_edits_by_graphs_are_the_eager_twins(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    """Masks of many sizes come and come again; graphs are replayed, and there is a bound to them.
    No mask is the last one's, so that what a graph froze would show."""
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder, capacity=3)
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)
    ]
    how = EditSettings(decoding=OrderOptions(generation_steps=6), sampling=GUIDED)
    for _ in range(3):
        for num_kept in (2, 5, 9, 12, 15):
            keep = random.permuted(np.tile(np.arange(16) < num_kept, (4, 1)), axis=1)
            expected, actual = (
                Editor(each).variations(images, [0, 1, 2, None], how, keep=keep)
                for each in (eager, captured)
            )
            np.testing.assert_array_equal(actual.codes, expected.codes)
            assert np.abs(actual.images.astype(int) - expected.images).max() <= 1
            assert captured.graphs is not None
            assert captured.graphs.num_recorded <= 3
    # All are recorded in the second round, and the last three of them are still there in the third.
    assert (recorder.recorded, recorder.replayed) == (5, 8)


@pytest.mark.parametrize("sampling", [PLAIN, GUIDED, SamplingConfig(cfg=2.0, refine=0.4)], ids=str)
def test_texts_have_a_graph_for_each_bucket(
    make_text_model: Callable[..., LPD], tokenizer: VQTokenizer, sampling: SamplingConfig
) -> None:
    """Texts of any lengths that fit in its rows are replayed by it, and their padding with them."""
    model = make_text_model(text_length=100)
    recorder = TapeRecorder()
    eager = ImageGenerator(model, tokenizer, batch_size=6)
    captured = recording_generator(model, tokenizer, recorder)
    for seed, (lengths, recorded) in enumerate(
        [
            ((0, 0, 0, 0), 1),
            ((1, 64, 0, 7), 2),
            ((64, 0, 3), 2),
            ((65, 0, 1), 3),
            ((100, 100, 2, 100), 3),
            ((5, 0, 0, 64), 3),
            ((0, 0, 0), 3),
        ]
    ):
        random = np.random.default_rng(seed)
        texts = [None if not n else random.standard_normal((n, 6), np.float32) for n in lengths]
        arguments = batch(seed, len(lengths), sampling=sampling) | {"labels": texts}
        check_same(eager, captured, arguments)
        assert recorder.recorded == recorded


def test_texts_to_lead_away_from_have_graphs_of_their_own(
    make_text_model: Callable[..., LPD], tokenizer: VQTokenizer
) -> None:
    """One for each bucket of them; without any, graphs are what they were."""
    model = make_text_model(text_length=100)
    recorder = TapeRecorder()
    eager = ImageGenerator(model, tokenizer, batch_size=6)
    captured = recording_generator(model, tokenizer, recorder)
    for seed, (lengths, sampling, recorded) in enumerate(
        [
            (None, GUIDED, 1),
            ((3, 0, 64, 7), GUIDED, 2),
            ((0, 0, 1), GUIDED, 2),
            ((0, 0, 0, 0), GUIDED, 2),  # which is nothing
            ((100, 2, 0, 5), GUIDED, 3),
            (None, GUIDED, 3),
            ((9, 9, 0, 64), GUIDED, 3),
            ((9, 9, 0, 64), PLAIN, 4),  # which leads away from nothing
            (None, PLAIN, 4),
        ]
    ):
        random = np.random.default_rng(seed)
        count = 4 if lengths is None else len(lengths)
        texts, nulls = (
            [None if not n else random.standard_normal((n, 6), np.float32) for n in each]
            for each in ((5, 0, 64, 20)[:count], lengths or ())
        )
        arguments = batch(seed, count, sampling=sampling) | {
            "labels": texts,
            "null_labels": None if lengths is None else nulls,
        }
        check_same(eager, captured, arguments)
        assert recorder.recorded == recorded


def test_another_scale_needs_no_other_graph(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder)
    for cfg in (1.5, 3.0, 8.0):
        check_same(eager, captured, batch(0, 2, sampling=SamplingConfig(cfg=cfg)))
    assert recorder.recorded == 1
    check_same(eager, captured, batch(0, 2, sampling=SamplingConfig(cfg=3.0, temperature=0.5)))
    assert recorder.recorded == 2


def test_another_ramp_needs_no_other_graph_and_another_way_does(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder)
    for options, recorded in [
        ({"temperature_schedule": "linear", "temperature_end": 0.5}, 1),
        ({"temperature_schedule": "linear", "temperature_end": 2.0}, 1),
        ({"temperature_schedule": "linear", "temperature": 0.3, "cfg": 1.0}, 1),
        ({"temperature_schedule": "entropy"}, 2),
        ({"temperature_schedule": "entropy", "entropy_theta": 3.0}, 3),
        ({"refine": 0.4}, 4),
        ({"refine": 0.5}, 5),
        ({}, 6),
    ]:
        check_same(eager, captured, batch(0, 2, sampling=SamplingConfig(**options)))
        assert recorder.recorded == recorded


def test_batches_share_the_graphs_of_rounded_sizes(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder)
    for count, recorded in [(3, 1), (4, 1), (1, 2), (2, 3), (5, 4), (6, 4), (3, 4)]:
        check_same(eager, captured, batch(count, count))
        assert recorder.recorded == recorded


def test_the_least_recently_used_graph_goes_first(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder, capacity=2)
    first, second, third = ((4, 12), (5, 11), (6, 10))
    for sizes, recorded in [
        (first, 1),
        (second, 2),
        (first, 2),
        (third, 3),  # in place of the second
        (first, 3),
        (second, 4),  # in place of the third
        (first, 4),
    ]:
        captured.generate(**batch(0, 2, sizes))
        assert recorder.recorded == recorded
        assert captured.graphs is not None
        assert captured.graphs.num_recorded <= 2


def test_every_tensor_of_the_inputs_is_a_buffer() -> None:
    """One that is forgotten would keep the values it had while recording."""
    kinds = (torch.Tensor, torch.Tensor | None, Condition, Condition | None)
    tensors = [each.name for each in dataclasses.fields(DecodeInputs) if each.type in kinds]
    assert sorted(tensors) == sorted((*graphs._PER_IMAGE, *graphs._SHARED))


def test_outputs_stay_as_they_are(captured: ImageGenerator) -> None:
    first = captured.generate(**batch(0, 2))
    codes, images = first.codes.clone(), first.images.clone()
    captured.generate(**batch(1, 2))
    assert torch.equal(first.codes, codes)
    assert torch.equal(first.images, images)


def test_what_cannot_be_recorded_is_run_with_one_warning(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    captured = recording_generator(tiny_model, tokenizer, Unable())
    with pytest.warns(UserWarning, match=r"not captured .*: operation not permitted") as caught:
        check_same(eager, captured, batch(0, 2))
    assert len(caught) == 1
    assert "and more" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(eager, captured, batch(1, 5))


def test_what_is_ready_is_only_replayed(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    recorder = TapeRecorder()
    captured = recording_generator(tiny_model, tokenizer, recorder)
    captured.ready(captured.prepare(**batch(0, 3)))
    assert (recorder.recorded, recorder.replayed) == (1, 0)
    check_same(eager, captured, batch(1, 4))
    assert (recorder.recorded, recorder.replayed) == (1, 1)


class SmallMemory(TapeRecorder):
    """Has no room for batches of more than two images."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        replay, outputs = super().record(work)
        if len(outputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return replay, outputs


def test_a_shape_without_room_is_run_eagerly_and_the_others_are_not(
    tiny_model: LPD, tokenizer: VQTokenizer, eager: ImageGenerator
) -> None:
    recorder = SmallMemory()
    captured = recording_generator(tiny_model, tokenizer, recorder)
    assert captured.graphs is not None
    check_same(eager, captured, batch(0, 2))
    with pytest.warns(UserWarning, match="out of memory"):
        check_same(eager, captured, batch(0, 4))
    assert captured.graphs.num_recorded == 0  # the pairs' graph has made room
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was said is not said again
        check_same(eager, captured, batch(1, 6))
        recorded = recorder.recorded
        for seed in range(2, 4):  # pairs are captured anew; fours and sixes are not tried again
            for count in (2, 4, 6):
                check_same(eager, captured, batch(seed, count))
    assert recorder.recorded == recorded + 1
    assert captured.graphs.num_recorded == 1
    assert recorder.replayed == 3


def test_the_failed_attempts_memory_is_free_for_the_next() -> None:
    attempts: list[weakref.ref[torch.Tensor]] = []

    def work(inputs: DecodeInputs) -> Outputs:
        if attempts:
            assert attempts[0]() is None
            return (inputs.uniforms,)
        large = torch.empty(1000)
        attempts.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(UserWarning, match="out of memory"):
        GraphRunner(work, TapeRecorder(), batch_size=2)(decode_inputs())


def test_a_generator_ends_with_its_last_user(tiny_model: LPD, tokenizer: VQTokenizer) -> None:
    generator = recording_generator(tiny_model, tokenizer, TapeRecorder())
    generator.generate(**batch(0, 2))
    alive = weakref.ref(generator)
    gc.disable()
    try:
        del generator
        assert alive() is None
    finally:
        gc.enable()


def test_a_mistake_in_the_work_is_not_hidden() -> None:
    def work(_: DecodeInputs) -> Outputs:
        raise RuntimeError("shapes differ")

    runner = GraphRunner(work, TapeRecorder(), batch_size=2)
    with pytest.warns(UserWarning, match="differ"), pytest.raises(RuntimeError, match="differ"):
        runner(decode_inputs())


def decode_inputs() -> DecodeInputs:
    plan = DecodePlan(np.arange(4)[None], (1, 3))
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    return DecodeInputs(
        condition=torch.zeros(1, dtype=torch.int64),
        orders=torch.from_numpy(plan.orders),
        uniforms=torch.zeros(1, 4),
        scales=torch.ones(4),
        known=nothing,
        codes=torch.zeros(1, 4, dtype=torch.int64),
        group_sizes=plan.group_sizes,
        guided=(False, False),
        config=PLAIN,
    )


def test_the_tape_tells_a_decision_made_while_recording() -> None:
    """The stand-in is good for something: what a graph would freeze, it freezes."""

    def work(inputs: DecodeInputs) -> Outputs:
        return (inputs.uniforms + float(inputs.uniforms.sum()),)  # the sum is read by the host

    runner = GraphRunner(work, TapeRecorder(), batch_size=2)
    inputs = decode_inputs()
    (before,) = runner(inputs)
    inputs.uniforms.fill_(1.0)
    (after,) = runner(inputs)
    assert before.tolist() == [[0.0] * 4]
    assert after.tolist() == [[1.0] * 4]  # not 5


def test_replays_allocate_nothing_that_stays(captured: ImageGenerator) -> None:
    for seed in range(2):
        captured.generate(**batch(seed, 3))
    before = live_bytes()
    for seed in range(3):
        captured.generate(**batch(seed, 3))
    assert live_bytes() == before


def live_bytes() -> int:
    """Of all tensors there are."""
    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum({memory(each): each.untyped_storage().nbytes() for each in alive}.values())
