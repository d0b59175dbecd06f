"""Generated images depend on (seed, image) alone, not on how the work is cut."""

import numpy as np
import pytest
import torch

from lpd.distributed import World
from lpd.evaluation.evaluator import make_chunks
from lpd.evaluation.generate import Chunk, Setting, batches, chunk_tasks
from lpd.orders.files import load_orders, save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.randomness import token_uniforms
from lpd.sampling.config import SamplingConfig
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vq_tokenizer import to_pixels

NUM_IMAGES = 17
SETTING = Setting(order=OrderConfig(kind="lpd"), group_sizes=make_group_sizes(16, 5))


def whole(generator, folder, setting=SETTING, chunk_size=NUM_IMAGES):
    tasks = chunk_tasks(setting, folder, NUM_IMAGES, chunk_size)
    make_chunks(generator, tasks, World())
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
def expected(make_generator, tmp_path_factory):
    return whole(make_generator(NUM_IMAGES), tmp_path_factory.mktemp("expected"))


def test_images_are_what_the_parts_make_one_by_one(tiny_model, make_generator, expected):
    """The obvious twin: sampler, tokenizer and streams called by hand, an image at a time."""
    generator = make_generator(1)
    sampler = Sampler(tiny_model, 1)
    assert len(np.unique(expected["codes"])) > 4  # not a constant
    for image in range(NUM_IMAGES):
        index = np.array([image])
        codes = sampler(
            torch.tensor([image % 3]),
            make_plan(OrderConfig(kind="lpd"), (4, 4), SETTING.group_sizes, 3, index),
            torch.from_numpy(token_uniforms(3, index, 16)),
            SamplingConfig(cfg=1.5),
        )
        np.testing.assert_array_equal(expected["codes"][image], codes[0].numpy())
        assert expected["labels"][image] == image % 3
        pixels = torch.from_numpy(generator.decode(codes.numpy()))
        features = generator._extractor(pixels).features
        np.testing.assert_allclose(expected["features"][image], features[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("chunk_size", [5, 100])
def test_batch_and_chunk_size_change_nothing(
    make_generator, expected, tmp_path, batch_size, chunk_size
):
    generator = make_generator(batch_size)
    assert_same(whole(generator, tmp_path, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_share_chunks_and_change_nothing(make_generator, expected, tmp_path, world_size):
    generator = make_generator(4)
    tasks = chunk_tasks(SETTING, tmp_path, NUM_IMAGES, 4)
    made = []
    for rank in range(world_size):
        before = {path.name for path in tmp_path.iterdir()}
        make_chunks(generator, tasks, World(rank=rank, size=world_size))
        made.append({path.name for path in tmp_path.iterdir()} - before)
    assert sum(map(len, made)) == len(tasks)  # nobody's twice, all somebody's
    assert max(map(len, made)) <= -(-len(tasks) // world_size)
    assert_same(joined(tasks), expected)


def test_another_seed_order_or_guidance_gives_other_images(make_generator, expected, tmp_path):
    raster = Setting(order=OrderConfig(kind="raster"), group_sizes=SETTING.group_sizes)
    unguided = make_generator(8, SamplingConfig())
    for number, other in enumerate(
        (whole(make_generator(8), tmp_path / "0", raster), whole(unguided, tmp_path / "1"))
    ):
        assert (other["codes"] != expected["codes"]).any(), number


def test_order_files_give_row_i_modulo_their_length(make_generator, tmp_path):
    indices = np.arange(4)
    plan = make_plan(OrderConfig(kind="random"), (4, 4), SETTING.group_sizes, 9, indices)
    path = tmp_path / "orders.npz"
    save_orders(
        path, plan.orders, plan.group_sizes, kind="random", seed=9, locality=LocalityConfig()
    )
    setting = Setting(
        order=OrderConfig(kind="lpd"),
        group_sizes=SETTING.group_sizes,
        order_file=load_orders(path),
    )
    generator = make_generator(4)
    taken = generator.plan(setting, np.array([2, 3, 4, 11]))
    np.testing.assert_array_equal(taken.orders, plan.orders[[2, 3, 0, 3]])
    made = Setting(order=OrderConfig(kind="random"), group_sizes=SETTING.group_sizes)
    # Rows that (seed, image) would have given anyway: the same images.
    same_seed = make_plan(OrderConfig(kind="random"), (4, 4), SETTING.group_sizes, 3, np.arange(17))
    save_orders(
        path,
        same_seed.orders,
        same_seed.group_sizes,
        kind="random",
        seed=3,
        locality=LocalityConfig(),
    )
    from_file = Setting(
        order=OrderConfig(kind="lpd"),
        group_sizes=SETTING.group_sizes,
        order_file=load_orders(path),
    )
    assert_same(
        whole(generator, tmp_path / "file", from_file), whole(generator, tmp_path / "made", made)
    )


def test_seconds_count_generation(make_generator, tmp_path, monkeypatch):
    generator = make_generator(4)
    clock = iter(np.arange(0, 1000, 0.25))
    monkeypatch.setattr("lpd.evaluation.generate.time.perf_counter", lambda: next(clock))
    task = chunk_tasks(SETTING, tmp_path, 10, 100)[0]
    assert generator.make_chunk(task).seconds == 3 * 0.25  # batches of 4, 4 and 2


def test_decoding_a_chunks_codes_gives_its_images(make_generator, expected):
    generator = make_generator(3)
    tokenizer = generator._tokenizer
    codes = torch.from_numpy(expected["codes"].astype(np.int64))
    together = to_pixels(tokenizer.decode(codes)).numpy()
    difference = np.abs(generator.decode(expected["codes"]).astype(int) - together)
    assert difference.max() <= 1  # a pixel may round the other way


def test_a_damaged_chunk_is_named(make_generator, tmp_path):
    task = chunk_tasks(SETTING, tmp_path, 4, 4)[0]
    make_chunks(make_generator(4), [task], World())
    content = bytearray(task.path.read_bytes())
    content[len(content) // 2] ^= 1
    task.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"chunk_00000\.npz is damaged.*delete it"):
        Chunk.load(task.path)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (6, 3), (7, 3)])
def test_batches_cover_everything_once(count, size):
    rows = [np.arange(count)[part] for part in batches(count, size)]
    assert all(0 < len(part) <= size for part in rows)
    np.testing.assert_array_equal(np.concatenate([*rows, np.empty(0, int)]), np.arange(count))
