"""Speed: what the clock runs over."""

import numpy as np
import pytest

from lpd.evaluation.generated.speed import flip_rate, measure_speed
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig

SOURCE = PlanSource(order=OrderConfig(kind="raster"), grid=(4, 4), group_sizes=(4, 4, 4, 4))
SAMPLING = SamplingConfig(cfg=1.5)


def test_speed_is_the_median_after_the_warm_up(make_generator, monkeypatch):
    """A clock that only generation moves: much more while warming up, and then by the batch's size
    in half seconds, once in ten times as much, and once in half as much again."""
    generator = make_generator(8)
    now, calls = [0.0], []

    def generate(labels, plan, *, seed, image_indices, sampling):
        assert (len(labels), len(plan)) == (len(image_indices), len(image_indices))
        assert (seed, sampling) == (3, SAMPLING)
        calls.append(len(labels))
        nth = calls.count(len(labels))
        factor = {1: 2000, 2: 2000, 4: 10, 5: 1.5}.get(nth, 1)
        now[0] += len(labels) * 0.5 * factor

    monkeypatch.setattr(generator, "generate", generate)
    monkeypatch.setattr("lpd.evaluation.generated.speed.time.perf_counter", lambda: now[0])
    speed = measure_speed(generator, SOURCE, sampling=SAMPLING, seed=3, warmup=2, repetitions=5)
    assert calls == [1] * 7 + [8] * 7
    assert speed.latency_seconds == pytest.approx(0.5)
    assert speed.images_per_second == pytest.approx(8 / 4)
    assert (speed.batch_size, speed.repetitions) == (8, 5)
    # Of 1, 1, 1, 1.5 and 10 times the median, the quartiles are the second and the fourth.
    assert speed.latency_spread == speed.throughput_spread == pytest.approx(0.5)


@pytest.mark.parametrize(("asked", "taken"), [(None, 8), (3, 3), (64, 8)])
def test_throughput_is_of_as_many_as_asked_for_if_the_generator_takes_them(
    make_generator, monkeypatch, asked, taken
):
    generator, sizes = make_generator(8), []
    monkeypatch.setattr(generator, "generate", lambda labels, *_, **__: sizes.append(len(labels)))
    speed = measure_speed(generator, SOURCE, sampling=SAMPLING, seed=3, batch_size=asked)
    assert {*sizes} == {1, taken}
    assert speed.batch_size == taken


def test_making_orders_is_not_counted(make_generator, monkeypatch):
    generator = make_generator(2)
    now = [0.0]
    plan = PlanSource.plan

    def slow_plan(*args):
        now[0] += 1000
        return plan(*args)

    def generate(*args, **kwargs):
        now[0] += 1

    monkeypatch.setattr(PlanSource, "plan", slow_plan)
    monkeypatch.setattr(generator, "generate", generate)
    monkeypatch.setattr("lpd.evaluation.generated.speed.time.perf_counter", lambda: now[0])
    speed = measure_speed(generator, SOURCE, sampling=SAMPLING, seed=3)
    assert speed.latency_seconds == 1
    assert speed.images_per_second == 2


def test_flips_are_counted_by_image(make_generator):
    generator, indices = make_generator(8), np.arange(5)
    codes = generator.generate(
        indices % 3, SOURCE.plan(3, indices), seed=3, image_indices=indices, sampling=SAMPLING
    ).codes.numpy()
    assert flip_rate(generator, SOURCE, codes, sampling=SAMPLING, seed=3) == 0
    codes[1, 2:4] = (codes[1, 2:4] + 1) % 24
    codes[4, 0] = (codes[4, 0] + 1) % 24
    assert flip_rate(generator, SOURCE, codes, sampling=SAMPLING, seed=3) == 2 / 5
