"""What a CUDA graph would capture, seen on fake CUDA tensors: on a machine without a GPU.

Fake tensors have no values, so a body that asks for one fails; a mode sees every operator, with the
device of everything it works on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpd.models.lpd import PRESETS, LPDConfig
from lpd.orders.group_sizes import GroupSizes, make_group_sizes
from lpd.sampling.config import SamplingConfig
from scripts.benchmark.launches import count_operators, decoding_launches, fake_decoding

PASSES: GroupSizes = (1, 2, 5, 8)
BF16, FLOAT32 = torch.bfloat16, torch.float32


def launches(
    config: LPDConfig,
    dtype: torch.dtype,
    backend: str,
    sizes: GroupSizes = PASSES,
    guided: bool = True,
) -> int:
    return decoding_launches(
        config,
        sizes,
        batch_size=2,
        guided=(guided,) * len(sizes),
        dtype=dtype,
        backend=backend,
    )


def deeper(config: LPDConfig, depth: int) -> LPDConfig:
    return LPDConfig(**{**vars(config), "depth": depth})


# LayerNorm, cast, QKV, cache write, attention of context and of query rows, joining them,
# projection, residual, LayerNorm, cast, fc1, GELU, fc2, residual. Float32 casts nothing.
@pytest.mark.parametrize(
    ("backend", "dtype", "expected"),
    [("eager", BF16, 15), ("eager", FLOAT32, 13), ("fused", BF16, 5), ("fused", FLOAT32, 5)],
)
def test_launches_of_a_block(
    tiny_config: LPDConfig, backend: str, dtype: torch.dtype, expected: int
) -> None:
    three = launches(deeper(tiny_config, 3), dtype, backend)
    two = launches(deeper(tiny_config, 2), dtype, backend)
    assert three - two == len(PASSES) * expected


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_texts_launch_nothing_more_in_a_pass(
    tiny_config: LPDConfig, text_config: LPDConfig, backend: str
) -> None:
    """What hides their padding is made once, and is an argument of attention."""
    five, four = (1, 2, 3, 4, 6), (1, 2, 5, 8)
    more = [
        launches(config, BF16, backend, sizes)
        for config in (text_config, tiny_config)
        for sizes in (five, four)
    ]
    assert more[0] - more[1] == more[2] - more[3]
    # Both halves' features and lengths joined, what is padding and what hides it, RMSNorm in up to
    # 6, two linear layers with GELU, positions, casts; without a class's look-up.
    assert 0 < more[1] - more[3] <= 18


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("has_null", [False, True])
@pytest.mark.parametrize("num_known", [0, 3])
@pytest.mark.parametrize("dtype", [BF16, FLOAT32], ids=str)
def test_the_body_of_texts_tells_the_device_the_same_every_time_and_asks_it_nothing(
    text_config: LPDConfig, backend: str, has_null: bool, num_known: int, dtype: torch.dtype
) -> None:
    with fake_decoding(
        text_config,
        (1, 5, 10 - num_known),
        batch_size=2,
        guided=(False, True, False),
        dtype=dtype,
        backend=backend,
        sampling=SamplingConfig(refine=0.4),
        has_null=has_null,
    ) as run:
        runs = []
        for _ in range(2):
            run()
            with Told() as told:
                run()
            runs.append(told.lines)
    assert runs[0] == runs[1]
    assert len(runs[0]) > 50


@pytest.mark.parametrize("conditioning", ["class", "text"])
def test_conditions_to_lead_away_from_launch_nothing_more(
    tiny_config: LPDConfig, text_config: LPDConfig, conditioning: str
) -> None:
    """They are there, where no condition has to be made."""
    config = {"class": tiny_config, "text": text_config}[conditioning]
    counts = []
    for has_null in (False, True):
        with fake_decoding(
            config, PASSES, batch_size=2, guided=(True,) * 4, dtype=BF16, has_null=has_null
        ) as run:
            counts.append(count_operators(run).total())
    assert counts[1] == counts[0] - 1


# Beside blocks: context rows of tokens (two look-ups, add, norm), query rows (look-up, add, norm),
# both joined; the last norm, cast, head, cast; guidance; softmax, its sum, the sum's running
# maximum, target, search, and the last possible token (6); the logits' sum, which is finite where
# they are; the codes' scatter: 26 in all. In the last block the context rows' attention is left
# out.
@pytest.mark.parametrize(
    ("backend", "guided", "expected"),
    [
        ("eager", True, 2 * 15 - 1 + 26),
        ("eager", False, 2 * 15 - 1 + 25),
        ("fused", True, 2 * 5 + 15),
        ("fused", False, 2 * 5 + 15),
    ],
)
def test_launches_of_a_pass(
    tiny_config: LPDConfig, backend: str, guided: bool, expected: int
) -> None:
    more = launches(tiny_config, BF16, backend, (1, 2, 3, 4, 6), guided)
    assert more - launches(tiny_config, BF16, backend, (1, 2, 5, 8), guided) == expected


def test_launches_of_a_published_generation() -> None:
    """LPD-L at 256 pixels in 20 passes, without the decoder: a rise here is a slower sampler."""
    depth, dim, num_heads = PRESETS["lpd_l"]
    config = LPDConfig(depth=depth, dim=dim, num_heads=num_heads)
    sizes = make_group_sizes(256, 20)
    assert launches(config, BF16, "eager", sizes) <= 7710
    assert launches(config, BF16, "fused", sizes) <= 2710


class Told(TorchDispatchMode):
    """Writes down what a device is told, and allows nothing that is elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        line = [str(func)]
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, torch.Tensor):
                assert each.device.type == "cuda", f"{func} on {each.device}"
                line.append(f"{each.dtype} {list(each.shape)} {list(each.stride())}")
            elif not isinstance(each, torch.device):
                line.append(repr(each))
        self.lines.append("; ".join(line))
        return result


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature_schedule="linear"),
        SamplingConfig(temperature_schedule="entropy"),
        SamplingConfig(refine=0.4, refine_steps=2),
        SamplingConfig(temperature_schedule="linear", refine=0.4),
    ],
    ids=str,
)
def test_the_body_with_options_tells_the_device_the_same_every_time(
    tiny_config: LPDConfig, backend: str, sampling: SamplingConfig
) -> None:
    with fake_decoding(
        tiny_config,
        (1, 5, 7),
        batch_size=2,
        guided=(True, True, True),
        dtype=BF16,
        backend=backend,
        sampling=sampling,
    ) as run:
        runs = []
        for _ in range(2):
            run()
            with Told() as told:
                run()
            runs.append(told.lines)
    assert runs[0] == runs[1]
    assert len(runs[0]) > 50


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingConfig(temperature=0.7), 1),  # the division, as ever
        (SamplingConfig(temperature_schedule="linear"), 1),
        # Softmax, entropy of each, their sum; reciprocal, theta, power, temperature, bound.
        (SamplingConfig(temperature_schedule="entropy"), 9),
    ],
    ids=str,
)
def test_launches_of_a_temperature(
    tiny_config: LPDConfig, sampling: SamplingConfig, expected: int
) -> None:
    def count(how: SamplingConfig) -> int:
        with fake_decoding(
            tiny_config, PASSES, batch_size=2, guided=(True,) * 4, dtype=FLOAT32, sampling=how
        ) as run:
            return count_operators(run).total()

    assert count(sampling) - count(SamplingConfig()) == expected * len(PASSES)


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("num_known", [0, 3])
@pytest.mark.parametrize("dtype", [BF16, FLOAT32], ids=str)
def test_the_body_tells_the_device_the_same_every_time_and_asks_it_nothing(
    tiny_config: LPDConfig, backend: str, num_known: int, dtype: torch.dtype
) -> None:
    with fake_decoding(
        tiny_config,
        (1, 5, 10 - num_known),
        batch_size=2,
        guided=(False, True, False),
        dtype=dtype,
        backend=backend,
    ) as run:
        runs = []
        for _ in range(2):
            run()  # the sampler's cache is there afterwards
            with Told() as told:
                run()
            runs.append(told.lines)
    assert runs[0] == runs[1]
    assert len(runs[0]) > 50


class AttentionKernels(TorchFunctionMode):
    """Whether cuDNN may attend, at each call of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.cudnn: list[bool] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
        return func(*args, **(kwargs or {}))


def test_no_attention_makes_a_plan_for_every_length(tiny_config: LPDConfig) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with (
        fake_decoding(tiny_config, PASSES, batch_size=2, guided=(True,) * 4, dtype=BF16) as run,
        AttentionKernels() as kernels,
    ):
        run()
    # Two in each pass and block, one in the last block.
    assert kernels.cudnn == [False] * 4 * (2 * tiny_config.depth - 1)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_fake_tensors_have_no_values_to_decide_by(tiny_config: LPDConfig) -> None:
    """The oracle is good for something: a body that reads a value fails."""
    with fake_decoding(tiny_config, PASSES, batch_size=2, guided=(True,) * 4, dtype=FLOAT32) as run:
        codes = run()
        with pytest.raises(Exception, match=r"data-dependent|DataDependent|_local_scalar_dense"):
            count_operators(lambda: bool(codes.sum() > 0))
