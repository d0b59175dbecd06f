"""The VQ decoder on a GPU: the kernels by themselves, and pixels against the CPU's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lpd.tokenizer.norm_silu import add_group_norm_silu, group_norm_silu
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
EPS = 1e-6
GRID = (8, 8)
# Rounding of the output relative to it, and of float32 on the way.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [
        ((1, 128, 256, 256), 32),  # the published decoder's largest and smallest images
        ((2, 512, 16, 16), 32),
        ((2, 256, 37, 21), 32),  # ends within a tile
        ((3, 24, 9, 11), 4),  # groups of 6, padded to 8
    ],
    ids=str,
)
def test_kernels_are_group_normalisation(
    shape: tuple[int, int, int, int], num_groups: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, shortcut = (
        (torch.randn(shape, device=DEVICE) + 3).to(dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    shift, weight, bias = (torch.randn(shape[1], device=DEVICE) for _ in range(3))
    rest = (weight, bias, num_groups, EPS, True, dtype)
    total, normed = add_group_norm_silu(x, shift, shortcut, *rest)
    exact = x.double() + shift.double()[:, None, None]
    torch.testing.assert_close(
        total.double(), exact + shortcut.double(), atol=1e-5, rtol=ROUNDING[dtype]
    )
    alone = group_norm_silu(x, shift, *rest)
    for result, value in ((normed, total.double()), (alone, exact)):
        expected = F.silu(F.group_norm(value, num_groups, weight.double(), bias.double(), EPS))
        torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=ROUNDING[dtype])
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(ch=64, codebook_size=50, num_res_blocks=1)
    return VQGAN(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return torch.randint(50, (3, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(vqgan: VQGAN, codes: Tensor) -> Tensor:
    tokenizer = VQTokenizer(copy.deepcopy(vqgan), sha256="0" * 64, device=torch.device("cpu"))
    return tokenizer.pixel_decoder()(codes, GRID)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_pixels_are_the_cpus(
    vqgan: VQGAN, codes: Tensor, expected: Tensor, bf16: bool, fused: bool
) -> None:
    tokenizer = VQTokenizer(copy.deepcopy(vqgan), sha256="0" * 64, device=DEVICE)
    pixels = tokenizer.pixel_decoder(bf16=bf16, fused=fused)(codes.to(DEVICE), GRID).cpu()
    difference = (pixels.int() - expected.int()).abs()
    squared = difference.double().square().mean().clamp(min=1e-9)
    psnr = (10 * (255**2 / squared).log10()).item()
    print(f"largest {difference.max()}, mean {difference.double().mean():.3f}, {psnr:.1f} dB")
    # With random weights bfloat16 errs by one step on average on a CPU, 43 dB. Convolutions of
    # float32 may take TF32, whose 10 bits are 8 times finer.
    assert psnr > (40 if bf16 else 50)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_graph_holds_it(vqgan: VQGAN, codes: Tensor, bf16: bool, fused: bool) -> None:
    decode = VQTokenizer(copy.deepcopy(vqgan), sha256="0" * 64, device=DEVICE).pixel_decoder(
        bf16=bf16, fused=fused
    )
    given = codes.to(DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        decode(given, GRID)  # compiles, and chooses algorithms
    torch.cuda.current_stream().wait_stream(side)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode(given, GRID)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pixels = decode(given, GRID)
    for changed in (given, given.flip(1)):
        fresh = decode(changed, GRID)
        given = given.copy_(changed)
        graph.replay()
        assert torch.equal(pixels, fresh)
