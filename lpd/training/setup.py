"""What a training is about, before there is a model: data, schedules, shape, identity."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpd import options
from lpd.conditions import CacheConditions, check_kind, conditions_of
from lpd.data.code_cache import CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import read_json, sha256_of_file
from lpd.models.lpd import LPDConfig
from lpd.models.presets import preset_conditioning
from lpd.orders.group_sizes import load_group_sizes_list, training_group_sizes
from lpd.orders.mixture import TrainingOrders, parse_order_mix
from lpd.orders.registry import LOCALITY_NAME
from lpd.pretrained import config_of_preset
from lpd.provenance import Origin
from lpd.texts.config import TextEncoderOptions
from lpd.texts.features import CaptionFeatures
from lpd.texts.sources import FeatureSource
from lpd.training.batch import BatchSource
from lpd.training.config import CHANGEABLE, OnlineOptions, TrainConfig, ValidationOptions
from lpd.training.online import check_online
from lpd.training.validation import make_validation
from lpd.weights import WEIGHTS_NAME, weights_file

TRAINING_NAME = "training.json"

# What may change while a training goes on: where things are, and how fast it gets on.
_FREE_SETTINGS = frozenset(
    {
        *("cached_path", "output_dir", "device", "pretrained_ckpt", "vqgan_path", "class_num"),
        *("text_encoder", "use_cached", "resume", "allow_change"),
        *("batch_size", "accumulation_steps", "parallel"),
        *("grad_checkpointing", "checkpoint_every", "chunked_loss", "compile", "max_bad_steps"),
        *("save_last_freq", "keep_last", "save_intermediate_freq", "log_freq", "wandb"),
        *options.flatten(ValidationOptions()),
        *options.flatten(OnlineOptions()),
    }
)
# What may be unknown: a record is older, or a file has been removed since.
_COMPARED_IF_KNOWN = ("pretrained_sha256", "cache_sha256")
_NO_WEIGHTS = "none"


class TrainingSetup:
    """A training's data and settings, checked against each other."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        """Open the cache and derive what follows from it; nothing is written.

        Raises:
            InputError: the cache, the preset or the schedules do not fit.
        """
        self.config = config
        self.world = world
        self.cache = open_cache(config.cached_path)
        check_kind(self.cache, preset_conditioning(config.model))
        self._features: FeatureSource | None = None
        features: CaptionFeatures | None = None
        if self.cache.captions is not None:
            self._features = FeatureSource(config.text, world, world.device)
            features = self._features.of(self.cache)
        elif config.text != TextEncoderOptions():
            raise InputError(
                f"text_encoder, text_length and text_layer are for captions, and the code cache "
                f"{config.cached_path} holds classes: leave them out"
            )
        self.model_config = model_config(config, self.cache, features)
        self.conditions = conditions_of(self.cache, self.model_config, features)
        if config.vqgan_path is not None:
            self.cache.check(tokenizer_sha256=sha256_of_file(weights_file(config.vqgan_path)))
        self.schedules = (
            training_group_sizes(self.cache.num_positions)
            if config.group_sizes_list is None
            else load_group_sizes_list(config.group_sizes_list, self.cache.num_positions)
        )
        self.source = BatchSource(
            self.cache,
            self.schedules,
            TrainingOrders(config.orders, self.model_config.grid, config.seed),
            batch_size=config.batch_size * config.accumulation_steps,
            label_drop_prob=config.label_drop_prob,
            random_flip=config.random_flip,
            seed=config.seed,
            world=world,
            conditions=self.conditions,
        )
        check_online(config, self.model_config, world)
        self.validation = make_validation(
            config, self.cache, self.schedules, world, self._held_out_conditions
        )
        self.lr_schedule = config.schedule(
            self.source.steps_per_epoch, self.source.global_batch_size
        )

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.config.output_dir / "checkpoints"

    @property
    def exported_model(self) -> Path:
        """Where the trained model goes."""
        return self.config.output_dir / "model"

    @property
    def exported_average(self) -> Path:
        """Where the running average of its weights goes."""
        return self.config.output_dir / "model_ema"

    @functools.cached_property
    def cache_sha256(self) -> str | None:
        """Of the codes and labels; all processes ask for it together."""
        return self.cache.content_sha256(self.world)

    @functools.cached_property
    def pretrained_sha256(self) -> str | None:
        """Of the weights to start from; None where they are not there (any more)."""
        path = self.config.pretrained_ckpt
        if path is None:
            return _NO_WEIGHTS
        try:
            return sha256_of_file(weights_file(path))
        except InputError:
            return None

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What must stay the same for a training to go on as if never interrupted."""
        settings = {
            name: value
            for name, value in options.flatten(self.config).items()
            if name not in _FREE_SETTINGS
        }
        derived = {
            "group_sizes_list": [list(sizes) for sizes in self.schedules],
            "global_batch_size": self.source.global_batch_size,
            "num_images": len(self.cache.readable),
            "files_sha256": self.cache.files_sha256,
            "tokenizer_sha256": self.cache.tokenizer_sha256,
            "cache_sha256": self.cache_sha256,
            "pretrained_sha256": self.pretrained_sha256,
        }
        return settings | derived | self.conditions.identity()

    def _held_out_conditions(self, cache: CodeCache) -> CacheConditions:
        check_kind(cache, self.model_config.conditioning)
        features = None if self._features is None else self._features.of(cache)
        return conditions_of(cache, self.model_config, features)

    def is_complete(self) -> bool:
        """Whether the trained model is there already.

        Raises:
            InputError: there is one of another training.
        """
        file = self.exported_model / TRAINING_NAME
        # Rank 0 looks for all: file systems show changes late to other machines.
        before = self.world.broadcast(
            read_json(file) if self.world.is_main and file.is_file() else None
        )
        if before is None or self.changes(before["fingerprint"], file.parent):
            return False
        return self.world.broadcast((file.parent / WEIGHTS_NAME).is_file())

    def changes(self, recorded: Any, place: Path) -> list[str]:
        """Check that what was found on disk is of this training.

        Args:
            recorded: the fingerprint written there.
            place: where it was found.

        Returns:
            What differs and may, by ``allow_change``: a phrase for each.

        Raises:
            InputError: it is of another; names every setting that differs, and ``place``.
        """
        remedy = "set it back, or choose another --output_dir"
        if not isinstance(recorded, dict):
            raise InputError(f"{place} does not say what it was made of; {remedy}")
        own = Origin(values=self.fingerprint).plain()
        defaults = options.defaults(TrainConfig)
        before = {name: defaults[name] for name in own if name in defaults} | recorded
        for name in _COMPARED_IF_KNOWN:
            if None in (own.get(name), before.get(name)):
                own.pop(name, None)
                before.pop(name, None)
        own, before = _effective(own), _effective(before)
        allowed = set(self.config.allowed_changes)
        unchangeable = CHANGEABLE & {*Origin(values=own).differing(before)} - allowed
        if unchangeable:
            remedy += f", or let it go on so with --allow_change {','.join(sorted(unchangeable))}"
        kept = {name: value for name, value in own.items() if name not in allowed}
        Origin(values=kept).check(
            {name: value for name, value in before.items() if name not in allowed},
            place=place,
            remedy=remedy,
        )
        return Origin(values=own).differences(before)


