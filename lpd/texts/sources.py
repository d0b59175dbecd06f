"""Where the features of a code cache's captions come from: its own files, or an encoder."""

import torch

from lpd.data.code_cache import CodeCache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.texts.config import TextEncoderOptions
from lpd.texts.encoders import TextEncoder
from lpd.texts.features import (
    CaptionFeatures,
    FeatureCache,
    OnlineFeatures,
    feature_folder,
    open_features,
)
from lpd.texts.identity import EncoderIdentity


class FeatureSource:
    """Gives the features of several caches by one encoder, such as of training and held-out
    images."""

    def __init__(self, options: TextEncoderOptions, world: World, device: torch.device) -> None:
        """Args:
            options: names the encoder; where it does not, caches have their features and the first
                one's are of the encoder that is meant.
            world: the run's processes; all of them call this and :meth:`of` together.
            device: where what no cache has is encoded.

        Raises:
            InputError: there is no such encoder, or its length or layer are given without it.
        """
        self._options, self._world, self._device = options, world, device
        self._encoder: TextEncoder | None = None
        self._is_needed = False
        self._identity: EncoderIdentity | None = None
        self._max_length: int | None = None
        if options.text_encoder is not None:
            self._encoder = load_encoder(options, world, device)
            self._identity, self._max_length = self._encoder.identity, self._encoder.max_length
        elif options != TextEncoderOptions():
            raise InputError(
                "text_length and text_layer are of a text encoder: name it with --text_encoder, or "
                "leave them out, where the code cache has features"
            )

    def of(self, cache: CodeCache) -> CaptionFeatures:
        """The features of a cache's captions, from its files where they are there.

        An encoder that no cache has needed so far is let go: it may be larger than what is trained,
        and is loaded again should a later cache need it.

        Raises:
            InputError: the cache has no captions, or no features and no encoder is named, or they
                are damaged or of another encoder than the first cache's.
        """
        if self._options.text_encoder is None:
            with self._world.together():
                features = open_features(cache, self._identity, max_length=self._max_length)
                self._identity, self._max_length = features.identity, features.max_length
            return features
        assert self._identity is not None
        assert self._max_length is not None
        stored = stored_features(cache, self._identity, self._max_length, self._world)
        if stored is not None:
            if not self._is_needed:
                self._encoder = None
            return stored
        self._is_needed = True
        self._encoder = self._encoder or load_encoder(self._options, self._world, self._device)
        return OnlineFeatures(cache, self._encoder)


def stored_features(
    cache: CodeCache, identity: EncoderIdentity, max_length: int, world: World
) -> FeatureCache | None:
    """The features that a cache has of an encoder; None where it has none.

    Args:
        cache: the code cache.
        identity: of the encoder.
        max_length: the most rows of a text.
        world: the run's processes, which call this together and come to the same result.

    Raises:
        InputError: they are of other captions, incomplete or damaged; raised on all processes.
    """
    folder = feature_folder(cache, identity, max_length)
    # Rank 0 looks: file systems show changes late to other machines, and where there are none all
    # load the encoder together.
    if not world.broadcast(folder.is_dir()):
        return None
    with world.together():
        return FeatureCache(cache, folder)


def load_encoder(options: TextEncoderOptions, world: World, device: torch.device) -> TextEncoder:
    """The text encoder that options name, by all processes together.

    Raises:
        InputError: none is named, or as :meth:`lpd.texts.encoders.TextEncoder.from_pretrained`.
    """
    if options.text_encoder is None:
        raise InputError("no text encoder is named: give one with --text_encoder")
    return TextEncoder.from_pretrained(
        options.text_encoder,
        device,
        max_length=options.text_length,
        layer=options.text_layer,
        world=world,
    )
