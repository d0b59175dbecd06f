"""Where the time of making a setting's images went."""

from collections.abc import Iterable

from lpd.evaluation.generated.chunks import Chunk


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None where a value is not known."""
    known = list(values)
    return None if None in known else float(sum(each for each in known if each is not None))


def seconds_per_image(chunks: list[Chunk]) -> float:
    """The generator's time per image, without the first batches of processes, in which kernels are
    chosen and memory is had, where there are others."""
    warm = total(chunk.times.warm for chunk in chunks)
    images = total(chunk.times.warm_images for chunk in chunks)
    if warm is not None and images:
        return warm / images
    return sum(chunk.times.generator for chunk in chunks) / sum(map(len, chunks))


def share_elsewhere(chunks: list[Chunk]) -> float | None:
    """The share of the time of making chunks in which the device neither generated nor extracted
    features; None where a chunk does not say."""
    generator = total(chunk.times.generator for chunk in chunks)
    extractor = total(chunk.times.extractor for chunk in chunks)
    wall = total(chunk.times.wall for chunk in chunks)
    if generator is None or extractor is None or wall is None:
        return None
    return 1 - (generator + extractor) / wall
