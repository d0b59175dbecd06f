"""Hashes of pixels and of arrays, by which images and numbers are known again.

The images of an evaluation, and those of its files measured as anybody's, have the same digests.

n images of size H x W.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16
"""Bytes of an image's digest."""


def pixel_digest(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """BLAKE2b of an image's (3, H, W) pixels; (DIGEST_BYTES,)."""
    content = np.ascontiguousarray(pixels).data  # a decoder may have its channels innermost
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    return np.frombuffer(bytearray(digest), dtype=np.uint8)


def image_digests(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The digest of every one of (n, 3, H, W) images; (n, DIGEST_BYTES)."""
    return np.stack([pixel_digest(image) for image in pixels])


def array_digest(array: npt.NDArray[Any]) -> str:
    """A SHA-256 of an array's values, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
