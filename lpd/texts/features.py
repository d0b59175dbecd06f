"""The features of a code cache's captions: from files that were made once, or computed as needed.

A feature cache is a folder inside the code cache, ``features/NAME``, whose name tells the encoder,
the layer and the length: caches of several lie side by side. ``meta.json`` comes first, then the
shards ``features_NNNNN.safetensors``, each of the captions of 8192 images, as the code cache's are.

n_i tokens of a text, E width of the encoder's hidden states.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lpd.data import code_cache
from lpd.data.captions import Captions
from lpd.data.code_cache import CodeCache
from lpd.data.open_files import open_files_allowed
from lpd.errors import InputError
from lpd.files import printable, read_json
from lpd.provenance import Origin, digest, missing
from lpd.texts.encoders import TextEncoder
from lpd.texts.identity import EncoderIdentity
from lpd.texts.shards import DamagedShardError, Shard

FORMAT_VERSION = 1
FOLDER = "features"
META_NAME = "meta.json"
_LOOKED_AT = 1000  # images whose captions tell about how many are cut: all would take minutes
_FEW_OPEN = 16  # files, where the system lets a process have hardly any
_NAME = "text_encoder"  # in meta.json; no difference between caches


class CaptionFeatures(Protocol):
    """The features of a code cache's captions."""

    @property
    def identity(self) -> EncoderIdentity:
        """The encoder."""

    @property
    def max_length(self) -> int:
        """The most rows that a text has."""

    @property
    def told(self) -> str:
        """Where they come from, in a few words."""

    def get(self, rows: npt.NDArray[np.int64], which: npt.NDArray[np.int64]) -> list[Tensor]:
        """The features of captions.

        Args:
            rows: (B,) of which images.
            which: (B,) which of each one's captions.

        Returns:
            (n_i, E) bfloat16 in host memory for each; n_i is 0 for a blank caption.

        Raises:
            InputError: a file is damaged.
        """


class OnlineFeatures:
    """Computes features as they are asked for."""

    def __init__(self, cache: CodeCache, encoder: TextEncoder) -> None:
        """Args:
            cache: whose captions are encoded.
            encoder: encodes them.

        Raises:
            InputError: the cache has no captions.
        """
        self._captions = captions_of(cache)
        self._encoder = encoder

    @property
    def identity(self) -> EncoderIdentity:
        """The encoder."""
        return self._encoder.identity

    @property
    def max_length(self) -> int:
        """The most rows that a text has."""
        return self._encoder.max_length

    @property
    def told(self) -> str:
        """See :attr:`CaptionFeatures.told`."""
        told = f"encoded as needed on {self._encoder.device.type}"
        num_images = len(self._captions)
        count = min(num_images, _LOOKED_AT)
        rows = np.arange(count) * num_images // count
        texts = [text for row in rows.tolist() for text in self._captions[row]]
        num_cut = self._encoder.num_cut(texts)
        if not num_cut:
            return told
        of = "" if count == num_images else " that were looked at"
        return (
            f"{told} ({num_cut} of {len(texts)} captions{of} have more than {self.max_length} "
            "tokens and are cut; --text_length gives them more)"
        )

    def get(self, rows: npt.NDArray[np.int64], which: npt.NDArray[np.int64]) -> list[Tensor]:
        """See :meth:`CaptionFeatures.get`."""
        wanted = zip(rows.tolist(), which.tolist(), strict=True)
        return self._encoder.encode([self._captions[row][place] for row, place in wanted])


class FeatureCache:
    """Features in files, read through memory maps that each process opens when it needs them."""

    def __init__(self, cache: CodeCache, path: Path) -> None:
        """Args:
            cache: whose captions they are of.
            path: the feature cache's folder.

        Raises:
            InputError: it is of other captions, incomplete or damaged.
        """
        captions = captions_of(cache)
        self.path = path
        meta = _read_meta(path)
        self.identity = _identity(meta)
        self.max_length: int = meta["max_length"]
        origin = feature_origin(captions, self.identity, self.max_length)
        check_meta(origin, path)
        self._num_images = len(captions)
        self._files = shard_files(path, self._num_images)
        lacking = missing(self._files)
        if lacking:
            raise InputError(
                f"the feature cache {path} is incomplete ({lacking[0].name} is missing); run the "
                "same main_cache.py command again to complete it"
            )
        self._shards: dict[int, Shard] = {}
        self._allowed: int | None = None  # files that this process may have open

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be sent to other processes as a copy of all that it maps.
        return {**self.__dict__, "_shards": {}, "_allowed": None}

    @property
    def told(self) -> str:
        """See :attr:`CaptionFeatures.told`."""
        return f"features from {printable(self.path)}"

    def get(self, rows: npt.NDArray[np.int64], which: npt.NDArray[np.int64]) -> list[Tensor]:
        """See :meth:`CaptionFeatures.get`."""
        features = []
        for row, place in zip(rows.tolist(), which.tolist(), strict=True):
            shard, image = divmod(row, code_cache.SHARD_IMAGES)
            file = self._files[shard]
            try:
                features.append(self._open(shard).get(image, place))
            except DamagedShardError as error:
                raise InputError(
                    f"{file} is damaged ({error}); remove it and run the same main_cache.py "
                    "command again"
                ) from error
        return features

    def _most_open(self) -> int:
        """All files, where the system lets a process have as many open: to open one anew takes ten
        times as long as to read a text."""
        if self._allowed is None:
            self._allowed = max(_FEW_OPEN, open_files_allowed(len(self._files)))
        return self._allowed

    def _open(self, shard: int) -> Shard:
        opened = self._shards.get(shard)
        if opened is not None:
            return opened
        opened = Shard(self._files[shard], self.identity.width)
        start = shard * code_cache.SHARD_IMAGES
        num_images = min(code_cache.SHARD_IMAGES, self._num_images - start)
        if opened.num_images != num_images:
            raise DamagedShardError(f"it is of {opened.num_images} images, expected {num_images}")
        while len(self._shards) >= self._most_open():
            self._shards.pop(next(iter(self._shards)), None)
        self._shards[shard] = opened
        return opened


