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
            world: the run's processes; all of them call this together.
            device: where what no cache has is encoded.

        Raises:
            InputError: there is no such encoder, or its length or layer are given without it.
        """
        self._encoder: TextEncoder | None = None
        self._identity: EncoderIdentity | None = None
        self._max_length: int | None = None
        if options.text_encoder is not None:
            self._encoder = TextEncoder.from_pretrained(
                options.text_encoder,
                device,
                max_length=options.text_length,
                layer=options.text_layer,
                world=world,
            )
            self._identity, self._max_length = self._encoder.identity, self._encoder.max_length
        elif options != TextEncoderOptions():
            raise InputError(
                "text_length and text_layer are of a text encoder: name it with --text_encoder, or "
                "leave them out, where the code cache has features"
            )

    def of(self, cache: CodeCache) -> CaptionFeatures:
        """The features of a cache's captions, from its files where they are there.

        Raises:
            InputError: the cache has no captions, or no features and no encoder is named, or they
                are damaged or of another encoder than the first cache's.
        """
        if self._encoder is None:
            features = open_features(cache, self._identity, max_length=self._max_length)
            self._identity, self._max_length = features.identity, features.max_length
            return features
        folder = feature_folder(cache, self._encoder.identity, self._encoder.max_length)
        if folder.is_dir():
            return FeatureCache(cache, folder)
        return OnlineFeatures(cache, self._encoder)
