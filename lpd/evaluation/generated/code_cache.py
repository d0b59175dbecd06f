"""The codes of a setting's images as a code cache, so that what measures the codes of real images
can measure these, such as the plan loss.

n images, N codes each in raster order.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from lpd.data.code_cache import UNREADABLE, CacheIndex, CacheWriter
from lpd.errors import InputError
from lpd.evaluation.generated.chunks import Chunk, find_chunks, missing_ranges
from lpd.evaluation.measures.records import SETTINGS_NAME
from lpd.files import printable, read_json
from lpd.models.lpd import LPDConfig
from lpd.progress import progress
from lpd.weights import config_from_dict

_DIGITS = 12  # of a hash, in the names of images


@dataclass(frozen=True, kw_only=True)
class GeneratedCodes:
    """The codes of a setting's images."""

    codes: npt.NDArray[np.uint16]
    """(n, N)"""
    labels: npt.NDArray[np.int64]
    """(n,)"""
    num_classes: int
    image_size: int
    """Side of the images in pixels."""
    vocab_size: int
    tokenizer_sha256: str

    def index(self) -> CacheIndex:
        """The index of their cache. Classes go by their numbers, and images by the class and the
        place, with some of a hash of all codes: a cache of others has another index."""
        content = hashlib.sha256(self.labels.tobytes() + self.codes.tobytes()).hexdigest()[:_DIGITS]
        width = len(str(self.num_classes - 1))
        names = tuple(f"{label:0{width}d}" for label in range(self.num_classes))
        return CacheIndex(
            image_size=self.image_size,
            vocab_size=self.vocab_size,
            tokenizer_sha256=self.tokenizer_sha256,
            class_names=names,
            files=tuple(
                f"{names[label]}/{content}_{place:08d}"
                for place, label in enumerate(self.labels.tolist())
            ),
            labels=self.labels,
        )


def read_generated(folder: Path) -> GeneratedCodes:
    """Read the codes of a setting from an evaluation's output.

    Args:
        folder: the setting's, in the output folder of main_eval.py.

    Raises:
        InputError: it is no such folder, or the output does not tell enough of the model; images
            are missing; a file is damaged, or of other images.
    """
    record = folder.parent / SETTINGS_NAME
    if not (record.is_file() and (folder / "chunks").is_dir()):
        raise InputError(
            f"{printable(folder)} is no setting's folder of main_eval.py, such as "
            f"outputs/eval/lpd_20: it has no chunks, or its parent no {SETTINGS_NAME}"
        )
    told = _Record.read(record)
    model, num_images = told.model, told.num_images
    found = find_chunks(folder / "chunks", num_images, told.chunk_size)
    gaps = missing_ranges(found, num_images)
    if gaps:
        raise InputError(
            f"{sum(map(len, gaps))} of the {num_images} images of {printable(folder)} are missing, "
            f"the first of them {gaps[0].start}: run the same main_eval.py command again to "
            "complete it"
        )
    codes, labels, identities = [], [], set()
    for images, path in progress(found.items(), desc="reading", unit="chunk"):
        chunk = Chunk.load(path)
        if chunk.codes.shape != (len(images), model.num_positions):
            raise InputError(
                f"{printable(path)} holds codes {list(chunk.codes.shape)}, expected "
                f"{[len(images), model.num_positions]}: it is not of this evaluation"
            )
        for name, values, bound in (
            ("codes", chunk.codes, model.vocab_size),
            ("labels", chunk.labels, model.num_classes),
        ):
            if values.min() < 0 or values.max() >= bound:
                raise InputError(f"{printable(path)} holds {name} that are not below {bound}")
        codes.append(chunk.codes)
        labels.append(chunk.labels)
        identities.add(chunk.identity)
    if len(identities) > 1:
        raise InputError(f"the chunks of {printable(folder)} are of different settings or weights")
    return GeneratedCodes(
        codes=np.concatenate(codes),
        labels=np.concatenate(labels),
        num_classes=model.num_classes,
        image_size=model.img_size,
        vocab_size=model.vocab_size,
        tokenizer_sha256=told.tokenizer_sha256,
    )


def write_code_cache(generated: GeneratedCodes, path: Path) -> None:
    """Write codes as a cache; what is interrupted goes on.

    Mirrored images have no codes: nothing has generated them. Who asks the cache for them is told
    that there are none.

    Args:
        generated: the codes.
        path: the cache's folder.

    Raises:
        InputError: it holds another cache.
    """
    writer = CacheWriter(path, generated.index())
    writer.check()
    missing = writer.missing_shards()
    writer.write_index()
    for shard in missing:
        rows = writer.shard_rows(shard)
        plain = generated.codes[rows.start : rows.stop]  # (n, N)
        writer.write_shard(shard, np.stack([plain, np.full_like(plain, UNREADABLE)], axis=1))


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What an evaluation's record tells of all its settings."""

    num_images: int
    chunk_size: int
    """Most images of a chunk, for files whose names do not tell theirs."""
    tokenizer_sha256: str
    model: LPDConfig

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read it.

        Raises:
            InputError: it tells too little, or something else.
        """
        told, place = read_json(file), printable(file)
        needed = {"num_images": int, "chunk_size": int, "vqgan_path": str, "model_config": dict}
        for name, kind in needed.items():
            if not isinstance(told, dict) or type(told.get(name)) is not kind:
                raise InputError(
                    f"{place} does not tell {name}, as records of earlier versions: run the same "
                    "main_eval.py command again, which adds it"
                )
        model = config_from_dict(LPDConfig, told["model_config"], f"model_config in {place}")
        if model.conditioning != "class":
            raise InputError(
                f"the images of {printable(file.parent)} are of {model.conditioning}, not of "
                "classes, which a code cache has"
            )
        return cls(
            num_images=told["num_images"],
            chunk_size=told["chunk_size"],
            tokenizer_sha256=told["vqgan_path"],
            model=model,
        )
