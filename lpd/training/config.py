"""The settings of a training."""

import dataclasses
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lpd.errors import InputError
from lpd.evaluation.features.names import INCEPTION
from lpd.launcher import world_size
from lpd.models.presets import (
    STRIDE,
    TEXT_WIDTH,
    preset_conditioning,
    preset_shape,
)
from lpd.options import Flat, flatten
from lpd.orders.mixture import RANDOM_NAME, OrderMixOptions
from lpd.orders.registry import LOCALITY_NAME, find_order, free_order_names
from lpd.randomness import check_seed
from lpd.sampling.config import SamplingConfig
from lpd.texts.config import TextEncoderOptions
from lpd.training.lr_schedule import LR_SCHEDULES, LRSchedule
from lpd.training.memory import Workload, memory_of
from lpd.training.parallelize import STRATEGIES


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """What is measured on held-out images while a training goes on."""

    val_cached_path: Path | None = None
    """Code cache of held-out images (main_cache.py --split val); nothing is measured without."""
    eval_freq: int = 5
    """Epochs between measurements: on held-out codes, sample grids and online evaluations."""
    val_images: int = 1000
    """How many images are measured, spread evenly over the cache."""
    val_orders: tuple[str, ...] = (RANDOM_NAME, LOCALITY_NAME)
    """Orders whose loss is measured, beside the loss that is trained on."""
    val_steps: tuple[int, ...] = ()
    """Numbers of passes to measure them in; by default a quarter, an eighth and a sixteenth of the
    number of codes."""

    def __post_init__(self) -> None:
        for name in ("eval_freq", "val_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for order in self.val_orders:
            if find_order(order).has_own_passes:
                raise InputError(
                    f"val_orders {order} has passes of its own; choose from "
                    f"{', '.join(free_order_names())}"
                )


@dataclass(frozen=True, kw_only=True)
class OnlineOptions:
    """What is generated while a training goes on, every --eval_freq epochs and at the end."""

    sample_grid: int = 0
    """Images of fixed seeds in a picture in samples/; needs --vqgan_path."""
    online_eval: bool = False
    """Evaluate the weights as main_eval.py does; needs --vqgan_path."""
    num_images: int = 5000
    """Of an online evaluation: images. FID falls with their number."""
    eval_bsz: int = 64
    """Of an online evaluation: images generated at a time, per process."""
    generation_steps: int | None = None
    """Of sample grids and online evaluations: passes, in the locality-aware order; by default 20,
    and 64 of 4096 codes."""
    sampling: Annotated[SamplingConfig, Flat] = dataclasses.field(default_factory=SamplingConfig)
    reference: Path | None = None
    """Of an online evaluation: what images are compared with, an .npz of statistics or an image
    folder (its train/)."""
    feature_extractor: str = INCEPTION
    """Of an online evaluation: inception; a backbone of timm's, as timm:NAME or timm:NAME=FILE; or
    a classifier's folder."""
    classifier: str | None = None
    """Of an online evaluation: what tells the classes of images for their accuracy, a folder or
    timm:NAME; by default the extractor, where its classes are the model's."""
    inception_path: Path | None = None
    """Inception's weight file; by default where torch-fidelity keeps it."""

    def __post_init__(self) -> None:
        for name in ("num_images", "eval_bsz", "generation_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.sample_grid < 0:
            raise InputError(f"sample_grid must not be negative, got {self.sample_grid}")


CHANGEABLE = frozenset(
    {
        *("lr", "min_lr", "lr_schedule", "warmup_epochs", "lr_decay_start_epoch", "epochs"),
        *("weight_decay", "grad_clip", "proj_dropout", "label_drop_prob", "ema_decay", "bf16"),
        *("order_mix", "proximity_threshold", "repulsion_threshold", "group_sizes_list"),
    }
)
"""What --allow_change may name: what the data's order and the weights' shapes do not depend on."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an LPD transformer on cached codes."""

    cached_path: Path
    """The code cache, made by main_cache.py (or a published one)."""
    output_dir: Path
    """Checkpoints, logs and the final model; a training found here goes on."""
    model: str = "lpd_l"
    """Preset: lpd_l, lpd_xl, lpd_xxl or lpd_tiny; for captions lpd_t2i_l, lpd_t2i_xl or
    lpd_t2i_tiny."""
    img_size: int = 256
    """Image side in pixels; must be the cache's."""
    vqgan_path: Path | None = None
    """The tokenizer the cache should have been made with; checked where it is given, and used for
    pictures."""
    class_num: int | None = None
    """How many classes the cache should have; checked where it is given."""
    use_cached: bool = True
    """Accepted for published command lines: training always reads cached codes."""
    resume: Path | None = None
    """Accepted for published command lines, where it is --output_dir; a training found there is
    always continued."""
    pretrained_ckpt: Path | None = None
    """Weights to start from; position embeddings of another resolution are interpolated, and a
    model of texts starts from one of classes too."""
    text: Annotated[TextEncoderOptions, Flat] = dataclasses.field(
        default_factory=TextEncoderOptions
    )
    epochs: int = 450
    """Passes over the data."""
    batch_size: int = 64
    """Images per process that are computed at a time."""
    accumulation_steps: int = 1
    """Batches whose gradients make up a step; the global batch is so many times larger."""
    lr: float | None = None
    """Peak learning rate; by default blr x global batch / 256."""
    blr: float = 1e-4
    """Base learning rate, for a global batch of 256."""
    min_lr: float = 1e-5
    """Learning rate at the end."""
    lr_schedule: str = "constant+cosine"
    """constant+cosine, cosine or constant, after the warm-up."""
    warmup_epochs: float = 50
    """Epochs of linear warm-up."""
    lr_decay_start_epoch: float = 400
    """Epoch at which the cosine of constant+cosine begins."""
    weight_decay: float = 0.02
    """Weight decay of tensors with two or more dimensions."""
    grad_clip: float = 3.0
    """Largest gradient norm."""
    proj_dropout: float = 0.1
    """Dropout after the attention's projection and in the MLP."""
    label_drop_prob: float = 0.1
    """How often the class or text is dropped, for classifier-free guidance."""
    random_flip: bool = True
    """Mirror half of the images; not for images that mean something else mirrored, or whose
    captions tell left from right."""
    orders: Annotated[OrderMixOptions, Flat] = dataclasses.field(default_factory=OrderMixOptions)
    group_sizes_list: Path | None = None
    """JSON list of group-size schedules to draw from; by default the published ones."""
    bf16: bool = False
    """Autocast to bfloat16; weights stay float32."""
    parallel: Annotated[
        str,
        tyro.conf.arg(
            help="How processes share a training: ddp keeps a whole copy in each, fsdp a share "
            "(FSDP2)."
        ),
    ] = "ddp"
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    checkpoint_every: int = 1
    """With grad_checkpointing: of every so many blocks, one is recomputed."""
    chunked_loss: bool = False
    """Compute the logits some tokens at a time, to save memory."""
    compile: bool = False
    """Compile the blocks (torch.compile)."""
    ema_decay: float | None = None
    """Keep the exponential moving average of the weights too, with this decay; it goes to
    model_ema beside model."""
    max_bad_steps: int = 10
    """Steps whose gradient is not finite are skipped; after so many in a row the training stops."""
    save_last_freq: int = 5
    """Epochs between checkpoints."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept: an older one serves if the newest is damaged."""
    save_intermediate_freq: int = 25
    """Epochs between checkpoints that are kept for good."""
    allow_change: str = ""
    """Settings, such as lr,epochs, that may differ from those the training was begun with; it goes
    on with the new ones, and the log says so."""
    validation: Annotated[ValidationOptions, Flat] = dataclasses.field(
        default_factory=ValidationOptions
    )
    online: Annotated[OnlineOptions, Flat] = dataclasses.field(default_factory=OnlineOptions)
    log_freq: int = 20
    """Steps between log entries."""
    wandb: bool = False
    """Send what TensorBoard gets to Weights & Biases too (pip install wandb; WANDB_PROJECT and its
    other variables apply)."""
    seed: int = 1
    """Everything random follows from it."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default CUDA where there is one."""

    def __post_init__(self) -> None:
        preset_shape(self.model)
        for name in (
            "epochs",
            "batch_size",
            "accumulation_steps",
            "checkpoint_every",
            "max_bad_steps",
            "save_last_freq",
            "keep_last",
            "save_intermediate_freq",
            "log_freq",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_epochs", "min_lr", "weight_decay", "lr_decay_start_epoch"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be finite and not negative, got {value}")
        for name in ("lr", "blr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and above 0, got {value}")
        if self.lr_schedule not in LR_SCHEDULES:
            raise InputError(
                f"unknown lr_schedule {self.lr_schedule!r}: choose from {', '.join(LR_SCHEDULES)}"
            )
        if self.parallel not in STRATEGIES:
            raise InputError(
                f"unknown parallel {self.parallel!r}: choose from {', '.join(STRATEGIES)}"
            )
        if (self.online.online_eval or self.online.sample_grid) and self.vqgan_path is None:
            raise InputError(
                "online_eval and sample_grid make images: name the tokenizer with --vqgan_path"
            )
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise InputError("wandb is not installed: pip install wandb, or leave out --wandb")
        if not self.use_cached:
            raise InputError("training reads cached codes; make them with main_cache.py")
        if self.resume is not None and self.resume != self.output_dir:
            raise InputError(
                f"resume {self.resume} is not output_dir {self.output_dir}: a training goes on in "
                "its own folder; give that one as --output_dir"
            )
        if self.warmup_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs:g} are more than epochs {self.epochs}"
            )
        if self.lr_schedule == "constant+cosine" and self.lr_decay_start_epoch >= self.epochs:
            raise InputError(
                f"lr_decay_start_epoch {self.lr_decay_start_epoch:g} is not before the end, epoch "
                f"{self.epochs}; choose another, or --lr_schedule cosine"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        unknown = set(self.allowed_changes) - CHANGEABLE
        if unknown:
            raise InputError(
                f"allow_change {self.allow_change!r}: {', '.join(sorted(unknown))} cannot change; "
                f"choose from {', '.join(sorted(CHANGEABLE))}"
            )
        if not 0 <= self.label_drop_prob <= 1:
            raise InputError(f"label_drop_prob must be in [0, 1], got {self.label_drop_prob}")
        check_seed(self.seed)

    def resolved(self) -> dict[str, Any]:
        """All settings, with those that follow from others and from the number of processes.

        ``memory_gib`` is what a process will need of its GPU by :mod:`lpd.training.memory`. The
        cache has not been opened: it is for the published tokenizer's codes and ImageNet's classes.
        """
        global_batch_size = self.batch_size * self.accumulation_steps * world_size()
        return {
            **flatten(self),
            "lr": self.peak_lr(global_batch_size),
            "global_batch_size": global_batch_size,
            "memory_gib": memory_of(self.workload()).in_gib(),
        }

    def workload(self) -> Workload:
        """What a process computes, for codes of the published tokenizer, and ImageNet's classes or
        texts of the usual width and length."""
        depth, dim, num_heads = preset_shape(self.model)
        has_texts = preset_conditioning(self.model) == "text"
        return Workload(
            depth=depth,
            dim=dim,
            num_heads=num_heads,
            text_width=TEXT_WIDTH if has_texts else 0,
            text_length=self.text.text_length if has_texts else 0,
            num_positions=max(1, self.img_size // STRIDE) ** 2,
            batch_size=self.batch_size,
            bf16=self.bf16,
            dropout=self.proj_dropout > 0,
            recompute_every=self.recompute_every,
            chunked_loss=self.chunked_loss,
            average=self.ema_decay is not None,
            sharded=self.parallel == "fsdp",
            num_processes=world_size(),
        )

    @property
    def recompute_every(self) -> int:
        """Of every so many blocks one is recomputed in the backward pass; 0 for none."""
        return self.checkpoint_every if self.grad_checkpointing else 0

    @property
    def allowed_changes(self) -> tuple[str, ...]:
        """The settings that may differ from the recorded ones."""
        return tuple(self.allow_change.replace(",", " ").split())

    def peak_lr(self, global_batch_size: int) -> float:
        """The learning rate after the warm-up."""
        return self.blr * global_batch_size / 256 if self.lr is None else self.lr

    def schedule(self, steps_per_epoch: int, global_batch_size: int) -> LRSchedule:
        """The learning-rate schedule in steps."""
        return LRSchedule(
            kind=self.lr_schedule,
            lr=self.peak_lr(global_batch_size),
            min_lr=self.min_lr,
            warmup_steps=round(self.warmup_epochs * steps_per_epoch),
            decay_start=round(self.lr_decay_start_epoch * steps_per_epoch),
            total_steps=self.epochs * steps_per_epoch,
        )
