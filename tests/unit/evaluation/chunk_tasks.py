"""Chunks to make, for tests."""

from lpd.evaluation.generated.chunks import chunk_path
from lpd.evaluation.generated.making import Task


def chunk_tasks(setting, folder, num_images, chunk_size):
    """A setting's images cut into chunks, one after the other."""
    starts = range(0, num_images, chunk_size)
    ranges = [range(num_images)[start : start + chunk_size] for start in starts]
    return [
        Task(setting=setting, image_indices=each, path=chunk_path(folder, each), identity="one")
        for each in ranges
    ]
