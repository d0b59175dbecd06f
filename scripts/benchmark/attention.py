"""Time the attention of training, forward and backward: FlexAttention against the dense mask.

python scripts/benchmark/attention.py [--img_size 256 512] [--dtype bfloat16]

Three ways to attend are timed side by side, their turns interleaved: FlexAttention with the block
mask (on CUDA only), SDPA with the dense mask, and SDPA without a mask, which attends to everything.
For each there are two lines: attention alone, and a whole transformer block around it. A line's
number is the median over rounds, and its ratio is to the dense mask.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

from lpd import cli
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.machine import processor
from lpd.models.layers import Attend, Block, init_weights
from lpd.models.visibility import Visibility, dense_attention, sparse_attention
from lpd.orders.group_sizes import GroupSizes, make_group_sizes

STRIDE = 16
NUM_PASSES = {256: (256, 20, 8), 512: (1024, 48)}  # by image size
PUBLISHED_BATCH = {256: 64, 512: 16}  # lpd_l's, per GPU
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RUNS = {"cpu": 1, "cuda": 10}  # per round: a device is asked ahead, as in training
REFERENCE = "dense mask"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is timed; the defaults are lpd_l's."""

    img_size: tuple[int, ...] | None = None
    """Image sides in pixels: 256 (16x16 codes), 512 (32x32); by default both, and the first alone
    on a CPU."""
    batch_size: int | None = None
    """Images per step; by default lpd_l's per GPU (64 and 16), and 1 on a CPU."""
    num_heads: int = 16
    """Attention heads."""
    head_dim: int = 64
    """Channels per head."""
    dtype: str | None = None
    """bfloat16 (with autocast around the block, as in training) or float32; by default the first on
    CUDA and the second on a CPU."""
    repetitions: int | None = None
    """Rounds; by default 20 on CUDA and 3 on a CPU."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default CUDA where there is one."""

    def __post_init__(self) -> None:
        for size in self.img_size or ():
            if size not in NUM_PASSES:
                raise InputError(
                    f"img_size must be {' or '.join(map(str, NUM_PASSES))}, got {size}"
                )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}: choose from {', '.join(DTYPES)}")
        for name in ("num_heads", "head_dim", "batch_size", "repetitions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload: attention over the 2N rows of a training step under one schedule."""

    img_size: int
    num_passes: int
    batch_size: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def group_sizes(self) -> GroupSizes:
        """The schedule."""
        return make_group_sizes((self.img_size // STRIDE) ** 2, self.num_passes)

    def attentions(self) -> dict[str, Attend]:
        """The ways to attend, by name."""
        visibility = Visibility.of_group_sizes(self.group_sizes, self.device)
        ways: dict[str, Attend] = {}
        if self.device.type == "cuda":
            ways["FlexAttention"] = sparse_attention(visibility)
        ways[REFERENCE] = dense_attention(visibility)
        ways["no mask"] = scaled_dot_product_attention
        return ways

    def attention_step(self, attend: Attend) -> Callable[[], None]:
        """Forward and backward of attention alone, as a function to time."""
        num_rows = 2 * sum(self.group_sizes)
        shape = (self.batch_size, num_rows, 3, self.num_heads, self.head_dim)
        qkv = torch.randn(shape, dtype=self.dtype, device=self.device)  # (B, T, 3, H, C)
        # Strided as in a block.
        q, k, v = (x.requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind(0))  # (B, H, T, C)
        upstream = torch.randn_like(q)

        def step() -> None:
            torch.autograd.grad(attend(q, k, v), (q, k, v), upstream)

        return step

    def block_step(self, attend: Attend) -> Callable[[], None]:
        """Forward and backward of a block, as a function to time."""
        dim = self.num_heads * self.head_dim
        block = Block(dim, self.num_heads, mlp_ratio=4.0, proj_dropout=0.1)
        block = block.apply(init_weights).to(self.device)
        num_rows = 2 * sum(self.group_sizes)
        x = torch.randn(self.batch_size, num_rows, dim, device=self.device, requires_grad=True)
        upstream = torch.randn_like(x)
        inputs = (x, *block.parameters())
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != x.dtype)

        def step() -> None:
            with autocast:
                output = block(x, attend)
            torch.autograd.grad(output, inputs, upstream)

        return step


def visible_share(group_sizes: GroupSizes) -> float:
    """The share of all pairs of rows that see each other."""
    mask = Visibility.of_group_sizes(group_sizes, torch.device("cpu")).dense_mask()
    return mask.float().mean().item()


def median_seconds(
    steps: dict[str, Callable[[], None]], repetitions: int, runs: int
) -> dict[str, float]:
    """The median time of each function; a round times so many runs of every one in turn.

    The library's timer runs a function twice before its clock starts, which compiles what is to be
    compiled, and waits for the device.
    """
    timers = {
        name: Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        for name, step in steps.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(runs).median)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(case: Case, repetitions: int) -> None:
    """Time a case and print its lines."""
    ways = case.attentions()
    share = visible_share(case.group_sizes)
    for what, make_step in (("attention", case.attention_step), ("block", case.block_step)):
        steps = {name: make_step(way) for name, way in ways.items()}
        seconds = median_seconds(steps, repetitions, RUNS[case.device.type])
        row = (
            f"{case.img_size:4d} px  {case.num_passes:4d} passes  batch {case.batch_size:2d}  "
            f"{share:4.0%} seen  {what:9s}"
        )
        for name, value in seconds.items():
            row += f"  {name} {1e3 * value:9.3f} ms ({value / seconds[REFERENCE]:.2f}x)"
        print(row, flush=True)


def hardware(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def run(config: BenchmarkConfig) -> None:
    """Time all cases and print a table."""
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    on_cpu = device.type == "cpu"
    dtype = config.dtype or ("float32" if on_cpu else "bfloat16")
    repetitions = config.repetitions or (3 if on_cpu else 20)
    print(
        f"{hardware(device)}; torch {torch.__version__}; {dtype}, {config.num_heads} heads of "
        f"{config.head_dim}; forward + backward, median of {repetitions}; ratio to the {REFERENCE}"
    )
    img_sizes = config.img_size or ((256,) if on_cpu else tuple(NUM_PASSES))
    for img_size in img_sizes:
        for num_passes in NUM_PASSES[img_size]:
            report(
                Case(
                    img_size=img_size,
                    num_passes=num_passes,
                    batch_size=config.batch_size or (1 if on_cpu else PUBLISHED_BATCH[img_size]),
                    num_heads=config.num_heads,
                    head_dim=config.head_dim,
                    dtype=DTYPES[dtype],
                    device=device,
                ),
                repetitions,
            )


def main() -> None:
    """The command."""
    config = cli.parse(BenchmarkConfig, "Time the attention of training.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
