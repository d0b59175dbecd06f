"""float32 that is float32, whatever a process has allowed its matrix products to be."""

import contextlib
import operator
from collections.abc import Iterator

import torch

# What of torch.backends says how precise float32 products are: TF32 on GPUs, bfloat16 on some
# processors.
_PRODUCTS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full float32 with the same kernels every time, and leave the settings as found.

    They are the process's: nothing else may compute meanwhile.
    """
    settings = [operator.attrgetter(name)(torch.backends) for name in _PRODUCTS]
    found = [products.fp32_precision for products in settings]
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        for products in settings:
            products.fp32_precision = "ieee"
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        yield
    finally:
        for products, precision in zip(settings, found, strict=True):
            products.fp32_precision = precision
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = benchmark
