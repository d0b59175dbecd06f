"""An image has the same bits in any batch."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lpd.tokenizer import vq_tokenizer
from lpd.tokenizer.image_threads import ImageThreads
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig

GRID = (8, 8)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_batches_and_threads_change_no_bit() -> None:
    """Convolutions that torch cuts otherwise for few images than for many."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 16, 3, padding=1).eval().requires_grad_(False)
    images = torch.randn(9, 16, 32, 32).to(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    expected = layer(images)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        each = ImageThreads()
        for batch in (1, 2, 7, 9):
            found = torch.cat([each.map(layer, part) for part in images.split(batch)])
            assert torch.equal(found, expected), (threads, batch)
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("layer_bytes", [1, 2**30])
def test_pixels_do_not_depend_on_their_batch(
    bf16: bool, layer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vq_tokenizer._LAYER_BYTES, "cpu", layer_bytes)
    config = VQGANConfig(
        ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=16, codebook_size=64, norm_groups=8
    )
    torch.manual_seed(0)
    tokenizer = VQTokenizer(VQGAN(config), sha256="", device=torch.device("cpu"))
    codes = torch.randint(64, (9, 64))
    pixels: list[Tensor] = []
    for threads, batch in ((1, 9), (2, 1), (2, 7), (3, 4)):
        torch.set_num_threads(threads)
        decode = tokenizer.pixel_decoder(bf16=bf16, same_bits=True)
        pixels.append(torch.cat([decode(part, GRID) for part in codes.split(batch)]))
    assert all(torch.equal(each, pixels[0]) for each in pixels)
    # And they are those of the decoder that makes no such promise, but for its last bits.
    difference = tokenizer.pixel_decoder(bf16=bf16)(codes, GRID).int() - pixels[0].int()
    assert difference.abs().max() <= 1
    assert len(pixels[0].unique()) > 50


def test_an_error_in_a_thread_is_the_callers() -> None:
    torch.set_num_threads(2)

    def fail(part: Tensor) -> Tensor:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ImageThreads().map(fail, torch.zeros(4, 1))
    assert torch.get_num_threads() == 2
