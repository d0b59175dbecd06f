"""Speed: what the clock runs over."""

import pytest

from lpd.evaluation.generate import Setting
from lpd.evaluation.speed import measure_speed
from lpd.orders.registry import OrderConfig

SETTING = Setting(order=OrderConfig(kind="raster"), group_sizes=(4, 4, 4, 4))


def test_speed_is_the_median_after_the_warm_up(make_generator, monkeypatch):
    """A clock that only generation moves: by batch size, and much more while warming up."""
    generator = make_generator(8)
    now, calls = [0.0], []

    def generate(plan, image_indices):
        calls.append(len(image_indices))
        nth = calls.count(len(image_indices))
        now[0] += 1000 if nth <= 2 else len(image_indices) * 0.5 + (100 if nth == 4 else 0)

    monkeypatch.setattr(generator, "generate", generate)
    monkeypatch.setattr("lpd.evaluation.speed.time.perf_counter", lambda: now[0])
    speed = measure_speed(generator, SETTING, warmup=2, repetitions=5)
    assert calls == [1] * 7 + [8] * 7
    assert speed.latency_seconds == pytest.approx(0.5)
    assert speed.images_per_second == pytest.approx(8 / 4)
    assert (speed.batch_size, speed.repetitions) == (8, 5)


def test_making_orders_is_not_counted(make_generator, monkeypatch):
    generator = make_generator(2)
    now = [0.0]
    plan = generator.plan

    def slow_plan(*args):
        now[0] += 1000
        return plan(*args)

    def generate(*args):
        now[0] += 1

    monkeypatch.setattr(generator, "plan", slow_plan)
    monkeypatch.setattr(generator, "generate", generate)
    monkeypatch.setattr("lpd.evaluation.speed.time.perf_counter", lambda: now[0])
    assert measure_speed(generator, SETTING).latency_seconds == 1
