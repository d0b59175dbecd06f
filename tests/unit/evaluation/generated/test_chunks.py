"""Generated images depend on (seed, image) alone, not on how the work is cut."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpd.distributed import World
from lpd.evaluation.features.digests import image_digests
from lpd.evaluation.features.extractors import Classifier
from lpd.evaluation.generated.chunks import (
    Chunk,
    Times,
    check_chunk,
    chunk_path,
    find_chunks,
    missing_ranges,
    share_out,
)
from lpd.evaluation.generated.making import Task
from lpd.evaluation.generated.setting import Setting
from lpd.evaluation.generated.timing import seconds_per_image, share_elsewhere
from lpd.generation import ImageGenerator
from lpd.orders.files import load_orders, save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig
from tests.unit.evaluation.chunk_tasks import chunk_tasks

NUM_IMAGES = 17
GROUP_SIZES = make_group_sizes(16, 5)


def setting_of(order, order_file=None, *, cfg=1.5, seed=3):
    source = PlanSource(
        order=OrderConfig(kind=order),
        grid=(4, 4),
        group_sizes=GROUP_SIZES,
        order_file=order_file,
    )
    return Setting(source=source, sampling=SamplingConfig(cfg=cfg), seed=seed)


SETTING = setting_of("lpd")


def whole(maker, folder, setting=SETTING, chunk_size=NUM_IMAGES):
    tasks = chunk_tasks(setting, folder, NUM_IMAGES, chunk_size)
    maker.make_share(tasks, World())
    return joined(tasks)


def joined(tasks):
    chunks = [Chunk.load(task.path) for task in tasks]
    own = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("codes", "labels", "digests")
    }
    measured = {
        name: np.concatenate([getattr(chunk.measured, name) for chunk in chunks])
        for name in ("features", "logits")
    }
    return own | measured


def assert_same(a, b):
    np.testing.assert_array_equal(a["codes"], b["codes"])
    np.testing.assert_array_equal(a["labels"], b["labels"])
    np.testing.assert_array_equal(a["digests"], b["digests"])
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
        pixels = generator.decode(codes.numpy())
        np.testing.assert_array_equal(expected["digests"][image], image_digests(pixels)[0])
        measured = extractor(torch.from_numpy(pixels))
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
def test_processes_share_images_and_change_nothing(make_maker, expected, tmp_path, world_size):
    maker = make_maker(4)
    shares = share_out([("lpd", range(NUM_IMAGES))], world_size, 4)
    sizes = [sum(len(images) for _, images in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for rank, share in enumerate(shares):
        tasks = [
            Task(setting=SETTING, image_indices=images, path=chunk_path(tmp_path, images))
            for _, images in share
        ]
        maker.make_share(tasks, World(rank=rank, size=world_size))
    found = find_chunks(tmp_path, NUM_IMAGES, 1000)
    assert missing_ranges(found, NUM_IMAGES) == []
    tasks = [Task(setting=SETTING, image_indices=r, path=path) for r, path in found.items()]
    assert_same(joined(tasks), expected)


ranges = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(1, 20)))


@given(ranges=ranges, world_size=st.integers(1, 9), chunk_size=st.integers(1, 12))
def test_what_is_missing_is_shared_out_evenly(ranges, world_size, chunk_size):
    missing = [(name, range(start, start + count)) for name, start, count in ranges]
    shares = share_out(missing, world_size, chunk_size)
    images = [[(name, i) for name, part in share for i in part] for share in shares]
    together = list(itertools.chain.from_iterable(images))
    assert together == [(name, i) for name, part in missing for i in part]
    assert max(map(len, images)) - min(map(len, images)) <= 1
    assert all(0 < len(part) <= chunk_size for share in shares for _, part in share)


@given(cuts=st.sets(st.integers(1, 39)), lost=st.sets(st.integers(0, 39)))
def test_what_is_missing_is_what_no_chunk_holds(cuts, lost):
    bounds = [0, *sorted(cuts), 40]
    parts = [range(*pair) for pair in itertools.pairwise(bounds)]
    there = [part for number, part in enumerate(parts) if number not in lost]
    gaps = missing_ranges(there, 40)
    held = {image for part in there for image in part}
    assert {image for gap in gaps for image in gap} == set(range(40)) - held
    assert all(first.stop < second.start for first, second in itertools.pairwise(gaps))


def test_chunks_are_found_by_their_images(tmp_path):
    for name in ("chunk_00000.npz", "chunk_00002.npz", "chunk_00000005_00000007.npz", "x.npz"):
        (tmp_path / name).touch()
    found = find_chunks(tmp_path, 12, 5)
    assert list(found) == [range(5), range(5, 7), range(10, 12)]
    assert missing_ranges(found, 12) == [range(7, 10)]
    (tmp_path / "chunk_00000006_00000008.npz").touch()
    with pytest.raises(ValueError, match=r"00000008\.npz holds images that another file holds too"):
        find_chunks(tmp_path, 12, 5)
    with pytest.raises(ValueError, match="of images that do not belong here"):
        find_chunks(tmp_path, 7, 5)


def test_another_seed_order_or_guidance_gives_other_images(make_maker, expected, tmp_path):
    for number, other in enumerate(
        (
            whole(make_maker(8), tmp_path / "0", setting_of("lpd", seed=4)),
            whole(make_maker(8), tmp_path / "1", setting_of("raster")),
            whole(make_maker(8), tmp_path / "2", setting_of("lpd", cfg=1.0)),
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
    assert [chunk.times for chunk in chunks] == [
        Times(generator=3, extractor=0.75, wall=3 * 9.25, warm=2, warm_images=6),
        Times(generator=1, extractor=0.25, wall=9.25, warm=1, warm_images=3),
    ]
    assert share_elsewhere(chunks) == 8 / 9.25
    assert seconds_per_image(chunks) == 3 / 9
    assert (
        seconds_per_image(list(make_maker(4).make(chunk_tasks(SETTING, tmp_path, 4, 4)))) == 1 / 4
    )


def test_times_are_kept_in_the_file(make_maker, tmp_path):
    (task,) = chunk_tasks(SETTING, tmp_path, 5, 5)
    (chunk,) = make_maker(4).make([task])
    for times in (
        Times(generator=1.5, extractor=0.1, wall=2.25, warm=1.25, warm_images=4),
        Times(generator=1.5, extractor=0.1, wall=2.25),
        Times(generator=0.3),
    ):
        dataclasses.replace(chunk, times=times).save(task.path)
        assert Chunk.load(task.path).times == times


def test_a_file_of_before_much_was_recorded(make_maker, tmp_path):
    (task,) = chunk_tasks(SETTING, tmp_path, 5, 5)
    (chunk,) = make_maker(4).make([task])
    chunk.save(task.path)
    with np.load(task.path) as content:
        kept = {name: content[name] for name in ("codes", "labels", "features", "logits")}
    np.savez(task.path, **kept, seconds=np.float64(0.75))
    old = Chunk.load(task.path)
    assert old.times == Times(generator=0.75)
    assert (old.digests, old.identity) == (None, None)
    assert share_elsewhere([chunk, old]) is None
    assert seconds_per_image([chunk, old]) == (chunk.times.generator + 0.75) / 10
    assert check_chunk(task.path, "whatever")  # it cannot tell


def test_a_chunk_says_what_it_is_of(make_maker, tmp_path):
    folder = tmp_path / "lpd_5" / "chunks"
    (task,) = chunk_tasks(SETTING, folder, 5, 5)
    make_maker(4).make_share([task], World())
    assert check_chunk(task.path, "one")
    with pytest.raises(ValueError, match="was made with other settings or weights"):
        check_chunk(task.path, "another")


def test_features_that_were_dropped_are_computed_again(make_maker, tmp_path):
    tasks = chunk_tasks(SETTING, tmp_path, NUM_IMAGES, 10)
    maker = make_maker(4)
    maker.make_share(tasks, World())
    before = joined(tasks)
    for task in tasks:
        Chunk.load(task.path).without_features().save(task.path)
        assert not check_chunk(task.path, "one")
        assert Chunk.load(task.path).measured is None
        maker.measure_again(task.path)
        assert check_chunk(task.path, "one")
    assert_same(joined(tasks), before)


def test_numbers_that_are_not_finite_end_the_run(make_maker, tmp_path, monkeypatch):
    run = ImageGenerator.run

    def broken(self, inputs):
        made = run(self, inputs)
        return dataclasses.replace(made, finite=torch.arange(len(made.codes)) != 2)

    monkeypatch.setattr(ImageGenerator, "run", broken)
    with pytest.raises(ValueError, match="logits for image 2 are not finite"):
        list(make_maker(4).make(chunk_tasks(SETTING, tmp_path, 4, 4)))


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
    assert [path.name for path in tmp_path.iterdir()] == ["chunk_00000000_00000004.npz"]


def test_a_damaged_chunk_is_named(make_maker, tmp_path):
    task = chunk_tasks(SETTING, tmp_path, 4, 4)[0]
    make_maker(4).make_share([task], World())
    content = bytearray(task.path.read_bytes())
    content[len(content) // 2] ^= 1
    task.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"_00000004\.npz is damaged.*delete it"):
        Chunk.load(task.path)
