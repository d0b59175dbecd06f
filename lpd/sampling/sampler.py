"""Parallel decoding, group by group (paper section 3.2, inference): upload, then passes.

B images, N positions of which K are known beforehand and M = N - K are decoded, P prefix rows, g
tokens of a pass, V codebook size, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.models.kv_cache import KVCache
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.plan import DecodePlan
from lpd.sampling.config import SamplingConfig
from lpd.sampling.guidance import guidance_scales
from lpd.sampling.logits import draw, guide, keep_top_k, keep_top_p


@dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """All that decoding a batch needs, on the model's device."""

    condition: Tensor
    """(B, ...) what the images are conditioned on; (2B, ...) with guidance, the null half last."""
    orders: Tensor
    """(B, M) raster positions in generation order."""
    uniforms: Tensor
    """(B, M) numbers in [0, 1), by place in generation order."""
    scales: Tensor
    """(M,) guidance scales, by place in generation order."""
    known: Tensor
    """(B, K) raster positions that are known."""
    codes: Tensor
    """(B, N) in raster order: the known ones, and 0 where nothing is known."""
    group_sizes: GroupSizes
    """S sizes that sum to M."""
    config: SamplingConfig
    """How tokens are drawn."""

    @property
    def guided(self) -> bool:
        """Whether every image is run twice, with and without its condition."""
        return len(self.condition) > len(self.orders)


@dataclass(frozen=True, kw_only=True)
class DecodedPass:
    """What one pass has decoded."""

    positions: Tensor
    """(B, g) raster positions."""
    tokens: Tensor
    """(B, g) codes."""


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

    def __call__(
        self,
        condition: Tensor,
        plan: DecodePlan,
        uniforms: Tensor,
        config: SamplingConfig,
        known_codes: Tensor | None = None,
    ) -> Tensor:
        """Generate the codes of some images.

        An image depends on its condition, order, uniforms and known codes alone, not on its batch.

        Args:
            condition: (B, ...) what the images are conditioned on, such as (B,) classes;
                B <= batch_size.
            plan: B orders, with their group sizes and known cells.
            uniforms: (B, M) numbers in [0, 1), by place in generation order.
            config: how tokens are drawn.
            known_codes: (B, N) in raster order, of which the known cells are read; needed where the
                plan knows any.

        Returns:
            (B, N) codes in raster order, int64.

        Raises:
            InputError: as :meth:`upload`.
        """
        inputs = self.upload(condition, plan, uniforms, config, known_codes)
        codes = inputs.codes
        for each in self.passes(inputs):
            codes = codes.scatter(1, each.positions, each.tokens)
        return codes

    def upload(
        self,
        condition: Tensor,
        plan: DecodePlan,
        uniforms: Tensor,
        config: SamplingConfig,
        known_codes: Tensor | None = None,
    ) -> DecodeInputs:
        """Check what decoding needs and bring it to the model's device.

        Args: as for a call.

        Raises:
            InputError: a condition or code the model does not know, or a plan for another grid.
        """
        self._check(condition, plan, known_codes)
        num_positions, device = self.model.config.num_positions, self.model.head.weight.device
        if config.cfg != 1:
            condition = torch.cat([condition, self.model.conditioning.null(condition)])
        scales = guidance_scales(config.cfg, config.cfg_schedule, num_positions, plan.num_known)
        known = torch.from_numpy(plan.known).to(device)  # (B, K)
        codes = torch.zeros(len(plan), num_positions, dtype=torch.int64, device=device)  # (B, N)
        if known_codes is not None and plan.num_known:
            codes.scatter_(1, known, known_codes.to(device).long().gather(1, known))
        return DecodeInputs(
            condition=condition.to(device),
            orders=torch.from_numpy(plan.orders).to(device),
            uniforms=uniforms.to(device),
            scales=torch.from_numpy(scales).to(device),
            known=known,
            codes=codes,
            group_sizes=plan.group_sizes,
            config=config,
        )

    @torch.inference_mode()
    def passes(self, inputs: DecodeInputs) -> Iterator[DecodedPass]:
        """Decode pass by pass. A pass touches no host memory and waits for nothing.

        Only one iteration at a time: all of a sampler's share its KV cache.
        """
        model, config = self.model, inputs.config
        context = model.prefix(inputs.condition)  # (B or 2B, P, D)
        cache = self._empty_cache(guided=inputs.guided)
        if inputs.known.shape[1]:
            # The prefix does not see tokens, so it goes first; what is known is one group.
            model.prefill(context, cache)
            tokens = inputs.codes.gather(1, inputs.known)  # (B, K)
            context = self._context(tokens, inputs.known, inputs)  # (B or 2B, K, D)
        start, end = 0, inputs.orders.shape[1]
        for size in inputs.group_sizes:
            places = slice(start, start + size)
            positions = inputs.orders[:, places]  # (B, g)
            doubled = _double(positions) if inputs.guided else positions
            logits = model.decode(context, doubled, cache).float()  # (B or 2B, g, V)
            if inputs.guided:
                logits = guide(logits, inputs.scales[places])  # (B, g, V)
            logits = keep_top_k(logits / config.temperature, config.top_k)
            tokens = draw(keep_top_p(logits, config.top_p), inputs.uniforms[:, places])  # (B, g)
            yield DecodedPass(positions=positions, tokens=tokens)
            start += size
            if start < end:  # the last group is nobody's context
                context = self._context(tokens, positions, inputs)  # (B or 2B, g, D)

    def _context(self, tokens: Tensor, positions: Tensor, inputs: DecodeInputs) -> Tensor:
        if inputs.guided:
            tokens, positions = _double(tokens), _double(positions)
        return self.model.token_context(tokens, positions)

    def _empty_cache(self, *, guided: bool) -> KVCache:
        # Guidance runs every image twice, with and without its condition.
        rows = 2 * self.batch_size if guided else self.batch_size
        if self._cache is None or self._cache.batch_size < rows:
            self._cache = self.model.make_cache(rows, self.dtype)
        self._cache.reset()
        return self._cache

    def _check(self, condition: Tensor, plan: DecodePlan, known_codes: Tensor | None) -> None:
        config = self.model.config
        shape = (len(condition), config.num_positions)
        if (len(plan), plan.num_positions) != shape:
            raise InputError(
                f"the plan is for {plan.num_positions} positions of {len(plan)} images, but the "
                f"model has {shape[1]} positions and {shape[0]} conditions were given"
            )
        if len(condition) > self.batch_size:
            raise InputError(
                f"{len(condition)} images are more than this sampler's batch of {self.batch_size}"
            )
        # What is in device memory is not looked at: that would wait for the device.
        if condition.device.type == "cpu":
            self.model.conditioning.check(condition)
        if plan.num_known and known_codes is None:
            raise InputError(f"the plan knows {plan.num_known} cells: give known_codes")
        if known_codes is None:
            return
        if known_codes.shape != shape:
            raise InputError(
                f"known_codes must be of shape {list(shape)}, got {list(known_codes.shape)}"
            )
        if known_codes.device.type == "cpu" and plan.num_known:
            codes = known_codes.long().gather(1, torch.from_numpy(plan.known))
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= config.vocab_size:
                raise InputError(
                    f"known codes must be from 0 to {config.vocab_size - 1}, got {low} to {high}"
                )


def _double(x: Tensor) -> Tensor:
    return torch.cat([x, x])
