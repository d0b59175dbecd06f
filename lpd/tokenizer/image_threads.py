"""Images on a CPU in several threads, each of which computes its images alone.

Where a CPU's threads share an operator, a convolution may be cut otherwise for a small batch than
for a large one, and its last bits then depend on the batch. A thread that computes alone gives an
image the same bits in any batch, and with any number of other threads beside it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class ImageThreads:
    """Threads that compute images; made when they are first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def map(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``compute(images)``, an image's bits the same in any batch.

        As many threads share the images as the caller's operators would be shared by.

        Args:
            compute: from (b, ...) to (b, ...), an image's result from that image alone.
            images: (B, ...) on the CPU, B >= 1.
        """
        parts = images.tensor_split(min(len(images), torch.get_num_threads()))
        return torch.cat(self._results(compute, parts))

    def _results(
        self, compute: Callable[[Tensor], Tensor], parts: Sequence[Tensor]
    ) -> list[Tensor]:
        if torch.get_num_threads() == 1:
            return [compute(part) for part in parts]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="images")

        def alone(part: Tensor) -> Tensor:
            torch.set_num_threads(1)
            return compute(part)

        threads = torch.get_num_threads()
        try:
            return list(self._pool.map(alone, parts))
        finally:
            # What is set in a thread counts for threads that begin later, too.
            torch.set_num_threads(threads)
