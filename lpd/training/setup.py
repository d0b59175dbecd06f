"""What a training is about, before there is a model: data, schedules, shape, identity."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from lpd import options
from lpd.data.code_cache import CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.files import read_json, sha256_of_file
from lpd.models.conditioning import make_conditioning
from lpd.models.lpd import LPDConfig
from lpd.orders.group_sizes import load_group_sizes_list, training_group_sizes
from lpd.pretrained import config_of_preset
from lpd.provenance import Origin
from lpd.training.batch import BatchSource
from lpd.training.config import TrainConfig
from lpd.weights import WEIGHTS_NAME, weights_file

TRAINING_NAME = "training.json"

# What may change while a training goes on: where things are, and how fast it gets on.
_FREE_SETTINGS = frozenset(
    {
        *("cached_path", "output_dir", "device", "batch_size", "pretrained_ckpt"),
        *("vqgan_path", "class_num", "use_cached", "resume"),
        *("save_last_freq", "save_intermediate_freq", "log_freq", "grad_checkpointing", "parallel"),
    }
)


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
        self.model_config = model_config(config, self.cache)
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
            batch_size=config.batch_size,
            label_drop_prob=config.label_drop_prob,
            random_flip=config.random_flip,
            seed=config.seed,
            world=world,
            null=make_conditioning(self.model_config).null,
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
    def origin(self) -> Origin:
        """What must stay the same for a training to go on as if never interrupted."""
        settings = {
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if name not in _FREE_SETTINGS
        }
        derived = {
            "group_sizes_list": [list(sizes) for sizes in self.schedules],
            "global_batch_size": self.source.global_batch_size,
            "num_images": len(self.cache.readable),
            "files_sha256": self.cache.files_sha256,
            "tokenizer_sha256": self.cache.tokenizer_sha256,
        }
        defaults = options.defaults(TrainConfig)
        return Origin(
            values=settings | derived,
            defaults={
                name: defaults[name]
                for name in settings.keys() - derived.keys()
                if name in defaults
            },
        )

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
        if before is None:
            return False
        self.check_origin(before["fingerprint"], file.parent)
        return self.world.broadcast((file.parent / WEIGHTS_NAME).is_file())

    def check_origin(self, recorded: dict[str, Any], place: Path) -> None:
        """Check that what was found on disk is of this training.

        Args:
            recorded: the origin written there.
            place: where it was found.

        Raises:
            InputError: it is of another; names every setting that differs, and ``place``.
        """
        self.origin.check(
            recorded, place=place, remedy="set it back, or choose another --output_dir"
        )


def model_config(config: TrainConfig, cache: CodeCache) -> LPDConfig:
    """The shape of the model that learns this cache.

    Raises:
        InputError: unknown preset, or a cache for another image size.
    """
    cache.check(image_size=config.img_size)
    if config.class_num not in (None, cache.num_classes):
        raise InputError(
            f"the code cache {cache.path} has {cache.num_classes} classes, not {config.class_num}"
        )
    side = math.isqrt(cache.num_positions)
    return config_of_preset(
        config.model,
        img_size=cache.image_size,
        stride=cache.image_size // side,
        vocab_size=cache.vocab_size,
        num_classes=cache.num_classes,
        proj_dropout=config.proj_dropout,
        tokenizer_sha256=cache.tokenizer_sha256,
    )
