"""What is asked of a device and read later: on the CPU, and on a GPU that is pretended."""

import itertools
import threading

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from lpd.distributed import World
from lpd.evaluation.features.batches import extract
from lpd.evaluation.features.pending import HostCopy, one_behind
from lpd.evaluation.generated.chunks import Chunk
from lpd.evaluation.generated.making import ChunkMaker
from lpd.evaluation.generated.setting import Setting
from lpd.evaluation.generated.timing import share_elsewhere
from lpd.generation import Generated, ImageGenerator
from lpd.marks import mark, seconds_between
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig
from tests.unit.evaluation.chunk_tasks import chunk_tasks

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SETTING = Setting(
    source=PlanSource(order=OrderConfig(), grid=(4, 4), group_sizes=make_group_sizes(16, 5)),
    sampling=SamplingConfig(cfg=1.5),
    seed=3,
)

# Each wants to know on the host what a tensor holds, and so waits for all of the queue.
WAITING = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.nonzero,
}


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU, and whose numbers only the queue brings to the host."""

    @staticmethod
    def __new__(cls, value, gpu):
        made = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=GPU
        )
        made.value, made.gpu = value, gpu
        return made

    def to(self, device, *, non_blocking):
        assert (device, non_blocking) == (GPU, True)
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = _pytree.tree_leaves((args, kwargs))
        gpu = next(each.gpu for each in leaves if isinstance(each, cls))
        assert func.overloadpacket not in WAITING, f"{func} waits for the GPU"
        if func is torch.ops.aten._to_copy.default:
            to = torch.device(kwargs.get("device") or GPU)
            assert to.type == "cuda", "a copy to the host that is not a HostCopy"
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], cls):
            assert kwargs.get("non_blocking") or True in args[2:], "the copy waits for the GPU"
            gpu.copy_later(args[0], args[1].value.clone())
            return args[0]
        args, kwargs = _pytree.tree_map_only(cls, lambda each: each.value, (args, kwargs))
        made = func(*args, **kwargs)
        return _pytree.tree_map_only(torch.Tensor, lambda each: cls(each, gpu), made)


class PretendedGpu:
    """A GPU that does what it is asked for only when somebody waits for a mark behind it.

    It knows no kernels: numbers are computed on the CPU, at once, but kept from the host.
    """

    def __init__(self):
        self.queue = []
        self.milliseconds = 0.0
        self.pinned = []

    def tensor(self, value):
        return OnGpu(value, self)

    def copy_later(self, target, value):
        assert any(target is each for each in self.pinned), "not pinned: the copy waits"
        self.queue.append(lambda: target.copy_(value))
        self.milliseconds += 1

    def empty(self, *args, pin_memory=False, **kwargs):
        made = EMPTY(*args, **kwargs)
        if pin_memory:
            self.pinned.append(made.fill_(77))  # nobody may see this
        return made

    def event(self, *, enable_timing):
        assert enable_timing
        return Event(self)


EMPTY = torch.empty


class Event:
    def __init__(self, gpu):
        self.gpu, self.passed = gpu, False

    def record(self, stream):
        assert stream == f"stream of {GPU}"
        self.milliseconds = self.gpu.milliseconds
        self.gpu.queue.append(self)

    def synchronize(self):
        while not self.passed:
            work = self.gpu.queue.pop(0)
            if isinstance(work, Event):
                work.passed = True
            else:
                work()

    def elapsed_time(self, end):
        assert self.passed
        assert end.passed, "the GPU has not come to it"
        return end.milliseconds - self.milliseconds


@pytest.fixture
def gpu(monkeypatch):
    made = PretendedGpu()
    monkeypatch.setattr(torch, "empty", made.empty)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: pytest.fail("waits for the GPU"))
    return made


class TestHostCopy:
    def test_is_of_what_was_there_then(self):
        numbers = torch.arange(6).view(2, 3)
        copy = HostCopy(numbers, numbers.T.float())
        numbers.zero_()
        first, second = copy.read()
        np.testing.assert_array_equal(first, [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(second, [[0, 3], [1, 4], [2, 5]])

    def test_waits_for_itself_and_for_nothing_later(self, gpu):
        first = HostCopy(gpu.tensor(torch.tensor([1, 2])))
        second = HostCopy(gpu.tensor(torch.tensor([3.0])), gpu.tensor(torch.tensor([True])))
        assert len(gpu.queue) == 5  # three copies and two marks: nothing was waited for
        np.testing.assert_array_equal(first.read(), [[1, 2]])
        assert len(gpu.queue) == 3
        np.testing.assert_array_equal(second.read(), [[3.0], [True]])
        assert gpu.queue == []

    def test_what_was_read_stays(self, gpu):
        """Pinned memory is given to others as soon as the copy is dropped."""
        (numbers,) = HostCopy(gpu.tensor(torch.tensor([1, 2]))).read()
        gpu.pinned[0].fill_(5)
        assert numbers.tolist() == [1, 2]


def test_marks_of_a_cpu_read_the_clock(monkeypatch):
    now = iter([1.0, 3.5])
    monkeypatch.setattr("lpd.marks.time.perf_counter", lambda: next(now))
    start, end = mark(CPU), mark(CPU)
    end.synchronize()
    assert seconds_between(start, end) == 2.5


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_behind_has_taken_the_next(count):
    taken = []

    def items():
        for item in range(count):
            taken.append(item)
            yield item

    given = []
    for item in one_behind(items()):
        given.append(item)
        assert taken == list(range(min(item + 2, count)))
    assert given == list(range(count))


class OnPretendedGpu:
    """A generator whose codes and pixels are on the pretended GPU; it takes a second for them."""

    device = GPU

    def __init__(self, generator, gpu):
        self.generator, self.gpu = generator, gpu
        self.batch_size, self.num_classes = generator.batch_size, generator.num_classes
        self.prepare = generator.prepare
        self.prepare_ahead = generator.prepare_ahead
        self.is_ready = False

    def ready(self, inputs):
        """Compiling and capturing: a minute, once."""
        self.gpu.milliseconds += 0 if self.is_ready else 60_000
        self.is_ready = True

    def run(self, inputs):
        assert self.is_ready
        made = self.generator.run(inputs)
        self.gpu.milliseconds += 1000
        return Generated(
            codes=self.gpu.tensor(made.codes),
            images=self.gpu.tensor(made.images),
            finite=self.gpu.tensor(made.finite),
        )


class TestOnAGpu:
    """The CPU's numbers, though nothing is waited for that was not asked for long ago."""

    @pytest.fixture
    def slow_extractor(self, extractor, gpu):
        """A tenth of a second for each batch, of which the network sees no part: the pretended GPU
        cannot cut batches."""

        @torch.inference_mode()
        def slow(images):
            assert isinstance(images, OnGpu)
            gpu.milliseconds += 100
            return extractor._network(images)

        return slow

    @pytest.fixture
    def maker(self, make_generator, slow_extractor, gpu):
        generator = OnPretendedGpu(make_generator(4), gpu)
        return ChunkMaker(generator, slow_extractor)

    def test_chunks_are_those_of_the_cpu(self, maker, make_maker, tmp_path):
        tasks = chunk_tasks(SETTING, tmp_path / "gpu", 17, 10)
        maker.make_share(tasks, World())
        expected = make_maker(4).make(chunk_tasks(SETTING, tmp_path / "cpu", 17, 10))
        for task, chunk in zip(tasks, expected, strict=True):
            found = Chunk.load(task.path)
            for name in ("codes", "labels", "digests"):
                np.testing.assert_array_equal(getattr(found, name), getattr(chunk, name))
            for name in ("features", "logits"):  # of another layout, which round otherwise
                np.testing.assert_allclose(
                    getattr(found.measured, name),
                    getattr(chunk.measured, name),
                    rtol=1e-4,
                    atol=1e-5,
                )

    def test_times_are_by_the_gpus_clock(self, maker, tmp_path):
        # Batches of 4, 4 and 2, then of 4 and 3. Five copies of a millisecond end each of them.
        chunks = list(maker.make(chunk_tasks(SETTING, tmp_path, 17, 10)))
        # The minute before the first is nobody's but the wall's.
        for chunk, num_batches, minutes in zip(chunks, (3, 2), (1, 0), strict=True):
            assert chunk.times.generator == pytest.approx(num_batches)
            assert chunk.times.extractor == pytest.approx(num_batches * 0.1)
            assert chunk.times.wall == pytest.approx(60 * minutes + num_batches * 1.105)
        assert share_elsewhere(chunks[1:]) == pytest.approx(0.005 / 1.105)
        assert share_elsewhere(chunks) == pytest.approx((60 + 5 * 0.005) / (60 + 5 * 1.105))

    def test_a_batch_is_read_when_the_next_one_has_been_asked_for(self, maker, gpu, tmp_path):
        waiting = []
        for _ in maker.make(
            chunk_tasks(SETTING, tmp_path, 17, 10),
            lambda task, num_images: waiting.append(len(gpu.queue)),
        ):
            pass
        # Behind each batch that is read are the marks and copies of one more.
        per_batch = waiting[0]
        assert per_batch > 0
        assert waiting == [per_batch] * 4 + [0]

    def test_features_of_any_images_are_read_one_behind(self, slow_extractor, extractor, gpu):
        images = torch.arange(5 * 3 * 256).view(5, 3, 16, 16).to(torch.uint8)
        batches = (gpu.tensor(each) for each in images.split(2))
        left = []
        for part, found in zip(images.split(2), extract(batches, slow_extractor, GPU), strict=True):
            left.append(len(gpu.queue))
            np.testing.assert_array_equal(found.features, extractor(part).features)
        assert left == [left[0], left[0], 0]
        assert left[0] > 0


@pytest.mark.parametrize("chunk_size", [4, 100])
def test_the_next_batch_is_prepared_while_one_runs(make_maker, tmp_path, monkeypatch, chunk_size):
    """In a chunk and over its border: a batch runs until the next one's orders are asked for."""
    entered = [threading.Event() for _ in range(6)]
    plan, run = PlanSource.plan, ImageGenerator.run
    running = itertools.count()

    def entering(self, seed, image_indices):
        entered[image_indices[0] // 4].set()
        return plan(self, seed, image_indices)

    def run_until_entered(self, inputs):
        batch = next(running)
        assert batch == 4 or entered[batch + 1].wait(60)
        assert not entered[batch + 2 if batch < 4 else 5].is_set()  # one ahead, not more
        return run(self, inputs)

    monkeypatch.setattr(PlanSource, "plan", entering)
    monkeypatch.setattr(ImageGenerator, "run", run_until_entered)
    chunks = list(make_maker(4).make(chunk_tasks(SETTING, tmp_path, 17, chunk_size)))
    assert sum(map(len, chunks)) == 17
    assert next(running) == 5
