"""Editing by prefill: what is kept of an image is known beforehand, and the rest is decoded.

The model predicts any positions from any known ones (paper section 3.2), so an edit needs no
training: an order of what is left that starts from what is known, and fewer passes.

n images, N cells of which K are known and M = N - K are left.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.options import Flat
from lpd.orders.group_sizes import (
    CUMULATIVE_SHARES,
    GroupSizes,
    check_shape,
    default_steps,
    make_group_sizes,
)
from lpd.orders.plan import Grid
from lpd.orders.registry import OrderConfig, find_order
from lpd.orders.request import OrderOptions, PlanSource
from lpd.randomness import Stream, check_seed, random_integers
from lpd.sampling.config import SamplingConfig

# Wider than any image: what is larger is a mistake.
_MOST_FEATHER = 1 << 14
# So near are shares the same, whatever the last bits of a cosine.
_SAME_SHARE = 1e-9


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """How what is left of an image is filled in."""

    edit_steps: int | None = None
    """Number of passes for what is to be generated. By default those passes of a whole image's
    --generation_steps that are not over when as much is known: 20 passes and half of the image
    known leave 7."""
    feather: int = 0
    """Outside what is generated take the image's own pixels, mixed with the decoder's over this
    many pixels from the border; 1 puts them side by side. With 0 the decoder makes all pixels, also
    those of the codes that are kept."""

    def __post_init__(self) -> None:
        if self.edit_steps is not None and not self.edit_steps >= 1:
            raise InputError(f"edit_steps must be positive, got {self.edit_steps}")
        if not 0 <= self.feather <= _MOST_FEATHER:
            raise InputError(f"feather must be from 0 to {_MOST_FEATHER}, got {self.feather}")


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """All that an edit takes beside images, labels and what is to be kept."""

    decoding: Annotated[OrderOptions, Flat] = field(default_factory=OrderOptions)
    sampling: Annotated[SamplingConfig, Flat] = field(default_factory=SamplingConfig)
    editing: Annotated[EditOptions, Flat] = field(default_factory=EditOptions)
    seed: int = 0
    """Names the random numbers. An edit depends on the seed, the image's index, the image and what
    is kept of it alone."""

    def __post_init__(self) -> None:
        check_seed(self.seed)


def passes_left(
    num_passes: int, num_positions: int, num_known: int, schedule: str = "cosine"
) -> int:
    """How many passes to fill in what is left: those of a whole image's schedule that are not over
    when as many cells are known.

    By the cosine, K of N are known at x = 2/pi acos(1 - K/N) of the passes, so that
    ceil(S (1 - x)) of S are left.

    Args:
        num_passes: S, of a whole image.
        num_positions: N.
        num_known: K < N.
        schedule: how group sizes grow over the passes, see :mod:`lpd.orders.group_sizes`.

    Returns:
        From 1 to M.

    Raises:
        InputError: S is not between 1 and N, or there is no such schedule.
    """
    check_shape(schedule)
    if not 1 <= num_passes <= num_positions:
        raise InputError(
            f"{num_passes} generation steps do not fit {num_positions} positions: "
            f"choose from 1 to {num_positions}"
        )
    share = CUMULATIVE_SHARES[schedule]
    known = num_known / num_positions
    left = sum(
        share(number / num_passes) - known > _SAME_SHARE for number in range(1, num_passes + 1)
    )
    return min(left, num_positions - num_known)


def sizes_left(
    num_passes: int, num_positions: int, num_known: int, schedule: str = "cosine"
) -> GroupSizes:
    """The group sizes of what is left: the whole image's schedule goes on from where what is known
    has brought it, stretched over the passes.

    A schedule of its own would begin with a single cell, which is for images of which nothing is
    known: 36 cells in 2 passes were 1 and 35 then, and are 18 and 18.

    Args:
        num_passes: R, from 1 to M.
        num_positions: N.
        num_known: K < N.
        schedule: how group sizes grow over the passes.

    Returns:
        R positive sizes that sum to M.
    """
    if not num_known:
        return make_group_sizes(num_positions, num_passes, schedule)
    share = CUMULATIVE_SHARES[schedule]
    start, end = 0.0, 1.0  # where the share is known, found by halving
    for _ in range(60):
        middle = (start + end) / 2
        start, end = (middle, end) if share(middle) < num_known / num_positions else (start, middle)
    ends = [num_known]
    for number in range(1, num_passes + 1):
        # Rounding may bring the last one beyond 1, where not every share is defined.
        ideal = num_positions * share(min(1.0, start + (1 - start) * number / num_passes))
        # So many at most, that each pass that follows has a cell.
        most = num_positions - (num_passes - number)
        ends.append(min(max(math.floor(ideal + 0.5 + _SAME_SHARE), ends[-1] + 1), most))
    return tuple(after - before for before, after in itertools.pairwise(ends))


def edit_source(
    decoding: OrderOptions, editing: EditOptions, grid: Grid, known: npt.NDArray[np.bool_]
) -> PlanSource:
    """The plans of an edit.

    Args:
        decoding: the order, and how a whole image would be decoded.
        editing: how many passes the edit takes.
        grid: rows and columns of the code grid.
        known: (N,) which cells are known; not all.

    Raises:
        InputError: the order, sizes or numbers of passes do not fit what is left.
    """
    if find_order(decoding.order).has_own_passes or decoding.sizes.group_sizes is not None:
        if editing.edit_steps is not None:
            sizes = decoding.sizes.group_sizes
            giver = f"order {decoding.order}" if sizes is None else f"group_sizes {sizes}"
            raise InputError(
                f"the passes are told by {giver}: leave out edit_steps {editing.edit_steps}"
            )
        return decoding.source(grid, known=known)
    num_known = int(known.sum())
    num_left = len(known) - num_known
    steps, schedule = editing.edit_steps, decoding.sizes.group_size_schedule
    if steps is None:
        of_all = decoding.generation_steps
        of_all = default_steps(len(known)) if of_all is None else of_all
        steps = passes_left(of_all, len(known), num_known, schedule)
    elif steps > num_left:
        raise InputError(
            f"edit_steps {steps} are more than the {num_left} cells that are to be generated: "
            f"choose from 1 to {num_left}"
        )
    return PlanSource(
        order=OrderConfig(kind=decoding.order, locality=decoding.locality),
        grid=grid,
        group_sizes=sizes_left(steps, len(known), num_known, schedule),
    )


def sources_of(
    settings: EditSettings, grid: Grid, known: npt.NDArray[np.bool_]
) -> dict[GroupSizes, tuple[PlanSource, npt.NDArray[np.int64]]]:
    """The images that are decoded in the same group sizes, and so in the same batches.

    Args:
        settings: how.
        grid: rows and columns of the code grid.
        known: (n, N) which cells are known; not all of any image.

    Returns:
        By group sizes, what the images' plans are made by, and their rows.
    """
    sources: dict[bytes, PlanSource] = {}
    rows: dict[GroupSizes, list[int]] = {}
    by_sizes: dict[GroupSizes, PlanSource] = {}
    own_passes = find_order(settings.decoding.order).has_own_passes
    for row, cells in enumerate(known):
        # Of an order without passes of its own, the sizes depend on the number of cells alone.
        key = cells.tobytes() if own_passes else str(int(cells.sum())).encode()
        if key not in sources:
            sources[key] = edit_source(settings.decoding, settings.editing, grid, cells)
        sizes = sources[key].group_sizes
        by_sizes.setdefault(sizes, sources[key])
        rows.setdefault(sizes, []).append(row)
    return {sizes: (by_sizes[sizes], np.array(rows[sizes])) for sizes in rows}


def kept_at_random(
    seed: int, image_indices: npt.NDArray[np.int64], share: float, num_positions: int
) -> npt.NDArray[np.bool_]:
    """A random choice of cells for each image, by the seed and the image's index.

    Args:
        seed: the run's seed.
        image_indices: (n,) the images' indices in the run.
        share: of the cells; the number is rounded, at least one is chosen and one is not.
        num_positions: N >= 2.

    Returns:
        (n, N) which cells are chosen.

    Raises:
        InputError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InputError(
            f"the share of codes to keep must be above 0 and below 1, got {share}: with none of "
            "them an image is generated, and with all nothing is"
        )
    count = min(max(1, round(share * num_positions)), num_positions - 1)
    numbers = random_integers(Stream.KEPT, seed, image_indices, num_positions, 32)  # (n, N)
    kept = np.zeros(numbers.shape, dtype=np.bool_)
    first = np.argsort(numbers, axis=1, kind="stable")[:, :count]  # (n, count)
    np.put_along_axis(kept, first, True, axis=1)
    return kept
