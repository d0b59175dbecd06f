"""Generated images depend on (seed, image) alone, not on how the work is cut."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch

from lpd.distributed import World
from lpd.evaluation.chunks import Chunk, chunk_tasks
from lpd.evaluation.features import Classifier
from lpd.evaluation.setting import Setting
from lpd.evaluation.sweep import share_elsewhere
from lpd.generation import ImageGenerator
from lpd.orders.files import load_orders, save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig

NUM_IMAGES = 17
GROUP_SIZES = make_group_sizes(16, 5)


def setting_of(order, order_file=None):
    source = PlanSource(
        order=OrderConfig(kind=order),
        grid=(4, 4),
        group_sizes=GROUP_SIZES,
        order_file=order_file,
    )
    return Setting(source=source)


SETTING = setting_of("lpd")


def whole(maker, folder, setting=SETTING, chunk_size=NUM_IMAGES):
    tasks = chunk_tasks(setting, folder, NUM_IMAGES, chunk_size)
    maker.make_share(tasks, World())
    return joined(tasks)


def joined(tasks):
    chunks = [Chunk.load(task.path) for task in tasks]
    return {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("codes", "features", "logits", "labels")
    }


def assert_same(a, b):
    np.testing.assert_array_equal(a["codes"], b["codes"])
    np.testing.assert_array_equal(a["labels"], b["labels"])
    for name in ("features", "logits"):  # batch sizes choose kernels that round differently
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def expected(make_maker, tmp_path_factory):
    return whole(make_maker(NUM_IMAGES), tmp_path_factory.mktemp("expected"))


def test_images_are_those_of_their_labels_orders_and_streams(make_generator, extractor, expected):
    """The obvious twin: an image at a time, and its features from its codes."""
    generator = make_generator(1)
    assert len(np.unique(expected["codes"])) > 4  # not a constant
    for image in range(NUM_IMAGES):
        index = np.array([image])
        codes = generator.generate(
            [image % 3],
            make_plan(OrderConfig(kind="lpd"), (4, 4), GROUP_SIZES, 3, index),
            seed=3,
            image_indices=index,
            sampling=SamplingConfig(cfg=1.5),
        ).codes
        np.testing.assert_array_equal(expected["codes"][image], codes[0].numpy())
        assert expected["labels"][image] == image % 3
        measured = extractor(torch.from_numpy(generator.decode(codes.numpy())))
        for name in ("features", "logits"):
            np.testing.assert_allclose(
                expected[name][image], getattr(measured, name)[0], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("chunk_size", [5, 100])
def test_batch_and_chunk_size_change_nothing(
    make_maker, expected, tmp_path, batch_size, chunk_size
):
    assert_same(whole(make_maker(batch_size), tmp_path, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_share_chunks_and_change_nothing(make_maker, expected, tmp_path, world_size):
    maker = make_maker(4)
    tasks = chunk_tasks(SETTING, tmp_path, NUM_IMAGES, 4)
    made = []
    for rank in range(world_size):
        before = {path.name for path in tmp_path.iterdir()}
        maker.make_share(tasks, World(rank=rank, size=world_size))
        made.append({path.name for path in tmp_path.iterdir()} - before)
    assert sum(map(len, made)) == len(tasks)  # nobody's twice, all somebody's
    assert max(map(len, made)) <= -(-len(tasks) // world_size)
    assert_same(joined(tasks), expected)


def test_another_seed_order_or_guidance_gives_other_images(make_maker, expected, tmp_path):
    for number, other in enumerate(
        (
            whole(make_maker(8, seed=4), tmp_path / "0"),
            whole(make_maker(8), tmp_path / "1", setting_of("raster")),
            whole(make_maker(8, cfg=1.0), tmp_path / "2"),
        )
    ):
        assert (other["codes"] != expected["codes"]).any(), number


def test_orders_of_a_file_are_decoded_in(make_maker, tmp_path):
    """A file that calls random orders locality-aware ones: the images are those of random."""
    path = tmp_path / "orders.npz"
    plan = make_plan(OrderConfig(kind="random"), (4, 4), GROUP_SIZES, 3, np.arange(NUM_IMAGES))
    save_orders(path, plan.orders, GROUP_SIZES, kind="lpd", seed=3, locality=LocalityConfig())
    maker = make_maker(4)
    assert_same(
        whole(maker, tmp_path / "file", setting_of("lpd", load_orders(path))),
        whole(maker, tmp_path / "made", setting_of("random")),
    )


def test_seconds_are_told_apart_by_the_clock(make_maker, tmp_path, monkeypatch):
    """A clock that each part of the work moves by its own amount, and batches of 4, 4 and 2."""
    now = [0.0]

    def takes(seconds, function):
        def timed(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        return timed

    monkeypatch.setattr("lpd.marks.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(ImageGenerator, "run", takes(1, ImageGenerator.run))
    monkeypatch.setattr(Classifier, "forward", takes(0.25, Classifier.forward))
    monkeypatch.setattr(
        "lpd.generation.one_ahead",
        lambda make, items: (takes(8, make)(item) for item in items),
    )
    chunks = list(make_maker(4).make(chunk_tasks(SETTING, tmp_path, 13, 10)))
    assert [chunk.seconds for chunk in chunks] == [3, 1]
    assert [chunk.extractor_seconds for chunk in chunks] == [0.75, 0.25]
    assert [chunk.wall_seconds for chunk in chunks] == [3 * 9.25, 9.25]
    assert share_elsewhere(chunks) == 8 / 9.25


def test_times_are_kept_in_the_file(make_maker, tmp_path):
    (task,) = chunk_tasks(SETTING, tmp_path, 5, 5)
    (chunk,) = make_maker(4).make([task])
    for times in (
        {"seconds": 1.5, "extractor_seconds": 0.1, "wall_seconds": 2.25},
        {"seconds": 0.3, "extractor_seconds": None, "wall_seconds": None},
    ):
        dataclasses.replace(chunk, **times).save(task.path)
        found = Chunk.load(task.path)
        assert {name: getattr(found, name) for name in times} == times


def test_a_file_of_before_other_times_than_the_generators_were_kept(make_maker, tmp_path):
    (task,) = chunk_tasks(SETTING, tmp_path, 5, 5)
    (chunk,) = make_maker(4).make([task])
    chunk.save(task.path)
    with np.load(task.path) as content:
        np.savez(task.path, **{**content, "seconds": np.float64(0.75)})
    old = Chunk.load(task.path)
    assert (old.seconds, old.extractor_seconds, old.wall_seconds) == (0.75, None, None)
    assert share_elsewhere([chunk, old]) is None


def test_progress_counts_every_image(make_maker, tmp_path):
    tasks = chunk_tasks(SETTING, tmp_path, 13, 10)
    counts = []
    list(make_maker(4).make(tasks, lambda task, count: counts.append((task, count))))
    assert counts == [(tasks[0], 4), (tasks[0], 4), (tasks[0], 2), (tasks[1], 3)]


def workers():
    """The threads that somebody has to wait for, unlike the progress bar's."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["run", "prepare"])
def test_what_ends_the_work_ends_its_thread(make_maker, tmp_path, monkeypatch, error, where):
    before = workers()
    original, calls = getattr(ImageGenerator, where), itertools.count()

    def ending(self, *args, **kwargs):
        if next(calls) == 3:  # in the second chunk
            raise error("enough")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ImageGenerator, where, ending)
    with pytest.raises(error, match="enough") as caught:
        make_maker(2).make_share(chunk_tasks(SETTING, tmp_path, 17, 4), World())
    assert workers() == before
    assert "ending" in {entry.name for entry in caught.traceback}
    assert [path.name for path in tmp_path.iterdir()] == ["chunk_00000.npz"]


def test_a_damaged_chunk_is_named(make_maker, tmp_path):
    task = chunk_tasks(SETTING, tmp_path, 4, 4)[0]
    make_maker(4).make_share([task], World())
    content = bytearray(task.path.read_bytes())
    content[len(content) // 2] ^= 1
    task.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"chunk_00000\.npz is damaged.*delete it"):
        Chunk.load(task.path)
