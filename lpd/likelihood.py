"""What a plan costs on real codes: the exact cross-entropy of decoding with it, without sampling.

Without guidance and at temperature 1, decoding an image in the passes of a plan draws from

    q(x | condition) = product over passes, product over their cells, of p(cell | earlier passes),

and -log q of real codes is one teacher-forced forward with the plan's order and visibility. Its
mean over images is the entropy of the data plus what the model and the plan lose, so that a
difference between two plans on the same images is a difference of losses, with an error far below
theirs. Decoding the same orders one code at a time makes no error but the model's, so what a plan
costs more than that is the price of decoding in parallel.

n images in all, B of them in a batch, N positions, S passes.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpd.data.code_cache import CodeCache
from lpd.distributed import World
from lpd.errors import InputError
from lpd.models.condition import Condition
from lpd.models.layers import Attend, RaggedAttend
from lpd.models.lpd import LPD
from lpd.models.visibility import Visibility, training_attention
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.request import PlanSource

# Of which the logits are made at a time.
_TOKENS_AT_A_TIME = 4096
# Whose orders are made at a time, to be hashed.
_ORDERS_AT_A_TIME = 1024

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PlanLoss:
    """The losses of images under the plans of one source."""

    order: str
    """The order's name."""
    group_sizes: GroupSizes
    """Tokens per pass."""
    by_pass: Float64Array
    """(n, S) nats of every image in every pass."""

    @property
    def of_images(self) -> Float64Array:
        """(n,) nats of every image."""
        return self.by_pass.sum(axis=1)

    @property
    def mean(self) -> "Estimate":
        """Nats per image."""
        return Estimate.of(self.of_images)

    @property
    def of_passes(self) -> list["Estimate"]:
        """Nats per image in every pass."""
        return [Estimate.of(column) for column in self.by_pass.T]

    @property
    def bits_per_token(self) -> float:
        """The mean in bits, per token."""
        return self.mean.value / sum(self.group_sizes) / math.log(2)

    def minus(self, other: "PlanLoss") -> "Estimate":
        """How much more nats an image costs than under another plan, image by image.

        Raises:
            InputError: the other is of another number of images.
        """
        if len(self.by_pass) != len(other.by_pass):
            raise InputError(
                f"losses of {len(self.by_pass)} and of {len(other.by_pass)} images do not compare"
            )
        return Estimate.of(self.of_images - other.of_images)

    def in_passes(self, group_sizes: GroupSizes) -> "PlanLoss":
        """The same losses, added up over the passes of a plan that joins some of these.

        Raises:
            InputError: a pass of the other plan ends within one of these.
        """
        ends, joined_ends = np.cumsum(self.group_sizes), np.cumsum(group_sizes)
        if ends[-1] != joined_ends[-1] or not np.isin(joined_ends, ends).all():
            raise InputError(
                f"{len(group_sizes)} passes do not join some of these {len(self.group_sizes)} each"
            )
        starts = np.searchsorted(ends, np.concatenate([[0], joined_ends[:-1]]), side="right")
        return PlanLoss(
            order=self.order,
            group_sizes=group_sizes,
            by_pass=np.add.reduceat(self.by_pass, starts, axis=1),
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over images."""

    value: float
    error: float
    """Its standard error; infinite for one image."""

    @property
    def known_error(self) -> float | None:
        """The error; None for one image, which tells of none."""
        return self.error if math.isfinite(self.error) else None

    @classmethod
    def of(cls, values: Float64Array) -> "Estimate":
        """The mean of (n,) values, n >= 1, whose sum is rounded once."""
        count = len(values)
        mean = math.fsum(values) / count
        if count == 1:
            return cls(value=mean, error=math.inf)
        variance = math.fsum((values - mean) ** 2) / (count - 1)
        return cls(value=mean, error=math.sqrt(variance / count))


def spread_rows(cache: CodeCache, num_images: int | None) -> npt.NDArray[np.int64]:
    """So many images of a cache, evenly spread over it; all for None, or where it has fewer. (n,)

    Raises:
        InputError: the cache has no codes.
    """
    rows = cache.readable
    if not len(rows):
        raise InputError(f"the code cache {cache.path} holds no codes")
    count = len(rows) if num_images is None else min(num_images, len(rows))
    return rows[np.arange(count) * len(rows) // count]


class HeldOutCodes:
    """Codes of real images, to measure plans on."""

    def __init__(
        self,
        cache: CodeCache,
        rows: npt.NDArray[np.int64],
        world: World,
        *,
        batch_size: int = 64,
        condition: Callable[[npt.NDArray[np.int64]], Condition] | None = None,
    ) -> None:
        """Args:
        cache: the codes; those of images that are not mirrored are taken.
        rows: (n,) the images, as rows of the cache; at least one.
        world: the run's processes, among which the images are shared.
        batch_size: B, per process.
        condition: what images of some (B,) rows of the cache are conditioned on, in host memory,
            with all rows that the model's conditioning has; by default their labels.
        """
        self.cache = cache
        self.rows = rows
        self._world = world
        self._batch_size = batch_size
        self._condition = condition or self._labels

    def plan_loss(
        self,
        model: LPD,
        source: PlanSource,
        *,
        seed: int,
        bf16: bool = False,
        forward: nn.Module | None = None,
        one_at_a_time: bool = False,
        tell: Callable[[int], object] = lambda num_images: None,
    ) -> PlanLoss:
        """The losses of all images; all processes call this together, and all get them.

        They take 8 bytes per image and pass: 102 MB for 50,000 images in 256 passes.

        Args:
            model: in evaluation mode.
            source: the plans; image i's depends on the seed and i alone.
            seed: the run's seed.
            bf16: whether to compute in bfloat16.
            forward: what is called in the model's place: a strategy's module around it.
            one_at_a_time: decode the same orders one code at a time.
            tell: called after every batch with how many images more are measured.
        """
        world = self._world
        group_sizes = (1,) * sum(source.group_sizes) if one_at_a_time else source.group_sizes
        conditioning = model.conditioning
        attend = _attention(
            group_sizes, world.device, conditioning.num_rows, conditioning.num_ragged
        )
        count, own = len(self.rows), np.array(world.shard(len(self.rows)), dtype=np.int64)
        # As many batches everywhere, for with sharded weights a forward is everyone's; and all of
        # one size, for which attention is compiled.
        longest = -(-count // world.size)
        num_batches = -(-longest // self._batch_size)
        size = -(-longest // num_batches)
        padded = np.resize(own if len(own) else np.zeros(1, np.int64), num_batches * size)
        starts = np.cumsum((0, *group_sizes[:-1]))
        losses = []
        for number, images in enumerate(padded.reshape(num_batches, size)):
            by_token = self._batch_loss(forward or model, source, attend, images, seed, bf16=bf16)
            losses.append(np.add.reduceat(by_token, starts, axis=1))  # (B, S)
            tell((number + 1) * count // num_batches - number * count // num_batches)
        shares = world.gather(np.concatenate(losses)[: len(own)])
        by_pass = np.empty((count, len(group_sizes)))
        for rank, share in enumerate(shares):
            by_pass[rank :: world.size] = share
        return PlanLoss(order=source.order.kind, group_sizes=group_sizes, by_pass=by_pass)

    def orders_sha256(self, source: PlanSource, seed: int) -> str:
        """Of the orders of all images, in theirs: (n, N) uint16, lower byte first."""
        hashed = hashlib.sha256()
        for start in range(0, len(self.rows), _ORDERS_AT_A_TIME):
            images = np.arange(start, min(start + _ORDERS_AT_A_TIME, len(self.rows)))
            hashed.update(source.plan(seed, images).orders.astype("<u2").tobytes())
        return hashed.hexdigest()

    def _batch_loss(
        self,
        forward: nn.Module,
        source: PlanSource,
        attend: Attend | RaggedAttend,
        images: npt.NDArray[np.int64],
        seed: int,
        *,
        bf16: bool,
    ) -> Float64Array:
        """(B, N) nats of the tokens of some images, in generation order."""
        rows = self.rows[images]  # (B,)
        device = self._world.device
        tokens = torch.from_numpy(self.cache.get(rows, np.zeros(len(rows), dtype=np.bool_)))
        condition = self._condition(rows)
        orders = torch.from_numpy(np.ascontiguousarray(source.plan(seed, images).orders))
        targets = tokens.gather(1, orders).to(device)  # (B, N)

        def losses_of(hidden: Tensor, head: nn.Linear) -> Tensor:
            return _token_losses(hidden, head, targets)

        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = forward(
                tokens.to(device), condition.to(device), orders.to(device), attend, losses_of
            )
        return losses.double().cpu().numpy()

    def _labels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.cache.labels[rows])  # (B,)


@functools.lru_cache(maxsize=32)  # a training measures the same plans again and again
def _attention(
    group_sizes: GroupSizes, device: torch.device, num_prefix: int, num_ragged: int
) -> Attend | RaggedAttend:
    return training_attention(
        Visibility.of_group_sizes(group_sizes, device, num_prefix, num_ragged)
    )


def _token_losses(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """(B, N, D) rows and (B, N) tokens -> (B, N) nats, float32."""
    parts = [
        cross_entropy(head(rows).float(), tokens, reduction="none")
        for rows, tokens in zip(
            hidden.flatten(0, 1).split(_TOKENS_AT_A_TIME),
            targets.flatten().split(_TOKENS_AT_A_TIME),
            strict=True,
        )
    ]
    return torch.cat(parts).view_as(targets)
