"""Large images in strips against the network on whole images."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lpd.tokenizer import strips, vq_tokenizer
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig

CPU = torch.device("cpu")
GRID = (5, 7)


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    """A network with every kind of layer the published one has, none of which passes unnoticed."""
    torch.manual_seed(0)
    vqgan = VQGAN(
        VQGANConfig(
            ch=8,
            ch_mult=(1, 2, 2),
            num_res_blocks=2,
            z_channels=8,
            codebook_size=50,
            codebook_embed_dim=4,
            norm_groups=4,
        )
    )
    for module in vqgan.modules():
        if isinstance(module, nn.GroupNorm):  # 1 and 0 at first
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return vqgan.eval().requires_grad_(False)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every image large, and strips of the fewest bytes: one row, or a few."""

    def set_bytes(strip_bytes: int) -> None:
        monkeypatch.setattr(strips, "_WHOLE_BYTES", 0)
        monkeypatch.setattr(strips, "_STRIP_BYTES", strip_bytes)

    return set_bytes


@pytest.mark.parametrize("strip_bytes", [1, 20_000, 1 << 30])
def test_strips_are_the_network(
    vqgan: VQGAN, narrow: Callable[[int], None], strip_bytes: int
) -> None:
    """In float64, where only rounding may differ: by much less than a border that is wrong."""
    narrow(strip_bytes)
    exact = copy.deepcopy(vqgan).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 20, 28, generator=generator).double() * 2 - 1
    codes = torch.randint(50, (2, 35), generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(
            strips.decode(exact, codes, GRID), exact.decode(codes, GRID), atol=1e-12, rtol=0
        )
        vectors = torch.cat([strips._encode(exact.encoder, image) for image in images.split(1)])
        torch.testing.assert_close(vectors, exact.encoder(images), atol=1e-12, rtol=0)
        assert torch.equal(strips.encode(exact, images), exact.encode(images))


def test_large_means_and_small_deviations_are_told_apart() -> None:
    norm = nn.GroupNorm(2, 4, eps=1e-6)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 1e4
    expected = nn.functional.silu(copy.deepcopy(norm).double()(x.double()))
    with torch.inference_mode():
        actual = strips._normalised_silu(norm, x)(x)
    # The input's own rounding is 5e-4 of its deviation.
    torch.testing.assert_close(actual.double(), expected, atol=5e-3, rtol=0)


def test_a_tokenizer_uses_them_for_large_images_alone(
    vqgan: VQGAN, narrow: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = VQTokenizer(copy.deepcopy(vqgan), sha256="0" * 64, device=CPU)
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(50, (3, 35), generator=generator)
    whole = tokenizer.decode(codes, GRID)
    pixels = tokenizer.pixel_decoder()(codes, GRID)
    assert not strips.are_needed(tokenizer.config, (20, 28))
    narrow(20_000)
    used: list[str] = []
    for name in ("encode", "decode"):
        made = getattr(strips, name)
        monkeypatch.setattr(
            strips, name, lambda *args, made=made, name=name: used.append(name) or made(*args)
        )
    torch.testing.assert_close(tokenizer.decode(codes, GRID), whole, atol=1e-5, rtol=0)
    assert (tokenizer.pixel_decoder()(codes, GRID).int() - pixels.int()).abs().max() <= 1
    tokenizer.encode(whole)
    assert used == ["decode", "decode", "encode"]
    # An image's codes and pixels do not depend on its batch.
    assert torch.equal(tokenizer.encode(whole[1:2]), tokenizer.encode(whole)[1:2])
    assert torch.equal(tokenizer.decode(codes[2:], GRID), tokenizer.decode(codes, GRID)[2:])
    used.clear()
    tokenizer.pixel_decoder(bf16=True)(codes, GRID)  # which holds half of the bytes
    assert not used


def test_published_images_are_whole_and_larger_ones_are_not() -> None:
    sizes = (256, 512, 720, 768, 1024)
    needed = [strips.are_needed(VQGANConfig(), (size, size)) for size in sizes]
    assert needed == [False, False, False, True, True]


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1, 1, 1]), (41_000, [2, 1]), (62_000, [3])])
def test_few_images_are_encoded_at_a_time(
    vqgan: VQGAN, limit: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = VQTokenizer(copy.deepcopy(vqgan), sha256="0" * 64, device=CPU)
    images = torch.rand(3, 3, 20, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    codes = tokenizer.encode(images)
    encode, encoded = VQGAN.encode, []
    monkeypatch.setattr(
        VQGAN, "encode", lambda self, part: encoded.append(len(part)) or encode(self, part)
    )
    # A layer has 20 x 16 pixels of 16 channels, 4 bytes each: 20,480 bytes.
    monkeypatch.setattr(vq_tokenizer, "_ENCODED_BYTES", limit)
    assert torch.equal(tokenizer.encode(images), codes)
    assert encoded == sizes


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_iter(made):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self._known:
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
        return made

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_two_layers_and_a_few_strips_are_in_memory(way: str, narrow: Callable[[int], None]) -> None:
    narrow(1 << 17)
    config = VQGANConfig(
        ch=16,
        ch_mult=(1, 1, 2),
        z_channels=8,
        codebook_size=50,
        codebook_embed_dim=4,
        norm_groups=4,
    )
    vqgan = VQGAN(config).requires_grad_(False)
    given = torch.zeros(1, 3, 160, 160) if way == "encode" else torch.zeros(1, 1600).long()

    def peak(module: Any) -> int:
        with torch.inference_mode(), LiveBytes() as live:
            getattr(module, way)(vqgan, given, *([] if way == "encode" else [(40, 40)]))
        return live.peak

    layer = strips.layer_bytes(config, (160, 160))
    assert layer == 4 * 16 * 160**2
    in_strips = peak(strips)
    assert 2 * layer < in_strips < 2 * layer + 6 * strips._STRIP_BYTES
    assert in_strips < 0.75 * peak(VQGAN)
