"""A frozen VQ network: images to codes and back.

B images, H x W pixels, N = H/stride * W/stride codes in raster order, V codes in the codebook.
"""

import functools
import importlib.util
import math
import shutil
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lpd.errors import InputError
from lpd.files import atomic_path, sha256_of_file, write_json
from lpd.tokenizer import strips
from lpd.tokenizer.fast_decoder import FastDecoder
from lpd.tokenizer.image_threads import ImageThreads
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import (
    CONFIG_NAME,
    config_to_dict,
    find_config,
    load_state_dict_file,
    load_strictly,
    weight_files,
    weights_file,
)

TOKENIZER_FILES = ("*.safetensors", "*.pt", "*.pth")
"""What weights are called, where they are not ``model.safetensors``."""

# LlamaGen counts code usage in this buffer while it trains; nothing reads it afterwards.
_USAGE_BUFFER = "quantize.codebook_used"

# So few images are decoded at a time that no layer of them is larger, in bytes. On a CPU glibc asks
# the kernel anew for 32 MiB and more each time, a tenth of decoding; that is for the fast decoder
# and for threads that decode alone, as the network's last bits depend on the batch's size where
# several threads share it. On CUDA a batch of 256 would otherwise need some 30 GB.
_LAYER_BYTES = {"cpu": 31 * 2**20, "cuda": 2**30}

# So few images are encoded at a time that no layer of them is larger, in bytes: 64 images at 512
# pixels, and 16 at 1024.
_ENCODED_BYTES = 2**33

FLOAT32, PUBLISHED = "float32", "published"
"""How the decoder's numbers become pixels, see :func:`to_pixels`."""


