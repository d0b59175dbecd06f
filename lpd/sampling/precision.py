"""Whether bfloat16 pays on this device: by measurement, not by the processor's name."""

import functools
import time

import torch

_ROWS, _WIDTH = 64, 1024  # a pass of one image, a published model's width
_ROUNDS = 7
_WORTH_IT = 1.2


@functools.cache
def bf16_speedup() -> float:
    """How many times as fast this CPU multiplies bfloat16 matrices as float32 ones, of the sizes of
    a pass, with torch's present number of threads; some 50 ms, once in a process."""
    x, weight = torch.ones(_ROWS, _WIDTH), torch.ones(4 * _WIDTH, _WIDTH)  # no one's random numbers
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(_ROUNDS):  # turn about: what slows the machine down slows both
        for dtype, measured in seconds.items():
            rows, columns = x.to(dtype), weight.to(dtype)
            start = time.perf_counter()
            torch.nn.functional.linear(rows, columns)
            measured.append(time.perf_counter() - start)
    # The least of each: noise only adds.
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def bf16_pays(device: torch.device) -> bool:
    """Whether to compute in bfloat16 on ``device`` for speed's sake: on CUDA always, on a CPU where
    it is clearly faster."""
    return device.type == "cuda" or (device.type == "cpu" and bf16_speedup() >= _WORTH_IT)
