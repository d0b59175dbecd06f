"""How fast images are generated: sampling and decoding, without orders and metrics.

Latency is the time of one image alone (batch size 1); throughput is images per second at a batch
size that fills the device. Both come from the median over repetitions, after a warm-up, by the
host's clock with the device waited for: what a user waits, launches included. On a CPU the decoder
of an evaluation gives an image alone a single thread (``same_bits`` of
:class:`~lpd.generation.ImageGenerator`), so that a pipeline may be faster.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    latency_spread: float
    """Interquartile range of the times behind the latency, over their median."""
    throughput_spread: float
    """The same of the times behind the throughput."""


def measure_speed(
    generator: ImageGenerator,
    source: PlanSource,
    *,
    sampling: SamplingConfig,
    seed: int,
    batch_size: int | None = None,
    warmup: int = 2,
    repetitions: int = 5,
) -> Speed:
    """Measure latency and throughput.

    Args:
        generator: what is measured.
        source: order and group sizes.
        sampling: how tokens are drawn.
        seed: of the images that are generated.
        batch_size: images at a time of the throughput, at most the generator's; None for that.
        warmup: runs before the clock starts: the first ones fill caches and choose kernels.
        repetitions: timed runs; at least 2.
    """

    def times(num_images: int) -> list[float]:
        """Seconds of generating the run's first images, all in one batch."""
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
        return seconds[warmup:]

    together_size = min(batch_size or generator.batch_size, generator.batch_size)
    alone, together = times(1), times(together_size)
    return Speed(
        latency_seconds=statistics.median(alone),
        images_per_second=together_size / statistics.median(together),
        batch_size=together_size,
        repetitions=repetitions,
        latency_spread=_spread(alone),
        throughput_spread=_spread(together),
    )


def flip_rate(
    generator: ImageGenerator,
    source: PlanSource,
    codes: npt.NDArray[np.integer],
    *,
    sampling: SamplingConfig,
    seed: int,
) -> float:
    """The share of a run's first images that come out otherwise when each is generated alone.

    On a CPU in float32 that is none; elsewhere a batch rounds otherwise, and where two codes are
    nearly tied another one is drawn, and other ones after it.

    Args:
        generator: makes the images.
        source: order and group sizes.
        codes: (n, N) the codes of the run's first n images, as a batch gave them; n >= 1.
        sampling: how tokens are drawn.
        seed: of the images.
    """
    flipped = 0
    for image, expected in enumerate(codes):
        indices = np.array([image])
        generated = generator.generate(
            indices % generator.num_classes,
            source.plan(seed, indices),
            seed=seed,
            image_indices=indices,
            sampling=sampling,
        )
        flipped += not np.array_equal(generated.codes[0].cpu().numpy(), expected)
    return flipped / len(codes)


def _spread(seconds: list[float]) -> float:
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / median
