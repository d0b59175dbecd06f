"""What bounds the passes of decoding: launching kernels, moving bytes or computing.

python scripts/benchmark/roofline.py [--output_file roofline.png]

For an H100 it is computed from shapes (scripts/benchmark/work.py) and the ceilings of its data
sheet. The figure also has what scripts/benchmark/sampling.py has recorded, against the ceilings
that it measured in the same run.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lpd import cli
from lpd.errors import InputError
from lpd.files import atomic_path
from lpd.orders.group_sizes import make_group_sizes
from lpd.pretrained import config_of_preset
from scripts.benchmark import records
from scripts.benchmark.work import NO_WORK, Work, work_of_passes

FIGURE = Path(__file__).with_name("roofline.png")

# NVIDIA H100 Tensor Core GPU data sheet, SXM: 3.35 TB/s, and 1,979 TFLOP/s in bf16 with sparsity,
# which is twice the dense rate. https://www.nvidia.com/en-us/data-center/h100/
H100_BANDWIDTH = 3.35e12
H100_FLOP_RATE = 0.5 * 1979e12
# Between two kernels of a CUDA graph the device idles for about so long.
SECONDS_PER_KERNEL = 1.3e-6
KERNELS_PER_BLOCK = (5, 11, 15)
PRESETS = {"lpd_l": "LPD-L", "lpd_xl": "LPD-XL", "lpd_xxl": "LPD-XXL"}
STEPS = {256: 20, 512: 48}  # by image size
BATCH_SIZES = (1, 8, 64, 256)
_BFLOAT16 = 2


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The passes of a batch, with guidance and in bf16, on an H100. Times are in seconds."""

    preset: str
    img_size: int
    batch_size: int
    work: Work
    moving: float
    """Of the passes that take longer to move their bytes than to compute."""
    computing: float
    """Of the others."""
    num_blocks: int
    """That run: blocks of the model times passes."""

    @property
    def floor(self) -> float:
        """Where nothing else holds a pass back."""
        return self.moving + self.computing

    def launching(self, kernels_per_block: int) -> float:
        """What is lost between the kernels of the blocks."""
        return kernels_per_block * self.num_blocks * SECONDS_PER_KERNEL

    def bound_by(self, kernels_per_block: int) -> str:
        """What takes longest."""
        times = {
            "launches": self.launching(kernels_per_block),
            "moving": self.moving,
            "computing": self.computing,
        }
        return max(times, key=lambda name: times[name])


def bounds() -> Iterator[Bound]:
    """Those of all published models."""
    for img_size, preset, batch_size in itertools.product(STEPS, PRESETS, BATCH_SIZES):
        config = config_of_preset(preset, img_size=img_size)
        group_sizes = make_group_sizes(config.num_positions, STEPS[img_size])
        works = list(
            work_of_passes(config, group_sizes, num_sequences=2 * batch_size, itemsize=_BFLOAT16)
        )
        seconds = [each.floor_seconds(H100_BANDWIDTH, H100_FLOP_RATE) for each in works]
        moved = [each.num_bytes / H100_BANDWIDTH for each in works]
        moving = sum(longer for longer, own in zip(seconds, moved, strict=True) if longer == own)
        yield Bound(
            preset=preset,
            img_size=img_size,
            batch_size=batch_size,
            work=sum(works, start=NO_WORK),
            moving=moving,
            computing=sum(seconds) - moving,
            num_blocks=config.depth * len(group_sizes),
        )


def explanation() -> str:
    """What the table is, in Markdown."""
    kernels = ", ".join(map(str, KERNELS_PER_BLOCK))
    return (
        "### What bounds decoding\n\n"
        "![What bounds decoding](scripts/benchmark/roofline.png)\n\n"
        "Computed from shapes, not measured: all passes of a batch in bf16 with guidance on an "
        "H100 SXM, of which [NVIDIA's data sheet](https://www.nvidia.com/en-us/data-center/h100/) "
        f"says {H100_BANDWIDTH / 1e12:.2f} TB/s and {H100_FLOP_RATE / 1e12:.0f} TFLOP/s (dense "
        f"bf16), with {1e6 * SECONDS_PER_KERNEL:.1f} µs lost at each kernel of a block, for "
        f"{kernels} kernels a block. Moving and computing overlap, so a pass takes the longer of "
        "the two; the table adds up the passes that are held back by the one and by the other. "
        "Launches come on top. The tokenizer's decoder is left out. "
        f"What is counted stands in `scripts/benchmark/work.py`."
    )


def table() -> list[tuple[str, ...]]:
    """A header, and a row for each model, size and batch."""
    kernels = " / ".join(map(str, KERNELS_PER_BLOCK))
    header = (
        "model",
        "px",
        "passes",
        "batch",
        "GB",
        "TFLOP",
        "moving, ms",
        "computing, ms",
        f"launches, ms, at {kernels} kernels",
        "longest",
    )
    rows = [
        (
            PRESETS[each.preset],
            str(each.img_size),
            str(STEPS[each.img_size]),
            str(each.batch_size),
            f"{each.work.num_bytes / 1e9:.1f}",
            f"{each.work.flops / 1e12:.2f}",
            f"{1e3 * each.moving:.1f}",
            f"{1e3 * each.computing:.1f}",
            " / ".join(f"{1e3 * each.launching(count):.1f}" for count in KERNELS_PER_BLOCK),
            " / ".join(dict.fromkeys(each.bound_by(count) for count in KERNELS_PER_BLOCK)),
        )
        for each in bounds()
    ]
    return [header, *rows]


@dataclass(frozen=True, kw_only=True)
class RooflineConfig:
    """Which files."""

    results: Path = records.RESULTS
    """What was measured."""
    output_file: Path = FIGURE
    """Where the figure goes: .png, .pdf or .svg."""

    def __post_init__(self) -> None:
        suffixes = (".png", ".pdf", ".svg")
        if self.output_file.suffix not in suffixes:
            raise InputError(f"{self.output_file}: a figure ends in {', '.join(suffixes)}")


def run(config: RooflineConfig) -> None:
    """Draw the figure."""
    try:
        from scripts.benchmark.roofline_figure import draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError(
            "drawing needs matplotlib: bash environment_setup.sh or pip install matplotlib"
        ) from error
    figure = draw(list(bounds()), records.read(config.results))
    with atomic_path(config.output_file) as temporary:
        figure.savefig(temporary)
    print(f"figure: {config.output_file}")


def main() -> None:
    """The command."""
    config = cli.parse(RooflineConfig, "Draw what bounds decoding.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
