"""Order files: pre-generated orders as ``.npz``, or as the published JSON list of lists."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpd.errors import InputError
from lpd.files import DAMAGED_ARCHIVE, atomic_path, read_json, told
from lpd.orders.group_sizes import GroupSizes, check_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.plan import DecodePlan, check_permutations
from lpd.provenance import Origin

# A threshold younger than a file counts as its default.
_DEFAULTS = dataclasses.asdict(LocalityConfig())


@dataclass(frozen=True, kw_only=True)
class OrderFile:
    """The content of an order file."""

    path: Path
    orders: npt.NDArray[np.uint16]
    """(n, N) raster positions in generation order."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """What the orders were made of, as :func:`order_origin` names it; a JSON file does not tell."""

    @property
    def group_sizes(self) -> GroupSizes | None:
        """The sizes the orders were made for; None where the file does not tell."""
        sizes = self.recorded.get("group_sizes")
        return None if sizes is None else tuple(sizes)

    def is_of(self, origin: Origin) -> bool:
        """Whether the file says that it is of this origin."""
        return not origin.differences(self.recorded)

    def check_kind(self, kind: str, locality: LocalityConfig) -> None:
        """Check that the orders are of a kind, made with these thresholds, where the file tells.

        Raises:
            InputError: it says that they are others.
        """
        values = {"kind": kind, **dataclasses.asdict(locality)}
        recorded = {name: self.recorded[name] for name in values if name in self.recorded}
        if recorded:
            Origin(values=values, defaults=_DEFAULTS).check(
                recorded,
                place=self.path,
                remedy="give the order and thresholds that it was made with, or another file",
            )

    def plan(self, group_sizes: GroupSizes, image_indices: npt.NDArray[np.int64]) -> DecodePlan:
        """The plan of some images of a run: image i takes row i, going round when i >= n.

        Raises:
            InputError: the file was made for other group sizes, or for another grid.
        """
        if self.orders.shape[1] != sum(group_sizes):
            raise InputError(
                f"{self.path} orders {self.orders.shape[1]} positions, "
                f"but the model has {sum(group_sizes)}"
            )
        if self.group_sizes is not None and self.group_sizes != group_sizes:
            raise InputError(
                f"{self.path} was made for {len(self.group_sizes)} passes of sizes "
                f"{self.group_sizes}, not for {len(group_sizes)} of {group_sizes}"
            )
        rows = self.orders[image_indices % len(self.orders)]
        return DecodePlan(rows.astype(np.int64), group_sizes)


def save_orders(
    path: Path,
    orders: npt.NDArray[np.integer],
    group_sizes: GroupSizes,
    *,
    kind: str,
    seed: int,
    locality: LocalityConfig,
) -> None:
    """Write orders, whole or not at all: ``.json`` as a list of lists, ``.npz`` with their origin.

    Args:
        path: the file; its suffix chooses the format.
        orders: (n, N) raster positions in generation order, every row a permutation.
        group_sizes: the sizes they were made for.
        kind: what kind of orders they are.
        seed: the seed they were made with.
        locality: the thresholds.

    Raises:
        InputError: another suffix, or more positions than files hold.
    """
    check_suffix(path)
    check_fits(orders.shape[1])
    origin = order_origin(kind, group_sizes, seed, locality)
    with atomic_path(path) as temporary:
        if path.suffix == ".json":
            with temporary.open("w", encoding="utf-8") as file:
                # Row by row: as Python integers all of them would take many times their room.
                for place, row in enumerate(orders):
                    file.write(("[" if place == 0 else ", ") + json.dumps(row.tolist()))
                file.write("]")
            return
        # Not compressed: orders hardly shrink, and it would take longer than to make them.
        arrays: dict[str, Any] = {name: np.array(value) for name, value in origin.values.items()}
        np.savez(temporary, orders=orders.astype(np.uint16, copy=False), **arrays)


def order_origin(kind: str, group_sizes: GroupSizes, seed: int, locality: LocalityConfig) -> Origin:
    """What a file of orders is made of, under the names that ``.npz`` files have for it."""
    return Origin(
        values={
            "group_sizes": group_sizes,
            "kind": kind,
            "seed": seed,
            **dataclasses.asdict(locality),
        },
        defaults=_DEFAULTS,
    )


def check_fits(num_positions: int) -> None:
    """Raise InputError where positions do not fit the 16 bits that order files have for them."""
    if num_positions > 1 << 16:
        raise InputError(f"order files hold up to 65536 positions, not {num_positions}")


def check_suffix(path: Path) -> None:
    """Raise InputError unless ``path`` ends in .npz or .json."""
    if path.suffix not in {".npz", ".json"}:
        raise InputError(f"{path}: an order file ends in .npz or .json")


def load_orders(path: Path) -> OrderFile:
    """Read an order file of either format.

    Raises:
        InputError: the file is missing or damaged, or a row is not a permutation.
    """
    check_suffix(path)
    if not path.is_file():
        raise InputError(f"no order file at {path}; make it with orders/run_lpd_order.py")
    try:
        if path.suffix == ".json":
            file = OrderFile(path=path, orders=np.array(read_json(path)))
        else:
            file = _load_npz(path)
    except DAMAGED_ARCHIVE as error:
        raise InputError(f"{path} is not an order file: {told(error)}") from error
    orders = file.orders
    if orders.ndim != 2 or orders.size == 0 or not np.issubdtype(orders.dtype, np.integer):
        raise InputError(f"{path} does not hold a table of integers, one row per order")
    check_fits(orders.shape[1])
    check_permutations(orders, str(path))
    if file.group_sizes is not None:
        try:
            check_group_sizes(file.group_sizes, orders.shape[1])
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from error
    return dataclasses.replace(file, orders=orders.astype(np.uint16))


def _load_npz(path: Path) -> OrderFile:
    with np.load(path, allow_pickle=False) as content:
        return OrderFile(
            path=path,
            orders=content["orders"],
            recorded={
                **{
                    name: content[name].item()
                    for name in content.files
                    if name not in {"orders", "group_sizes"}
                },
                "group_sizes": [int(size) for size in content["group_sizes"]],
            },
        )
