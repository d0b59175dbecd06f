"""How fast images are generated: sampling and decoding, without orders and metrics.

Latency is the time of one image alone (batch size 1); throughput is images per second at a batch
size that fills the device. Both come from the median over repetitions, after a warm-up.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from lpd.generation import ImageGenerator
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured speed of generation."""

    latency_seconds: float
    """Time to generate one image alone."""
    images_per_second: float
    """Throughput at ``batch_size``."""
    batch_size: int
    """Images generated at a time, for the throughput."""
    repetitions: int
    """Each number comes from the median of so many."""


def measure_speed(
    generator: ImageGenerator,
    source: PlanSource,
    *,
    sampling: SamplingConfig,
    seed: int,
    warmup: int = 2,
    repetitions: int = 5,
) -> Speed:
    """Measure latency, and throughput at the generator's batch size.

    Args:
        generator: what is measured.
        source: order and group sizes.
        sampling: how tokens are drawn.
        seed: of the images that are generated.
        warmup: runs before the clock starts: the first ones fill caches and choose kernels.
        repetitions: timed runs.
    """

    def median_seconds(num_images: int) -> float:
        """Of generating the run's first images, all in one batch."""
        indices = np.arange(num_images)
        labels = indices % generator.num_classes
        plan = source.plan(seed, indices)
        seconds = []
        for _ in range(warmup + repetitions):
            generator.synchronize()
            start = time.perf_counter()
            generator.generate(labels, plan, seed=seed, image_indices=indices, sampling=sampling)
            generator.synchronize()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[warmup:])

    return Speed(
        latency_seconds=median_seconds(1),
        images_per_second=generator.batch_size / median_seconds(generator.batch_size),
        batch_size=generator.batch_size,
        repetitions=repetitions,
    )
