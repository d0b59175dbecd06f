"""The decoder prepared for generation against the network's own."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lpd.tokenizer import vq_tokenizer
from lpd.tokenizer.fast_decoder import FastDecoder, Stream
from lpd.tokenizer.vq_tokenizer import PixelDecoder, VQTokenizer, to_pixels
from lpd.tokenizer.vqgan import VQGAN, AttnBlock, ResBlock, VQGANConfig
from scripts.benchmark.launches import ATTENTION, count_operators

CPU = torch.device("cpu")
GRID = (6, 9)


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    """A network with every kind of layer the published one has, none of which passes unnoticed."""
    torch.manual_seed(0)
    config = VQGANConfig(
        ch=16,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        z_channels=8,
        codebook_size=50,
        codebook_embed_dim=4,
        norm_groups=4,
    )
    vqgan = VQGAN(config)
    for module in vqgan.modules():
        if isinstance(module, nn.GroupNorm):  # 1 and 0 at first
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return vqgan.eval().requires_grad_(False)


@pytest.fixture
def tokenizer(vqgan: VQGAN) -> VQTokenizer:
    return VQTokenizer(copy.deepcopy(vqgan), sha256="0" * 64, device=CPU)


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return torch.randint(50, (3, 54), generator=torch.Generator().manual_seed(1))


def test_float32_pixels_are_those_of_the_network_with_gradients(
    vqgan: VQGAN, tokenizer: VQTokenizer, codes: Tensor
) -> None:
    vqgan = copy.deepcopy(vqgan).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.enable_grad():  # nothing is computed in the place of something else
        images = vqgan.decode(codes, GRID)
        vectors = vqgan.pre_quant(images)
    expected = ((images.clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8)
    assert len(expected.unique()) > 100
    assert torch.equal(tokenizer.decode(codes, GRID), images)
    assert torch.equal(tokenizer.pixel_decoder()(codes, GRID), expected)
    with torch.inference_mode():
        assert torch.equal(vqgan.pre_quant(images), vectors)


# An image's largest layer has 54 x 4 x 4 pixels of 32 channels, 2 bytes each: 55,296 bytes.
@pytest.mark.parametrize(("limit", "sizes"), [(1, [1, 1, 1]), (110_592, [2, 1]), (165_888, [3])])
def test_a_cpu_decodes_few_images_at_a_time(
    tokenizer: VQTokenizer,
    codes: Tensor,
    limit: int,
    sizes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = tokenizer.pixel_decoder(bf16=True)
    one_by_one = torch.cat([decode(row[None], GRID) for row in codes])
    network, decoded = FastDecoder.__call__, []
    monkeypatch.setattr(
        FastDecoder, "__call__", lambda self, z: decoded.append(len(z)) or network(self, z)
    )
    monkeypatch.setitem(vq_tokenizer._LAYER_BYTES, "cpu", limit)
    pixels = decode(codes, GRID)
    assert decoded == sizes
    assert (pixels.int() - one_by_one.int()).abs().max() <= 1  # rounded as the batch's size has it


@pytest.mark.parametrize("fused", [False, True])
def test_the_fast_decoder_is_the_networks_function(vqgan: VQGAN, fused: bool) -> None:
    z = torch.randn(2, 8, *GRID, generator=torch.Generator().manual_seed(2))
    expected = copy.deepcopy(vqgan.decoder).double()(z.double())
    actual = FastDecoder(vqgan.decoder, bf16=False, fused=fused)(z)
    # Largest value 2; the network's own float32 errs by 1e-6.
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=0)


def test_upsampling_sums_weights_and_not_pixels() -> None:
    # Whole numbers: every order of summation gives the same.
    config = VQGANConfig(ch=4, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, norm_groups=2)
    torch.manual_seed(0)
    decoder = VQGAN(config).decoder.requires_grad_(False)
    upsample = decoder.conv_blocks[0].upsample
    upsample.conv.weight.copy_(torch.randint(-9, 10, (4, 4, 3, 3)))
    upsample.conv.bias.copy_(torch.tensor([1.0, -2.0, 3.0, 5.0]))
    fast = FastDecoder(decoder, bf16=False, fused=False)
    (found,) = [block for block in fast._blocks if type(block).__name__ == "_Upsample"]
    for height, width in ((1, 1), (3, 2), (4, 5)):
        x = torch.randint(-9, 10, (2, 4, height, width)).float()
        repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        expected = F.conv2d(repeated, upsample.conv.weight, upsample.conv.bias, padding=1)
        assert torch.equal(found(Stream(x)).total(), expected)


def errors(pixels: Tensor, expected: Tensor) -> tuple[int, float, float]:
    """Largest and mean difference of pixels that are not all equal, and PSNR in dB."""
    difference = (pixels.int() - expected.int()).abs()
    squared = difference.double().square().mean().item()
    psnr = 10 * torch.tensor(255**2 / squared).log10().item()
    return int(difference.max()), difference.double().mean().item(), psnr


@pytest.mark.parametrize("fused", [False, True])
def test_the_last_layers_of_bfloat16_are_float32(vqgan: VQGAN, fused: bool) -> None:
    z = torch.randn(2, 8, *GRID, generator=torch.Generator().manual_seed(2)).bfloat16()
    images = FastDecoder(vqgan.decoder, bf16=True, fused=fused)(z)
    assert (images != images.bfloat16().float()).double().mean() > 0.9


def rounded_to_bfloat16(vqgan: VQGAN, codes: Tensor) -> Tensor:
    """The network's images if every layer computed exactly and rounded its weights and its output,
    but for the last normalisation and convolution. No bfloat16 arithmetic of a processor is in it.
    """
    decoder = copy.deepcopy(vqgan.decoder)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().float()

    for layer in decoder.modules():
        if layer in (decoder.norm_out, decoder.conv_out):
            continue
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(rounded(layer.weight))
            layer.bias.copy_(rounded(layer.bias))
        if isinstance(layer, nn.Conv2d | nn.GroupNorm | ResBlock | AttnBlock):
            layer.register_forward_hook(lambda _layer, _inputs, output: rounded(output))
    return decoder(rounded(vqgan.post_quant_conv(vqgan.quantize.vectors(codes, GRID))))


@pytest.mark.parametrize(("fused", "most"), [(False, 1.25), (True, 1.15)])
def test_bfloat16_errs_as_rounding_every_layer_does(
    vqgan: VQGAN, tokenizer: VQTokenizer, codes: Tensor, fused: bool, most: float
) -> None:
    """Random weights amplify what is rounded: 200 images of the quickstart's trained network differ
    by 1 step at most and 0.12 on average, under autocast by 2 and 0.17."""
    expected = tokenizer.pixel_decoder()(codes, GRID)
    model = errors(to_pixels(rounded_to_bfloat16(vqgan, codes)), expected)
    decode = tokenizer.pixel_decoder(bf16=True, fused=fused)
    largest, mean, psnr = errors(decode(codes, GRID), expected)
    # Not fused, additions and what SiLU reads are rounded too; and a processor without bfloat16
    # instructions rounds more often. One layer that rounds coarser than bfloat16 doubles it.
    assert 0 < mean < most * model[1]
    assert psnr > model[2] - 20 * math.log10(most)
    assert largest <= model[0] + 3
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    with torch.autocast("cpu", torch.bfloat16):
        autocast = errors(to_pixels(tokenizer.decode(codes, GRID)), expected)
    assert mean < (1.0 if fused else 1.1) * autocast[1]
    assert not fused or psnr > autocast[2]


def test_the_network_stays_as_it_was(tokenizer: VQTokenizer, codes: Tensor) -> None:
    expected = tokenizer.decode(codes, GRID)
    tokenizer.pixel_decoder(bf16=True)(codes, GRID)
    assert torch.equal(tokenizer.decode(codes, GRID), expected)
    assert {p.dtype for p in tokenizer._vqgan.parameters()} == {torch.float32}


@pytest.mark.parametrize("bf16", [False, True])
def test_calls_leave_nothing_behind(tokenizer: VQTokenizer, codes: Tensor, bf16: bool) -> None:
    decoder = tokenizer.pixel_decoder(bf16=bf16, fused=True)
    pixels = decoder(codes, GRID)
    decoder(codes.flip(1), (9, 6))
    assert torch.equal(decoder(codes, GRID), pixels)
    one_by_one = torch.cat([decoder(row[None], GRID) for row in codes])
    # An image is its own: rounding may depend on the batch's size, nothing else.
    assert (one_by_one.int() - pixels.int()).abs().max() <= 1


def test_kernels_on_cuda_need_triton(
    tokenizer: VQTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.device = torch.device("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"fused=True needs the package triton.*install it or"):
        tokenizer.pixel_decoder(fused=True)


# Clamp, add one, multiply, round, to uint8.
TO_PIXELS = {"clamp": 1, "add": 1, "mul": 1, "round": 1, "_to_copy": 1}
EXPECTED = {
    # 17 residual blocks, 4 of attention, 4 upsamplings.
    "as it is": {
        "embedding": 1,
        "convolution": 59,
        "native_group_norm": 39,
        "silu_": 35,
        "upsample_nearest2d": 4,
        ATTENTION: 4,
        "add_": 17,
        **TO_PIXELS,
        "add": 5,
    },
    # Ten matrix products, of which those of the unfused norms' layout copy their input and add
    # their bias by themselves. The last normalisation's input is made float32.
    "bf16": {
        "embedding": 1,
        "convolution": 40,
        "native_group_norm": 39,
        "silu_": 35,
        ATTENTION: 4,
        "addmm": 4,
        "bmm": 6,
        "clone": 9,
        "add_": 21,
        **TO_PIXELS,
        "add": 7,
        "_to_copy": 2,
    },
    # Additions are left only before upsampling: a bias and a shortcut, once without bias.
    "bf16 fused": {
        "embedding": 1,
        "convolution": 40,
        "group_norm_silu": 22,
        "add_group_norm_silu": 17,
        ATTENTION: 4,
        "addmm": 8,
        "bmm": 2,
        "clone": 2,
        "add_": 7,
        **TO_PIXELS,
        "add": 3,
    },
}


@pytest.mark.parametrize(("way", "total"), [("as it is", 168), ("bf16", 171), ("bf16 fused", 110)])
def test_launches_of_the_published_decoder(
    way: str, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without memory or values: a look at either, on the host, would be an error."""
    with FakeTensorMode():
        with torch.device("meta"):
            vqgan = VQGAN(VQGANConfig()).requires_grad_(False)
        for module in vqgan.modules():  # tensors of a torch without CUDA cannot be moved there
            for name, parameter in module.named_parameters(recurse=False):
                fake = torch.empty(parameter.shape, device="cuda")
                setattr(module, name, nn.Parameter(fake, requires_grad=False))
        decode = PixelDecoder(vqgan, bf16="bf16" in way, fused="fused" in way)
        codes = torch.empty(2, 256, dtype=torch.int64, device="cuda")
        counts = [count_operators(lambda: decode(codes, (16, 16))) for _ in range(2)]
        pixels = decode(codes, (16, 16))
        monkeypatch.setitem(vq_tokenizer._LAYER_BYTES, "cuda", 1)  # an image at a time
        again = count_operators(lambda: decode(codes, (16, 16)))
        assert again["convolution"] == 2 * EXPECTED[way]["convolution"]
        assert (again["cat"], EXPECTED[way].get("cat", 0)) == (1, 0)
        assert pixels.shape == (2, 3, 256, 256)
        assert (pixels.dtype, pixels.device.type) == (torch.uint8, "cuda")
    assert counts[0] == EXPECTED[way]
    assert counts[0].total() == total
    assert counts[0] == counts[1]
