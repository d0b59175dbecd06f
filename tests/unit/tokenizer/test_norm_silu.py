"""Normalisation and SiLU: the plain operators, and the Triton kernels on CPU tensors."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import lpd.tokenizer
from lpd.tokenizer.norm_silu import add_group_norm_silu, group_norm_silu

EPS = 1e-6
ONE_UNIT = 2.0**-7  # between neighbours in bfloat16, relative to the smaller


class Inputs(NamedTuple):
    x: Tensor
    shift: Tensor
    shortcut: Tensor
    weight: Tensor
    bias: Tensor


def make(
    shape: tuple[int, int, int, int], *, mean: float = 0, dtype: torch.dtype = torch.float32
) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape))

    def image() -> Tensor:
        image = torch.randn(shape, generator=generator) + mean
        return image.to(dtype).contiguous(memory_format=torch.channels_last)

    def per_channel() -> Tensor:
        return torch.randn(shape[1], generator=generator)

    return Inputs(image(), per_channel(), image(), per_channel(), per_channel())


def expected(total: Tensor, inputs: Inputs, num_groups: int, *, activate: bool) -> Tensor:
    """By the definition, group by group, in float64."""
    out = torch.empty(total.shape, dtype=torch.float64)
    for image, rows in zip(total.double(), out, strict=True):
        for group, result in zip(image.chunk(num_groups), rows.chunk(num_groups), strict=True):
            squared = ((group - group.mean()) ** 2).mean()
            result.copy_((group - group.mean()) / (squared + EPS).sqrt())
    out = out * inputs.weight.double()[:, None, None] + inputs.bias.double()[:, None, None]
    return out / (1 + (-out).exp()) if activate else out


def run(
    inputs: Inputs, shift: Tensor | None, num_groups: int, *, added: bool, activate: bool, by: str
) -> tuple[Tensor, Tensor]:
    """What is normalised, in float64 where it is not written, and the result in float32."""
    x, _, shortcut, weight, bias = inputs
    rest = (weight, bias, num_groups, EPS, activate, torch.float32)
    total = x.double() if shift is None else x.double() + shift.double()[:, None, None]
    if by == "kernels":
        from lpd.tokenizer.triton_kernels import launch

        written, normed = launch(x, shift, shortcut if added else None, *rest)
    elif added:
        written, normed = add_group_norm_silu(x, shift, shortcut, *rest)
    else:
        return total, group_norm_silu(x, shift, *rest)
    if not added:
        return total, normed
    error = (written.double() - (total + shortcut.double())).abs()
    unit = ONE_UNIT if x.dtype == torch.bfloat16 else 2.0**-22
    assert (error <= unit * (x.double().abs() + shortcut.double().abs() + 4)).all()
    assert written.dtype == x.dtype
    return written, normed


# Several groups in a block and several blocks; a size that is no power of two; a group wider than
# a block; one pixel; more groups than channels in a block.
SHAPES = {
    "blocks": ((2, 64, 7, 5), 8),
    "odd": ((2, 12, 6, 7), 4),
    "odd and large": ((1, 120, 3, 3), 3),
    "wide": ((1, 128, 3, 5), 2),
    "pixel": ((3, 8, 1, 1), 4),
    "single": ((1, 40, 9, 4), 40),
}


@pytest.mark.parametrize("by", ["twin", "kernels"])
@pytest.mark.parametrize(("shape", "num_groups"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
def test_it_is_group_normalisation(shape, num_groups, added, shifted, by) -> None:
    inputs = make(shape)
    shift = inputs.shift if shifted else None
    for activate in (True, False):
        total, normed = run(inputs, shift, num_groups, added=added, activate=activate, by=by)
        torch.testing.assert_close(
            normed.double(),
            expected(total, inputs, num_groups, activate=activate),
            atol=2e-5,  # where a group holds one value, its deviation is what float32 left of it
            rtol=1e-5,
        )
        assert normed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("by", ["twin", "kernels"])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
def test_many_tiles_with_a_mean_that_is_large(
    added: bool, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lpd.tokenizer import triton_kernels

    # 99 pixels in blocks of 4, 5 of them to a tile; 6 tiles, of which the last is one block less.
    monkeypatch.setattr(triton_kernels, "_ELEMENTS", 64)
    monkeypatch.setattr(triton_kernels, "_CHANNELS", 16)
    monkeypatch.setattr(triton_kernels, "_MAX_TILES", 6)
    inputs = make((1, 24, 11, 9), mean=500)
    # A slope makes tiles differ by many deviations: they must be merged, not averaged.
    slope = torch.linspace(-50, 50, 99).view(11, 9)
    inputs = inputs._replace(x=inputs.x + slope)
    total, normed = run(inputs, inputs.shift, 6, added=added, activate=False, by=by)
    # 1000 +- 50 is held to 3e-5; the deviation is about 30.
    torch.testing.assert_close(
        normed.double(), expected(total, inputs, 6, activate=False), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("by", ["twin", "kernels"])
def test_bfloat16_is_read_and_rounded_at_the_ends_only(by: str) -> None:
    inputs = make((2, 16, 4, 4), dtype=torch.bfloat16)
    for added in (False, True):
        total, normed = run(inputs, inputs.shift, 4, added=added, activate=True, by=by)
        torch.testing.assert_close(  # in float32: of the rounded sum where that is written
            normed.double(), expected(total, inputs, 4, activate=True), atol=1e-5, rtol=1e-5
        )


def test_channels_may_come_outermost() -> None:
    x, shift, shortcut, weight, bias = make((2, 8, 3, 5))
    rest = (weight, bias, 4, EPS, True, torch.bfloat16)
    innermost = (
        *add_group_norm_silu(x, shift, shortcut, *rest),
        group_norm_silu(x, shift, *rest),
    )
    x, shortcut = x.contiguous(), shortcut.contiguous()
    outermost = (
        *add_group_norm_silu(x, shift, shortcut, *rest),
        group_norm_silu(x, shift, *rest),
    )
    for one, other in zip(innermost, outermost, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=ONE_UNIT)
        assert other.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_operators_are_declared_as_they_are(shifted: bool) -> None:
    x, shift, shortcut, weight, bias = make((2, 8, 3, 5))
    rest = (weight, bias, 4, EPS, True, torch.bfloat16)
    checks = ("test_schema", "test_faketensor")
    first = (x, shift if shifted else None)
    torch.library.opcheck(group_norm_silu, (*first, *rest), test_utils=checks)
    torch.library.opcheck(add_group_norm_silu, (*first, shortcut, *rest), test_utils=checks)


def test_triton_is_imported_by_the_kernels_alone() -> None:
    """And these by nobody who is merely imported: machines without triton decode, too."""
    for file in Path(lpd.tokenizer.__file__).parent.glob("*.py"):
        imported = set()
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        needs = imported & {"triton", "triton.language", "lpd.tokenizer.triton_kernels"}
        assert bool(needs) == (file.name == "triton_kernels.py"), file


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lpd.tokenizer import triton_kernels

for kernel, flags in (
    (triton_kernels._tile_statistics, {"HAS_SHIFT": True, "HAS_SHORTCUT": True}),
    (triton_kernels._normalise, {"HAS_SHIFT": True, "ACTIVATE": True, "PADDED_TILES": 128}),
):
    constants = {"GROUP_SIZE": 4, "PADDED_SIZE": 4, "BLOCK_GROUPS": 8, "BLOCK_PIXELS": 128}
    constants |= {"ITERATIONS": 4, **flags}
    image, parameter = "*bf16", "*fp32"
    types = {"x_ptr": image, "shortcut_ptr": image, "sum_ptr": image, "out_ptr": image}
    types |= {"num_pixels": "i32", "num_channels": "i32", "eps": "fp32"}
    types |= dict.fromkeys(["shift_ptr", "weight_ptr", "bias_ptr", "statistics_ptr"], parameter)
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    # As at a launch: pointers and sizes are multiples of 16.
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in constants and n != "eps"
    }
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert len(compiled.asm["cubin"]) > 0
    print(compiled.asm["ptx"].count("global.v4.b32"))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # A block of 128 pixels x 32 channels is 32 bfloat16 to a thread: four loads of 16 bytes for
    # each of two images and four stores; four loads and four stores in the other kernel.
    reads_and_writes = [int(line) for line in done.stdout.split()]
    assert reads_and_writes[0] >= 12
    assert reads_and_writes[1] >= 8
