"""float32 that is float32, whatever a process has allowed its matrix products to be."""

import contextlib
import operator
import threading
from collections.abc import Iterator

import torch

# What of torch.backends says how precise float32 products are: TF32 on GPUs, bfloat16 on some
# processors.
_PRODUCTS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")
_TURNS = threading.RLock()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full float32 with the same kernels every time, and leave the settings as found.

    They are the process's, so threads take turns; nothing else may compute meanwhile.
    """
    with _TURNS:
        settings = [operator.attrgetter(name)(torch.backends) for name in _PRODUCTS]
        found = [products.fp32_precision for products in settings]
        cudnn = torch.backends.cudnn
        deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
        try:
            for products in settings:
                products.fp32_precision = "ieee"
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
        finally:
            for products, precision in zip(settings, found, strict=True):
                products.fp32_precision = precision
            cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