def _effective(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings of a fingerprint come to: two that come to the same are the same."""
    values = dict(fingerprint)
    base_lr = values.pop("blr")
    if values["lr"] is None:
        values["lr"] = base_lr * values["global_batch_size"] / 256
    if values["lr_schedule"] != "constant+cosine":
        del values["lr_decay_start_epoch"]
    if values["lr_schedule"] == "constant":
        del values["min_lr"]
    mix = parse_order_mix(values["order_mix"])
    values["order_mix"] = str(mix)
    if LOCALITY_NAME not in mix.shares:
        del values["proximity_threshold"], values["repulsion_threshold"]
    return values


def model_config(
    config: TrainConfig, cache: CodeCache, features: CaptionFeatures | None
) -> LPDConfig:
    """The shape of the model that learns this cache.

    Args:
        config: the training's settings.
        cache: the codes.
        features: what is made of the cache's captions, where it has any.

    Raises:
        InputError: unknown preset, or a cache for another image size.
    """
    cache.check(image_size=config.img_size)
    if config.class_num not in (None, cache.num_classes):
        raise InputError(
            f"the code cache {cache.path} has {cache.num_classes} classes, not {config.class_num}"
        )
    side = math.isqrt(cache.num_positions)
    conditioning: dict[str, Any] = {
        "num_classes": cache.num_classes,
        "class_names": cache.class_names,
    }
    if features is not None:
        conditioning = {
            "text_width": features.identity.width,
            "text_length": features.max_length,
            "text_encoder": features.identity.name,
            "text_encoder_sha256": features.identity.sha256,
            "text_layer": features.identity.layer,
        }
    return config_of_preset(
        config.model,
        img_size=cache.image_size,
        stride=cache.image_size // side,
        vocab_size=cache.vocab_size,
        proj_dropout=config.proj_dropout,
        tokenizer_sha256=cache.tokenizer_sha256,
        **conditioning,
    )
