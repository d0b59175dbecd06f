"""Speed: what the clock runs over."""

import pytest

from lpd.evaluation.speed import measure_speed
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig

SOURCE = PlanSource(order=OrderConfig(kind="raster"), grid=(4, 4), group_sizes=(4, 4, 4, 4))
SAMPLING = SamplingConfig(cfg=1.5)


def test_speed_is_the_median_after_the_warm_up(make_generator, monkeypatch):
    """A clock that only generation moves: by batch size, and much more while warming up."""
    generator = make_generator(8)
    now, calls = [0.0], []

    def generate(labels, plan, *, seed, image_indices, sampling):
        assert (len(labels), len(plan)) == (len(image_indices), len(image_indices))
        assert (seed, sampling) == (3, SAMPLING)
        calls.append(len(labels))
        nth = calls.count(len(labels))
        now[0] += 1000 if nth <= 2 else len(labels) * 0.5 + (100 if nth == 4 else 0)

    monkeypatch.setattr(generator, "generate", generate)
    monkeypatch.setattr("lpd.evaluation.speed.time.perf_counter", lambda: now[0])
    speed = measure_speed(generator, SOURCE, sampling=SAMPLING, seed=3, warmup=2, repetitions=5)
    assert calls == [1] * 7 + [8] * 7
    assert speed.latency_seconds == pytest.approx(0.5)
    assert speed.images_per_second == pytest.approx(8 / 4)
    assert (speed.batch_size, speed.repetitions) == (8, 5)


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
    monkeypatch.setattr("lpd.evaluation.speed.time.perf_counter", lambda: now[0])
    speed = measure_speed(generator, SOURCE, sampling=SAMPLING, seed=3)
    assert speed.latency_seconds == 1
    assert speed.images_per_second == 2
