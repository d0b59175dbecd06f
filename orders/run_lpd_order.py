"""Generate decoding orders and save them to a file.

python orders/run_lpd_order.py --img_size 256 --generation_steps 20 --output_file orders.npz
"""

from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from lpd.orders.files import check_fits, check_suffix, load_orders, order_origin, save_orders
from lpd.orders.request import OrderRequest
from lpd.orders.workers import make_orders
from lpd.provenance import Origin


@dataclass(frozen=True, kw_only=True)
class RunOrderConfig(OrderRequest):
    """Generate decoding orders and save them to a file."""

    output_file: Path
    """Where the orders go: .npz, or .json for the published list of lists. An .npz that holds them
    already is left as it is."""
    num_runs: int = 60000
    """How many orders."""
    max_workers: int | None = None
    """Worker threads; by default one per CPU core of this process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_runs < 1:
            raise InputError(f"num_runs must be at least 1, got {self.num_runs}")
        if self.max_workers is not None and self.max_workers < 1:
            raise InputError(f"max_workers must be at least 1, got {self.max_workers}")
        check_suffix(self.output_file)
        check_fits(self.grid[0] * self.grid[1])
        if self.output_file.is_dir():
            raise InputError(f"output_file {self.output_file} is a folder: name a file in it")


def run(config: RunOrderConfig) -> None:
    """Make the orders in worker threads and write the file, unless it is there."""
    source = config.source
    kind, locality = source.order.kind, source.order.locality
    if is_complete(config, order_origin(kind, source.group_sizes, config.seed, locality)):
        print(f"complete already: {config.output_file}")
        return
    orders = make_orders(
        source,
        config.seed,
        config.num_runs,
        max_workers=config.max_workers,
        show_progress=True,
    )
    save_orders(
        config.output_file,
        orders,
        source.group_sizes,
        kind=kind,
        seed=config.seed,
        locality=locality,
    )
    print(f"{config.num_runs} orders of {len(source.group_sizes)} passes: {config.output_file}")


def is_complete(config: RunOrderConfig, origin: Origin) -> bool:
    """Whether the file holds these orders; a .json file does not tell."""
    if config.output_file.suffix != ".npz" or not config.output_file.is_file():
        return False
    try:
        found = load_orders(config.output_file)
    except InputError:  # damaged: it is made again
        return False
    return len(found.orders) == config.num_runs and found.is_of(origin)


if __name__ == "__main__":
    run_config = cli.parse(RunOrderConfig, "Generate decoding orders and save them to a file.")
    with cli.command():
        run(run_config)
