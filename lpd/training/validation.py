"""What a model in training makes of images that it has not seen."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from lpd.conditions import CacheConditions
from lpd.data.code_cache import CodeCache
from lpd.data.published_cache import open_cache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.likelihood import HeldOutCodes, spread_rows
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import GroupSizes, reduced_steps
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource, SweepOptions
from lpd.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Measures a model on held-out codes."""

    config: TrainConfig
    held_out: HeldOutCodes
    """The images."""
    parts: list[tuple[float, PlanSource, HeldOutCodes]]
    """Every schedule of the training, with its share of the images, in every order of its mix, with
    the order's weight: together the loss that is trained on, without what is dropped."""
    plans: list[PlanSource]
    """The plans whose loss is measured."""

    def measure(self, model: LPD, forward: nn.Module) -> dict[str, float]:
        """The loss per token, in nats, as ``loss``, and the loss per image of every plan with its
        standard error, as ``ORDER_PASSES`` and ``ORDER_PASSES_error``.

        All processes call this together.

        Args:
            model: the model.
            forward: what is called in its place: a strategy's module around it.
        """
        seed, bf16 = self.config.seed, self.config.bf16
        was_training = forward.training
        forward.eval()
        total = 0.0
        for weight, source, images in self.parts:
            losses = images.plan_loss(model, source, seed=seed, bf16=bf16, forward=forward)
            total += weight * losses.of_images.sum()
        metrics = {"loss": total / len(self.held_out.rows) / self.held_out.cache.num_positions}
        for source in self.plans:
            losses = self.held_out.plan_loss(model, source, seed=seed, bf16=bf16, forward=forward)
            name = f"{losses.order}_{len(losses.group_sizes)}"
            metrics[name] = losses.mean.value
            metrics[f"{name}_error"] = losses.mean.error
        forward.train(was_training)
        return metrics


def make_validation(
    config: TrainConfig,
    training: CodeCache,
    schedules: tuple[GroupSizes, ...],
    world: World,
    conditions_of: Callable[[CodeCache], CacheConditions],
) -> Validation | None:
    """What a training is to measure; None where it is given no held-out codes.

    Args:
        config: the training's settings.
        training: the codes that it learns.
        schedules: its group-size schedules.
        world: the run's processes.
        conditions_of: what the images of a cache are conditioned on.

    Raises:
        InputError: the held-out codes are of other images than the training's, or there are none,
            or a plan does not fit.
    """
    options = config.validation
    if options.val_cached_path is None:
        return None
    cache = open_cache(options.val_cached_path)
    cache.check(image_size=training.image_size, tokenizer_sha256=training.tokenizer_sha256)
    for name in ("vocab_size", "num_positions", "class_names"):
        if getattr(cache, name) != getattr(training, name):
            raise InputError(
                f"val_cached_path {cache.path} and the training's {training.path} differ in their "
                f"{name}: cache the held-out images with the same tokenizer, and in the same class "
                "folders"
            )
    if cache.files_sha256 == training.files_sha256:
        raise InputError(
            f"val_cached_path {cache.path} holds the images that are trained on; cache others with "
            "main_cache.py --split val"
        )
    side = round(cache.num_positions**0.5)
    grid, order = (side, side), OrderConfig(locality=config.orders.locality)
    rows = spread_rows(cache, options.val_images)
    held_out = functools.partial(
        HeldOutCodes,
        cache,
        world=world,
        batch_size=config.batch_size,
        condition=conditions_of(cache).held_out,
    )
    shares = [rows[number :: len(schedules)] for number in range(len(schedules))]
    return Validation(
        config=config,
        held_out=held_out(rows),
        parts=[
            (
                weight,
                PlanSource(order=replace(order, kind=kind), grid=grid, group_sizes=sizes),
                held_out(share),
            )
            for sizes, share in zip(schedules, shares, strict=True)
            if len(share)
            for kind, weight in config.orders.mix.shares.items()
        ],
        plans=SweepOptions.of(
            order=options.val_orders,
            generation_steps=options.val_steps or reduced_steps(cache.num_positions),
            locality=config.orders.locality,
        ).sources(grid),
    )
