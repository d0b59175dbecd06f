"""What something was computed on, and with what."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("lpd", "torch", "torchvision", "numpy", "scipy", "pillow", "timm", "torch-fidelity")
"""Those on which the numbers of an evaluation depend."""


def processor() -> str:
    """The CPU's name and its number of cores."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of what computes: Python, torch, and CUDA where there is one."""
    import torch  # which not everyone who asks for the processor needs

    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def environment(device: Any) -> dict[str, Any]:
    """All of the surroundings that a number may depend on, as JSON holds it.

    Args:
        device: the torch device that computes.
    """
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
            packages[name] = None
    on_cuda = device.type == "cuda"
    products = torch.backends.cuda if on_cuda else torch.backends.mkldnn
    convolutions = torch.backends.cudnn if on_cuda else torch.backends.mkldnn
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else processor(),
        "threads": torch.get_num_threads(),
        "versions": {**packages, **versions()},
        # Of the transformer and the decoder. The older switches raise where the newer were used.
        "float32_products": products.matmul.fp32_precision,
        "float32_convolutions": convolutions.conv.fp32_precision,
    }