def open_features(
    cache: CodeCache,
    encoder: EncoderIdentity | str | None = None,
    *,
    max_length: int | None = None,
) -> FeatureCache:
    """Open the features of a code cache's captions.

    Args:
        cache: the code cache.
        encoder: the encoder's identity, or the name it had when the features were made; None for
            the only one there is.
        max_length: the most rows of a text; None for the only one there is.

    Raises:
        InputError: there are none of that kind, or of several; they are of other captions,
            incomplete or damaged.
    """
    captions_of(cache)
    found = {
        file.parent: _read_meta(file.parent)
        for file in sorted((cache.path / FOLDER).glob(f"*/{META_NAME}"))
    }
    wanted = [
        path
        for path, meta in found.items()
        if max_length in (None, meta["max_length"])
        and (encoder is None or encoder == _identity(meta) or encoder == meta[_NAME])
    ]
    if len(wanted) == 1:
        return FeatureCache(cache, wanted[0])
    asked = "any text encoder" if encoder is None else str(encoder)
    if max_length is not None:
        asked += f" with up to {max_length} tokens"
    there = "; ".join(
        f"{_identity(found[path])} with up to {found[path]['max_length']} tokens"
        for path in (wanted or found)
    )
    if wanted:
        raise InputError(
            f"the code cache {cache.path} has features of several encoders or lengths for {asked} "
            f"({there}); name one with --text_encoder and --text_length"
        )
    raise InputError(
        f"the code cache {cache.path} has no features of {asked} (what it has: "
        f"{there or 'none'}); add them with main_cache.py --text_encoder and --text_length"
    )


def captions_of(cache: CodeCache) -> Captions:
    """The captions of a code cache.

    Raises:
        InputError: it has none: its images have classes.
    """
    if cache.captions is None:
        raise InputError(
            f"the code cache {cache.path} has classes and no captions, so there is nothing for a "
            "text encoder; make a cache with main_cache.py --captions"
        )
    return cache.captions


def feature_folder(cache: CodeCache, identity: EncoderIdentity, max_length: int) -> Path:
    """Where the features of an encoder are, whatever it is called."""
    name = digest([identity.sha256, identity.layer, max_length])[:16]
    return cache.path / FOLDER / name


def feature_origin(captions: Captions, identity: EncoderIdentity, max_length: int) -> Origin:
    """What features are made of."""
    return Origin(
        values={
            "format_version": FORMAT_VERSION,
            "text_encoder_sha256": identity.sha256,
            "layer": identity.layer,
            "width": identity.width,
            "max_length": max_length,
            "num_images": len(captions),
            "captions_sha256": captions.sha256,
        }
    )


def feature_meta(origin: Origin, identity: EncoderIdentity) -> dict[str, Any]:
    """The content of ``meta.json``."""
    return {_NAME: identity.name, **origin.plain()}


def check_meta(origin: Origin, path: Path) -> bool:
    """Check that the features in a folder, if there are any, are made of the same.

    Returns:
        Whether there is anything.

    Raises:
        InputError: they are of something else, such as other captions.
    """
    file = path / META_NAME
    if not file.is_file():
        return False
    meta = read_json(file)
    if isinstance(meta, dict):
        meta.pop(_NAME, None)
    origin.check(meta, place=path, remedy=f"remove {path} to make the features anew")
    return True


def shard_files(path: Path, num_images: int) -> list[Path]:
    """The files of a feature cache."""
    count = -(-num_images // code_cache.SHARD_IMAGES)
    return [path / f"features_{shard:05d}.safetensors" for shard in range(count)]


def _read_meta(path: Path) -> dict[str, Any]:
    meta = read_json(path / META_NAME)
    texts = (_NAME, "text_encoder_sha256")
    numbers = ("layer", "width", "max_length")
    if (
        not isinstance(meta, dict)
        or not all(isinstance(meta.get(name), str) for name in texts)
        or not all(type(meta.get(name)) is int for name in numbers)
    ):
        raise InputError(
            f"{path / META_NAME} is not of a feature cache; remove {printable(path)} and run "
            "main_cache.py again"
        )
    return meta


def _identity(meta: dict[str, Any]) -> EncoderIdentity:
    return EncoderIdentity(
        name=meta[_NAME],
        sha256=meta["text_encoder_sha256"],
        layer=meta["layer"],
        width=meta["width"],
    )
