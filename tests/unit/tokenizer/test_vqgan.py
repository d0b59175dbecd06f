import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.tokenizer import vqgan as vqgan_module
from lpd.tokenizer.vqgan import VQGAN, VectorQuantizer, VQGANConfig

CONFIG = VQGANConfig(
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    codebook_size=16,
    codebook_embed_dim=4,
    norm_groups=4,
)


@pytest.fixture
def vqgan() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ch": 0}, "ch must be at least 1, got 0"),
        ({"ch_mult": ()}, "ch_mult must be one or more positive integers"),
        ({"ch_mult": (1, 0)}, r"got \(1, 0\)"),
        ({"norm_groups": 3}, r"norm_groups \(3\) must divide .* ch \* 1 is 8"),
        ({"codebook_size": -5}, "codebook_size must be at least 1, got -5"),
    ],
)
def test_bad_shapes_are_refused(change, words) -> None:
    values = {**CONFIG.__dict__, **change}
    with pytest.raises(ValueError, match=words):
        VQGANConfig(**values)


@pytest.mark.parametrize(("ch_mult", "stride"), [((1,), 1), ((1, 1, 2), 4), ((1, 1, 2, 2, 4), 16)])
def test_every_level_after_the_first_halves_the_resolution(ch_mult, stride) -> None:
    config = VQGANConfig(**{**CONFIG.__dict__, "ch_mult": ch_mult})
    assert config.stride == stride
    images = torch.randn(1, 3, 2 * stride, 3 * stride)
    assert VQGAN(config).encode(images).shape == (1, 6)
    assert VQGAN(config).decode(torch.zeros(1, 6, dtype=torch.long), (2, 3)).shape == images.shape


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), rows_at_once=st.integers(1, 40))
def test_nearest_code_is_the_one_at_the_smallest_distance(seed: int, rows_at_once: int) -> None:
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(13, 4)
    z = torch.randn(2, 4, 3, 5) * torch.rand(2, 1, 3, 5) * 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vqgan_module, "_LOOKUP_ROWS", rows_at_once)
        codes = quantizer.nearest(z)
    vectors = F.normalize(z, dim=1).double().permute(0, 2, 3, 1).reshape(2, 15, 4)
    distances = torch.cdist(vectors, F.normalize(quantizer.embedding.weight, dim=1).double())
    chosen = distances.gather(2, codes[..., None])[..., 0]
    # Near-ties may fall either way in float32.
    assert (chosen <= distances.amin(2) + 1e-5).all()


def test_vectors_lie_in_raster_order() -> None:
    quantizer = VectorQuantizer(9, 4)
    codes = torch.tensor([[5, 0, 7, 1, 8, 2]])
    vectors = quantizer.vectors(codes, (2, 3))
    for place, code in enumerate(codes[0]):
        unit = F.normalize(quantizer.embedding.weight[code], dim=0)
        torch.testing.assert_close(vectors[0, :, place // 3, place % 3], unit)
    assert torch.equal(quantizer.nearest(vectors), codes)


def test_lengths_of_codes_and_vectors_do_not_matter(vqgan: VQGAN) -> None:
    images = torch.randn(2, 3, 8, 8)
    codes, decoded = vqgan.encode(images), vqgan.decode(vqgan.encode(images), (4, 4))
    with torch.no_grad():
        vqgan.quantize.embedding.weight.mul_(torch.rand(16, 1) * 7 + 0.1)
    assert torch.equal(vqgan.encode(images), codes)
    torch.testing.assert_close(vqgan.decode(codes, (4, 4)), decoded, atol=1e-5, rtol=0)


def test_training_forward_is_encode_then_decode(vqgan: VQGAN) -> None:
    images = torch.randn(2, 3, 8, 6)
    output = vqgan(images)
    assert torch.equal(output.codes, vqgan.encode(images))
    torch.testing.assert_close(
        output.reconstruction, vqgan.decode(output.codes, (4, 3)), atol=1e-5, rtol=0
    )


def test_gradient_passes_straight_through_the_quantizer() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4)
    z = torch.randn(1, 4, 2, 2, requires_grad=True)
    gradient = torch.randn(1, 4, 2, 2)
    (through,) = torch.autograd.grad(quantizer(z).vectors, z, gradient)
    (of_unit,) = torch.autograd.grad(F.normalize(z, dim=1), z, gradient)
    torch.testing.assert_close(through, of_unit)


def test_each_loss_moves_its_own_side() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4)
    z = torch.randn(1, 4, 3, 3, requires_grad=True)
    losses = quantizer(z).losses
    assert losses.codebook.item() == pytest.approx(losses.commitment.item())
    inputs = (z, quantizer.embedding.weight)
    z_grad, code_grad = torch.autograd.grad(losses.codebook, inputs, allow_unused=True)
    assert z_grad is None
    assert code_grad is not None
    z_grad, code_grad = torch.autograd.grad(losses.commitment, inputs, allow_unused=True)
    assert z_grad is not None
    assert code_grad is None


@pytest.mark.slow
def test_it_learns_to_reconstruct(vqgan: VQGAN) -> None:
    torch.manual_seed(1)
    images = F.interpolate(torch.rand(4, 3, 2, 2) * 2 - 1, scale_factor=4.0)  # (4, 3, 8, 8)
    optimizer = torch.optim.Adam(vqgan.parameters(), lr=5e-3)
    errors = []
    for _ in range(80):
        output = vqgan(images)
        error = F.mse_loss(output.reconstruction, images)
        optimizer.zero_grad()
        (error + output.losses.codebook + 0.25 * output.losses.commitment).backward()
        optimizer.step()
        errors.append(error.item())
    # Without learning it would stay above the images' variance, about 0.3.
    assert errors[-1] < 0.15 * errors[0]
