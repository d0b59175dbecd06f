"""An edited image's pixels where its codes were kept: the decoder's, or the image's own."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from lpd.orders.plan import Grid

Pixels = npt.NDArray[np.uint8]


def blend(
    decoded: Pixels, sources: Pixels, known: npt.NDArray[np.bool_], grid: Grid, feather: int
) -> Pixels:
    """Put the sources' pixels where codes were kept.

    A pixel of a kept cell at distance d from the nearest pixel of a generated one is d/feather
    parts the source's, the rest the decoder's; from d = feather on it is the source's exactly. All
    of a generated cell is the decoder's. So the two meet where both show the same code.

    Args:
        decoded: (n, 3, H, W) what the decoder made of all codes.
        sources: (n, 3, H, W) the images that the kept codes are of.
        known: (n, N) which cells were kept.
        grid: rows and columns of the N cells.
        feather: width in pixels; with 0 the decoder's pixels stay everywhere.

    Returns:
        (n, 3, H, W).
    """
    if not feather:
        return decoded
    rows, columns = grid
    stride = decoded.shape[2] // rows
    blended = decoded.copy()
    for image, source, cells in zip(blended, sources, known, strict=True):
        pixels = cells.reshape(rows, columns).repeat(stride, axis=0).repeat(stride, axis=1)
        share = np.minimum(distance_transform_edt(pixels) / feather, 1)  # (H, W)
        image[:] = np.rint(share * source + (1 - share) * image)
    return blended
