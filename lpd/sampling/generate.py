"""Parallel decoding, group by group (paper section 3.2, inference)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.models.kv_cache import KVCache
from lpd.models.lpd import LPD
from lpd.orders.plan import DecodePlan
from lpd.sampling.logits import draw, guidance_scales, guide, keep_top_k, keep_top_p

CFG_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn."""

    cfg: float = 1.0
    """Classifier-free guidance scale; 1 is none."""
    cfg_schedule: str = "linear"
    """linear (from 1 to cfg over the tokens) or constant."""
    temperature: float = 1.0
    """Softmax temperature."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0 for all, 1 for greedy decoding."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together have this probability."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cfg) and self.cfg >= 0):
            raise InputError(f"cfg must be finite and not negative, got {self.cfg}")
        if self.cfg_schedule not in CFG_SCHEDULES:
            raise InputError(
                f"unknown cfg_schedule {self.cfg_schedule!r}: "
                f"choose from {', '.join(CFG_SCHEDULES)}"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and above 0, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")


class Sampler:
    """Decodes batches of up to ``batch_size`` images with one model; keeps the KV cache."""

    def __init__(self, model: LPD, batch_size: int, dtype: torch.dtype | None = None) -> None:
        """Args:
        model: the transformer, in evaluation mode.
        batch_size: most images at a time.
        dtype: of the KV cache: that of autocast where the sampler is called under it; by
            default the weights'.
        """
        self.model = model
        self.batch_size = batch_size
        self.dtype = dtype
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def __call__(
        self, labels: Tensor, plan: DecodePlan, uniforms: Tensor, config: SamplingConfig
    ) -> Tensor:
        """Generate the codes of some images.

        An image depends on its label, order and uniforms alone, not on its batch.

        Args:
            labels: (B,) classes, B <= batch_size.
            plan: B orders, with their group sizes.
            uniforms: (B, N) numbers in [0, 1), by place in generation order.
            config: how tokens are drawn.

        Returns:
            (B, N) codes in raster order, int64.

        Raises:
            InputError: a label the model does not know, or a plan for another grid.
        """
        model = self.model
        num_positions, device = model.config.num_positions, model.head.weight.device
        self._check(labels, plan)
        labels = labels.to(device)
        uniforms = uniforms.to(device)
        orders = torch.from_numpy(plan.orders).to(device)  # (B, N)
        scales = guidance_scales(config.cfg, config.cfg_schedule, num_positions).to(device)  # (N,)
        guided = config.cfg != 1
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, model.null_label)])  # (2B,)

        codes = torch.empty_like(orders)  # (B, N)
        context = model.class_context(labels)  # (B or 2B, 1, D)
        cache = self._empty_cache(guided=guided)
        start = 0
        for size in plan.group_sizes:
            places = slice(start, start + size)
            positions = orders[:, places]  # (B, g)
            doubled = _double(positions) if guided else positions
            logits = model.decode(context, doubled, cache).float()  # (B or 2B, g, V)
            if guided:
                logits = guide(logits, scales[places])  # (B, g, V)
            logits = keep_top_k(logits / config.temperature, config.top_k)
            tokens = draw(keep_top_p(logits, config.top_p), uniforms[:, places])  # (B, g)
            codes.scatter_(1, positions, tokens)
            start += size
            if start < num_positions:  # the last group is nobody's context
                doubled_tokens = _double(tokens) if guided else tokens
                context = model.token_context(doubled_tokens, doubled)  # (B or 2B, g, D)
        return codes

    def _empty_cache(self, *, guided: bool) -> KVCache:
        # Guidance runs every image twice, with and without its class.
        rows = 2 * self.batch_size if guided else self.batch_size
        if self._cache is None or self._cache.batch_size < rows:
            self._cache = self.model.make_cache(rows, self.dtype)
        self._cache.reset()
        return self._cache

    def _check(self, labels: Tensor, plan: DecodePlan) -> None:
        config = self.model.config
        if plan.orders.shape != (len(labels), config.num_positions):
            raise InputError(
                f"the plan orders {plan.orders.shape[1]} positions of {len(plan)} images, but the "
                f"model has {config.num_positions} positions and {len(labels)} labels were given"
            )
        if len(labels) > self.batch_size:
            raise InputError(
                f"{len(labels)} images are more than this sampler's batch of {self.batch_size}"
            )
        # A label in device memory is not looked at: that would wait for the device.
        if labels.device.type == "cpu" and len(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > config.num_classes:
                raise InputError(
                    f"labels must be from 0 to {config.num_classes - 1}, or {config.num_classes} "
                    f"for no class; got {low} to {high}"
                )


def _double(x: Tensor) -> Tensor:
    return torch.cat([x, x])
