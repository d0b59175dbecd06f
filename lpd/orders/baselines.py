"""Published orders to compare the locality-aware one with: functions, and entries of the table.

An order here is either (N,) raster positions in generation order, which any group sizes may cut
into passes, or (N,) the pass, from 0, of each raster position, where the method says itself what is
decoded together.

LPD's model decodes every one of them: what is compared is which cells are known when, not the
networks of those papers.
"""

import functools
import math

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.orders.kinds import Order, OrderFamily, OrderTask, Positions
from lpd.orders.plan import Grid
from lpd.randomness import Stream, generator

# A Halton point may lie on the edge of a cell, and its rounded coordinate just before it. Points
# off the edges are farther from them than this until the sequence is millions of points long.
_ROUNDING = 1e-9


def raster_order(num_positions: int) -> npt.NDArray[np.int64]:
    """Row by row, left to right: the order of LlamaGen (arXiv 2406.06525). (N,)"""
    return np.arange(num_positions, dtype=np.int64)


def random_order(seed: int, image: int, num_positions: int) -> npt.NDArray[np.int64]:
    """A uniformly random order, as in RandAR (arXiv 2412.01827) and in LPD's training. (N,)"""
    return generator(Stream.ORDER, seed, image).permutation(num_positions).astype(np.int64)


@functools.lru_cache(maxsize=8)  # every batch asks for the same
def halton_order(grid: Grid) -> npt.NDArray[np.int64]:
    """Cells in the order in which a Halton sequence first hits them, so that the cells of a pass
    are spread out, and so is everything known: Besnier et al., "Halton Scheduler for Masked
    Generative Image Transformer" (ICLR 2025, arXiv 2503.17076).

    Point k = 1, 2, ... is at (k mirrored at the point in base 2, the same in base 3) of the unit
    square, and hits the cell of that share of the rows and of the columns. The sequence starts
    after its point (0, 0), as in the authors' code. The same order for every image.

    Args:
        grid: rows and columns of the code grid.

    Returns:
        (N,) raster positions in generation order.
    """
    from scipy.stats import qmc  # takes a second to import, which the other orders do not wait for

    rows, columns = grid
    sequence = qmc.Halton(d=2, scramble=False)
    sequence.fast_forward(1)
    hits = np.empty(0, dtype=np.int64)
    while True:
        points = sequence.random(max(rows * columns, len(hits)))  # (n, 2); twice as many in all
        row, column = np.floor(points * grid + _ROUNDING).astype(np.int64).T
        hits = np.concatenate([hits, row * columns + column])
        _, first_hits = np.unique(hits, return_index=True)
        if len(first_hits) == rows * columns:
            order = hits[np.sort(first_hits)]
            order.flags.writeable = False  # it is everyone's
            return order


def par_passes(grid: Grid, regions: int) -> npt.NDArray[np.int64]:
    """Distant cells at once: Wang et al., "Parallelized Autoregressive Visual Generation" (PAR,
    CVPR 2025, arXiv 2412.15119).

    The grid is cut into M x M regions. First the top-left cells of the regions are decoded one by
    one, regions in raster order; then each further place of a region, in raster order, in all
    regions at once. M = 2 is the paper's PAR-4x and M = 4 its PAR-16x: 147 and 51 passes on a
    24 x 24 grid.

    Args:
        grid: rows and columns of the code grid.
        regions: M, regions along each side.

    Returns:
        (N,) the pass of each raster position.

    Raises:
        InputError: M does not divide the rows and the columns.
    """
    rows, columns = grid
    if rows % regions or columns % regions:
        raise InputError(
            f"order par_{regions**2}x cuts the grid into {regions} x {regions} equal regions, "
            f"but the grid is {rows} x {columns}: its sides must be multiples of {regions}"
        )
    height, width = rows // regions, columns // regions  # of a region
    row, column = np.indices(grid)  # (rows, columns) each
    place = row % height * width + column % width
    region = row // height * regions + column // width
    passes = np.where(place == 0, region, regions**2 - 1 + place)  # (rows, columns)
    return passes.ravel()


def nar_passes(grid: Grid) -> npt.NDArray[np.int64]:
    """Diagonal by diagonal: He et al., "Neighboring Autoregressive Modeling for Efficient Visual
    Generation" (NAR, arXiv 2503.10696).

    A cell's pass is its Manhattan distance from the top-left cell: 2n - 1 passes on an n x n grid.

    Args:
        grid: rows and columns of the code grid.

    Returns:
        (N,) the pass of each raster position.
    """
    row, column = np.indices(grid)  # (rows, columns) each
    return (row + column).ravel()


def zipar_passes(grid: Grid, window: int) -> npt.NDArray[np.int64]:
    """Several rows at once: He et al., "ZipAR: Parallel Autoregressive Image Generation through
    Spatial Locality" (ICML 2025, arXiv 2412.04062), with a fixed window.

    Rows are decoded from left to right, one cell per pass; a cell waits until ``window`` cells of
    the row above, from its own column on, are decoded. So cell (r, c) comes in pass
    r * window + c. A window as wide as the grid gives raster order, window 1 NAR's diagonals.

    Two things differ from the published runs. The paper also widens windows as it goes, by what
    the model predicts; then the number of passes depends on the image. And the authors' code
    decodes the whole first row before the second one starts: columns - window passes more.

    Args:
        grid: rows and columns of the code grid.
        window: cells decoded of a row when the next one starts.

    Returns:
        (N,) the pass of each raster position.

    Raises:
        InputError: the window is not between 1 and the number of columns.
    """
    columns = grid[1]
    if not 1 <= window <= columns:
        raise InputError(
            f"order zipar_{window}: the window must be between 1 and {columns}, the grid's columns"
        )
    row, column = np.indices(grid)  # (rows, columns) each
    return (row * window + column).ravel()


def _random_orders(task: OrderTask) -> Positions:
    orders = np.empty(task.known.shape, dtype=np.int64)  # (B, N)
    for row, image in zip(orders, task.image_indices.tolist(), strict=True):
        row[:] = random_order(task.seed, image, task.num_positions)
    return task.without_known(orders)


def _par(regions_squared: int) -> Order | None:
    regions = math.isqrt(regions_squared)
    if regions**2 != regions_squared:
        return None
    return Order(
        name=f"par_{regions_squared}x",
        label=f"PAR {regions_squared}x",
        passes=functools.partial(par_passes, regions=regions),
    )


def _zipar(window: int) -> Order:
    return Order(
        name=f"zipar_{window}",
        label=f"ZipAR, window {window}",
        passes=functools.partial(zipar_passes, window=window),
    )


FREE_BASELINES: tuple[Order | OrderFamily, ...] = (
    Order(
        name="raster",
        label="raster",
        make=lambda task: task.without_known(raster_order(task.num_positions)),
    ),
    Order(name="random", label="random", make=_random_orders),
    Order(
        name="halton",
        label="Halton",
        make=lambda task: task.without_known(halton_order(task.grid)),
    ),
)
"""Those that any group sizes cut into passes."""

OWN_PASS_BASELINES: tuple[Order | OrderFamily, ...] = (
    OrderFamily(
        name="par_COUNTx",
        member=_par,
        examples=lambda _grid: (4, 16),
        has_own_passes=True,
        named=(4, 16),
    ),
    Order(name="nar", label="NAR", passes=nar_passes),
    OrderFamily(
        name="zipar_WINDOW",
        member=_zipar,
        examples=lambda grid: (max(1, grid[1] // 4),),
        has_own_passes=True,
    ),
)
"""Those that say themselves what is decoded together."""