class PixelDecoder:
    """Turns codes into pixels, for generation.

    Runs on the device alone: it reads nothing from the host's memory, waits for nothing, and what
    it launches depends on shapes only, so that a CUDA graph can hold it.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        *,
        bf16: bool,
        fused: bool,
        rounding: str = FLOAT32,
        same_bits: bool = False,
    ) -> None:
        """See :meth:`VQTokenizer.pixel_decoder`."""
        self._threads = ImageThreads() if same_bits else None
        # The published code decodes in the dtype of the passes, and rounds in it.
        self._rounding_dtype = torch.bfloat16 if bf16 and rounding == PUBLISHED else torch.float32
        codebook = vqgan.quantize.codebook()  # (V, E)
        self._vqgan, self._table, self._fast = vqgan, codebook, None
        if bf16 or fused:
            self._fast = FastDecoder(vqgan.decoder, bf16=bf16, fused=fused)
            # What is looked up is what the decoder's first convolution reads.
            table = vqgan.post_quant_conv(codebook.view(*codebook.shape, 1, 1)).flatten(1)
            self._table = table.to(torch.bfloat16 if bf16 else torch.float32)  # (V, z_channels)

    @torch.inference_mode()
    def __call__(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turn codes into pixels.

        Args:
            codes: (B, N) int64, in raster order.
            grid: (h, w) with h * w = N.

        Returns:
            (B, 3, H, W) uint8.
        """
        if self._threads is not None and codes.device.type == "cpu":
            return self._threads.map(functools.partial(self._decode_alone, grid=grid), codes)
        if self._fast is None and codes.device.type == "cpu":
            return self._decode(codes, grid)
        return self._decode_in_parts(codes, grid)

    @torch.inference_mode()  # which is a thread's own
    def _decode_alone(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        return self._decode_in_parts(codes, grid)

    def _decode_in_parts(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        layer_bytes = _LAYER_BYTES.get(codes.device.type)
        size = len(codes) if layer_bytes is None else self._images_at_a_time(grid, layer_bytes)
        if size >= len(codes):
            return self._decode(codes, grid)
        return torch.cat([self._decode(part, grid) for part in codes.split(size)])

    def _images_at_a_time(self, grid: tuple[int, int], layer_bytes: int) -> int:
        largest = strips.layer_bytes(self._vqgan.config, _pixels(self._vqgan.config, grid))
        return max(1, layer_bytes // (largest // 4 * self._table.element_size()))

    def _decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        if self._fast is None and _is_in_strips(self._vqgan, _pixels(self._vqgan.config, grid)):
            return to_pixels(strips.decode(self._vqgan, codes, grid), self._rounding_dtype)
        z = F.embedding(codes, self._table).transpose(1, 2).unflatten(2, grid)  # (B, ., h, w)
        if self._fast is not None:
            images = self._fast(z)
        else:
            images = self._vqgan.decoder(self._vqgan.post_quant_conv(z))
        return to_pixels(images, self._rounding_dtype)


class VQTokenizer:
    """A VQ network in eval mode, without gradients.

    Attributes:
        stride: pixels per code, along each side.
        vocab_size: V.
        sha256: of the weight file, in hexadecimal; caches keep it to know their tokenizer.
        device: where images and codes are expected and returned.
    """

    def __init__(
        self, vqgan: VQGAN, *, sha256: str, device: torch.device, file: Path | None = None
    ) -> None:
        self._vqgan = vqgan.to(device).eval().requires_grad_(False)
        if device.type == "cpu":  # where convolutions are a fifth faster with channels innermost
            self._vqgan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stride = vqgan.config.stride
        self.vocab_size = vqgan.config.codebook_size
        self.sha256 = sha256
        self.device = device
        self._file = file

    @classmethod
    def from_pretrained(cls, path: Path, device: torch.device) -> Self:
        """Load a tokenizer.

        Args:
            path: a ``.pt``, ``.pth`` or ``.safetensors`` file, or a folder with
                ``model.safetensors``. A ``config.json`` beside the weights gives the network's
                shape; without one it is the published VQ-16.
            device: where to compute.

        Raises:
            InputError: a file is missing, damaged, or does not fit the network.
        """
        file = weights_file(path)
        state = load_state_dict_file(file)
        state.pop(_USAGE_BUFFER, None)
        with torch.device("meta"):  # do not draw initial weights only to overwrite them
            vqgan = VQGAN(find_config(path, VQGANConfig) or VQGANConfig())
        vqgan.to_empty(device="cpu")
        load_strictly(vqgan, state, str(file))
        return cls(vqgan, sha256=sha256_of_file(file), device=device, file=file)

    def to(self, device: torch.device) -> Self:
        """The tokenizer on a device; its network is moved there, not copied."""
        return type(self)(self._vqgan, sha256=self.sha256, device=device, file=self._file)

    def save(self, folder: Path) -> None:
        """Copy its weight file into a folder, with its configuration.

        A copy, since a tokenizer is known by its file's SHA-256.

        Raises:
            InputError: it was not loaded from a file, that is another one by now, or the folder has
                weights of another name, which could be loaded in their place.
        """
        if self._file is None or not self._file.is_file():
            raise InputError(f"the tokenizer's file {self._file} is not there to be copied")
        there = weight_files(folder, TOKENIZER_FILES)
        others = [file for file in there if file.name != self._file.name]
        if others:
            raise InputError(
                f"{folder} holds the weights of another tokenizer, {others[0].name}: delete them, "
                "or save to another folder"
            )
        with atomic_path(folder / self._file.name) as temporary:
            shutil.copyfile(self._file, temporary)
            if sha256_of_file(temporary) != self.sha256:
                raise InputError(f"{self._file} has changed since the tokenizer was loaded from it")
            write_json(folder / CONFIG_NAME, config_to_dict(self.config))

    @property
    def codebook(self) -> Tensor:
        """(V, E) the codes' embeddings, unit vectors."""
        return self._vqgan.quantize.codebook()

    def num_positions(self, image_size: int) -> int:
        """N for square images of ``image_size`` pixels.

        Raises:
            InputError: the size is no multiple of the stride.
        """
        if image_size < 1 or image_size % self.stride:
            raise InputError(
                f"image size {image_size} is not a multiple of the tokenizer's stride "
                f"{self.stride}; choose one that is"
            )
        return (image_size // self.stride) ** 2

    def check_fits(self, *, vocab_size: int, stride: int, sha256: str | None = None) -> None:
        """Check that a model's codes are this tokenizer's.

        Args:
            vocab_size: the model's.
            stride: the model's pixels per code.
            sha256: of the weight file of the tokenizer the model was trained with, where known.

        Raises:
            InputError: they are not.
        """
        if (vocab_size, stride) != (self.vocab_size, self.stride):
            raise InputError(
                f"the tokenizer has {self.vocab_size} codes of {self.stride} x {self.stride} "
                f"pixels, the model expects {vocab_size} codes of {stride} x {stride}; load the "
                "tokenizer that the model was trained with"
            )
        if sha256 is not None and sha256 != self.sha256:
            raise InputError(
                "the model was trained with another tokenizer (its weights' SHA-256 begins with "
                f"{sha256[:12]}, not {self.sha256[:12]}); load that one, or, where it is the same "
                "network in another file, set tokenizer_sha256 in the model's config.json to null"
            )

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Turn images into codes.

        Args:
            images: (B, 3, H, W) float in [-1, 1]; H and W multiples of the stride. On a CPU large
                ones are computed in strips (:mod:`lpd.tokenizer.strips`).

        Returns:
            (B, N) int64.
        """
        pixels = (images.shape[2], images.shape[3])
        if _is_in_strips(self._vqgan, pixels):
            return strips.encode(self._vqgan, images)
        size = max(1, _ENCODED_BYTES // strips.layer_bytes(self.config, pixels))
        if size >= len(images):
            return self._vqgan.encode(images)
        return torch.cat([self._vqgan.encode(part) for part in images.split(size)])

    @torch.inference_mode()
    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Turn codes into images.

        Args:
            codes: (B, N) int64, in raster order.
            grid: (h, w) with h * w = N; None means a square.

        Returns:
            (B, 3, H, W) float, about [-1, 1], not clamped.

        Raises:
            InputError: N is not h * w, or not a square number where no grid is given.
        """
        num_positions = codes.shape[1]
        if grid is None:
            side = math.isqrt(num_positions)
            grid = (side, side)
        if grid[0] * grid[1] != num_positions:
            raise InputError(
                f"{num_positions} codes per image do not fill a grid of {grid[0]} x {grid[1]}; "
                "give the grid's height and width"
            )
        if _is_in_strips(self._vqgan, _pixels(self.config, grid)):
            return strips.decode(self._vqgan, codes, grid)
        return self._vqgan.decode(codes, grid)

    @torch.inference_mode()
    def pixel_decoder(
        self,
        *,
        bf16: bool = False,
        fused: bool = False,
        rounding: str = FLOAT32,
        same_bits: bool = False,
    ) -> PixelDecoder:
        """The decoder prepared for generation: (B, N) codes and their grid to (B, 3, H, W) uint8.

        Args:
            bf16: hold and compute it in bfloat16, with float32 where that is needed (see
                :mod:`lpd.tokenizer.fast_decoder`); this copies its weights. Without, and without
                ``fused``, the pixels are those of :meth:`decode`.
            fused: on CUDA, normalise by Triton kernels. No GPU has measured them yet, so they are
                off by default.
            rounding: how pixels are made: ``float32``, or ``published``, which with bf16 rounds as
                the published code does.
            same_bits: on a CPU, give an image the same pixels in any batch and with any number of
                threads (:mod:`lpd.tokenizer.image_threads`), though one alone has one thread then.

        Raises:
            InputError: ``fused`` on CUDA without triton, or there is no such rounding.
        """
        if rounding not in (FLOAT32, PUBLISHED):
            raise InputError(f"unknown rounding {rounding!r}: choose {FLOAT32} or {PUBLISHED}")
        if fused and self.device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise InputError(
                "fused=True needs the package triton, which is not installed; install it or leave "
                "fused out"
            )
        return PixelDecoder(
            self._vqgan, bf16=bf16, fused=fused, rounding=rounding, same_bits=same_bits
        )

    @property
    def config(self) -> VQGANConfig:
        """The network's shape."""
        return self._vqgan.config


def _pixels(config: VQGANConfig, grid: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a grid of codes."""
    return grid[0] * config.stride, grid[1] * config.stride


def _is_in_strips(vqgan: VQGAN, pixels: tuple[int, int]) -> bool:
    """Whether images of (H, W) pixels are computed in strips. On CUDA, where a large one fits and
    more launches cost, they are not."""
    on_cpu = vqgan.quantize.embedding.weight.device.type == "cpu"
    return on_cpu and strips.are_needed(vqgan.config, pixels)


def to_pixels(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Float images in [-1, 1] to uint8 pixels: clamp, (x + 1) / 2 * 255, round.

    Args:
        images: (B, 3, H, W) float.
        dtype: in which (x + 1) / 2 is computed. The published code has it in that of the decoder;
            in bfloat16 some pixels come out one step away.

    Returns:
        (B, 3, H, W) uint8.
    """
    # Halving is exact, so one product by 127.5 rounds as / 2 * 255 does.
    return ((images.to(dtype).clamp(-1, 1) + 1).float() * 127.5).round().to(torch.uint8)
