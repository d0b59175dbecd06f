"""How close a reconstruction is to its image, and how much of a codebook is in use.

B images, C channels, H x W pixels, V codes.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255.0
"""Of 8-bit pixels."""
# Wang, Bovik, Sheikh and Simoncelli (2004): a Gaussian window of 11 pixels, and constants against
# division by almost nothing.
_WINDOW_SIDE = 11
_WINDOW_SIGMA = 1.5
_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2

Distances = Callable[[Tensor, Tensor], Tensor]
"""A distance of each pair of (B, 3, H, W) uint8 images: (B,)."""


def mean_squared_error(images: Tensor, others: Tensor) -> Tensor:
    """The mean squared difference of each pair of images, exactly.

    Args:
        images: (B, C, H, W) uint8.
        others: of the same shape.

    Returns:
        (B,) float64.
    """
    difference = images.long() - others.long()
    return difference.square().sum(dim=(1, 2, 3)).double() / images[0].numel()


def psnr(mse: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of 8-bit pixels with mean squared errors of any shape;
    infinite where there is no error."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / np.asarray(mse, dtype=np.float64))


def structural_similarity(images: Tensor, others: Tensor) -> Tensor | None:
    """SSIM of each pair of images: over every place where the window of 11 pixels lies inside, and
    over the channels.

    In float64, since variances are small differences of large numbers, and GPUs multiply float32
    with fewer digits.

    Args:
        images: (B, C, H, W) uint8.
        others: of the same shape.

    Returns:
        (B,) float64; None where images are smaller than the window.
    """
    if min(images.shape[-2:]) < _WINDOW_SIDE:
        return None
    x, y = images.double(), others.double()
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x * mean_x
    variance_y = _windowed(y * y) - mean_y * mean_y
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _windowed(images: Tensor) -> Tensor:
    """Weighted means over the window at every place: (B, C, H - 10, W - 10)."""
    offsets = torch.arange(_WINDOW_SIDE, device=images.device) - _WINDOW_SIDE // 2
    weights = torch.exp(-(offsets.double() ** 2) / (2 * _WINDOW_SIGMA**2))
    weights /= weights.sum()
    planes = images.flatten(0, 1).unsqueeze(1)  # (B * C, 1, H, W)
    planes = F.conv2d(planes, weights.view(1, 1, -1, 1))
    planes = F.conv2d(planes, weights.view(1, 1, 1, -1))
    return planes.squeeze(1).unflatten(0, images.shape[:2])


def share_used(counts: npt.NDArray[np.int64]) -> float:
    """The share of the codes that occur at all, of how often each of V does."""
    return float((counts > 0).mean())


def perplexity(counts: npt.NDArray[np.int64]) -> float:
    """The perplexity of the codes' frequencies, of how often each of V occurs: from 1, where one
    code is everything, to V, where all are equally frequent.

    Independent draws of codes with this entropy would use so many codes equally.
    """
    frequencies = counts[counts > 0] / counts.sum()
    return math.exp(-float((frequencies * np.log(frequencies)).sum()))


def load_lpips(device: torch.device) -> tuple[Distances | None, str]:
    """LPIPS (arXiv 1801.03924) on VGG, which the literature on tokenizers gives, by the package
    ``lpips``.

    Returns:
        The distance, and how it was made; or None, and why there is none.
    """
    try:
        import lpips
    except ImportError:
        return None, "the package lpips is not installed"
    try:
        network = lpips.LPIPS(net="vgg", verbose=False)
    except (OSError, RuntimeError) as error:  # VGG's weights are fetched when they are first used
        return None, f"lpips could not load VGG: {' '.join(str(error).split())}"
    network = network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def distances(images: Tensor, others: Tensor) -> Tensor:
        first, second = (each.float() / 127.5 - 1 for each in (images, others))
        return network(first, second).flatten()

    return distances, f"lpips {getattr(lpips, '__version__', '')} vgg".replace("  ", " ")
