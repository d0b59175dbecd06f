"""A CLIP (arXiv 2103.00020) of transformers: images and texts as vectors of one space.

B images or texts of S x S pixels, T tokens of a text at most, D dimensions of the space.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lpd.errors import InputError
from lpd.evaluation.features.float32 import full_float32
from lpd.files import printable, read_json, sha256_of_file
from lpd.texts.foreign import check_whole, loading, refusals_told
from lpd.weights import CONFIG_NAME, WEIGHTS_NAME

_MODEL_TYPE = "clip"
_PREPROCESSOR = "preprocessor_config.json"
# All that a CLIP's vectors depend on; those of a tokenizer where they are there.
_NEEDED = (CONFIG_NAME, WEIGHTS_NAME, _PREPROCESSOR)
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_TOKENIZER_FILES = (
    *(name for names in _VOCABULARIES for name in names),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
BLOCK_TEXTS = 64
"""Texts that go through the network together."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A frozen CLIP on a device."""

    model: Any
    image_processor: Any
    tokenizer: Any
    device: torch.device
    fingerprint: str
    """Equal for equal files of the folder it came from."""

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device) -> Self:
        """Load a CLIP as ``save_pretrained`` of transformers writes it; nothing is fetched, and
        nothing is unpickled.

        Raises:
            InputError: transformers is not installed, a file is missing or damaged, or it is no
                CLIP.
        """
        _check_files(folder)
        with refusals_told(functools.partial(_told, folder)):
            model, processor, tokenizer = _load(folder)
        return cls(
            model=model.to(device).eval().requires_grad_(False),
            image_processor=processor,
            tokenizer=tokenizer,
            device=device,
            fingerprint=_fingerprint(folder),
        )

    @property
    def max_tokens(self) -> int:
        """T."""
        return int(self.model.config.text_config.max_position_embeddings)

    def pixels(self, image: Image.Image) -> Tensor:
        """What the network sees of an RGB image: (3, S, S) float32, on the CPU."""
        return self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) from :meth:`pixels` -> (B, D) of length 1, on the device."""
        with full_float32():
            seen = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            return F.normalize(self.model.visual_projection(seen), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Texts, of which the first T tokens are read -> (B, D) of length 1."""
        embedded = []
        for start in range(0, len(texts), BLOCK_TEXTS):
            # All are of T tokens, so that a text's vector does not depend on those beside it.
            tokens = self.tokenizer(
                list(texts[start : start + BLOCK_TEXTS]),
                padding="max_length",
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(self.device)
            with full_float32():
                read = self.model.text_model(**tokens).pooler_output
                vectors = F.normalize(self.model.text_projection(read), dim=-1)
            embedded.append(vectors.cpu().numpy())
        return np.concatenate(embedded)  # (B, D)

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many texts have more than T tokens."""
        tokens = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(each) > self.max_tokens for each in tokens)


def _check_files(folder: Path) -> None:
    """Check that all files are there, since some of transformers' parts have defaults without.

    Raises:
        InputError: one is missing, or is of another kind of model.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not any(all((folder / name).is_file() for name in files) for files in _VOCABULARIES):
        missing.append(" + ".join(_VOCABULARIES[0]))
    if missing:
        raise InputError(
            f"{printable(folder)} is no CLIP: it has no {missing[0]}; give the folder of one as "
            f"transformers saves it, with its weights in {WEIGHTS_NAME}"
        )
    config = read_json(folder / CONFIG_NAME)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != _MODEL_TYPE:
        raise InputError(f"{printable(folder)} is no CLIP, but of model_type {kind!r}")


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            'a CLIP is read by transformers, which is missing: pip install -e ".[text]"'
        ) from error
    kind: Any = transformers.CLIPModel  # its types do not know of the report
    # Its threads would be lost in processes that are forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with loading():
        processor = transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    check_whole(report, folder)
    num_tokens, num_known = len(tokenizer), model.config.text_config.vocab_size
    if num_tokens > num_known:
        raise InputError(
            f"the tokenizer in {printable(folder)} has {num_tokens} tokens, its model knows "
            f"{num_known}: they do not belong together"
        )
    return model, processor, tokenizer


def _told(folder: Path, reason: str) -> str:
    return f"cannot load the CLIP in {printable(folder)} ({reason})"


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (*_NEEDED, *_TOKENIZER_FILES):
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_of_file(folder / name)}\n".encode())
    return digest.hexdigest()
