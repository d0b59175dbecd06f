"""Parallel decoding, group by group (paper section 3.2, inference): upload, then passes.

B images, N positions of which K are known beforehand and M = N - K are decoded, R of them once more
(:mod:`lpd.sampling.refinement`), P prefix rows, g tokens of a pass, V codebook size, D width.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpd.errors import InputError
from lpd.models.condition import Condition
from lpd.models.kv_cache import KVCache
from lpd.models.lpd import LPD
from lpd.models.stack import DecodeStack
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.plan import DecodePlan
from lpd.sampling.config import SamplingConfig
from lpd.sampling.guidance import guided_passes
from lpd.sampling.logits import Choose, choose, log_probs_of
from lpd.sampling.refinement import refine_sizes


@dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """All that decoding a batch needs. Its tensors are on the model's device; the rest decides what
    is computed, so that two batches that share it run the very same operators."""

    condition: Condition
    """(B, ...) what the images are conditioned on."""
    null: Condition | None = None
    """(B, ...) what guidance leads away from, such as texts of what is not to be seen; None for no
    condition, and where no pass is guided."""
    orders: Tensor
    """(B, M) raster positions in generation order."""
    uniforms: Tensor
    """(B, M + R) numbers in [0, 1), by place in generation order; the last R are for decoding
    again."""
    scales: Tensor
    """(M,) guidance scales, by place in generation order."""
    temperatures: Tensor | None = None
    """(M,) temperatures, likewise; None where that of ``config`` is for all."""
    known: Tensor
    """(B, K) raster positions that are known."""
    codes: Tensor
    """(B, N) in raster order, of which the known ones are read; 0 where nothing is known yet."""
    group_sizes: GroupSizes
    """S sizes that sum to M."""
    guided: tuple[bool, ...]
    """(S,) which passes are guided: those of which a scale is not 1."""
    config: SamplingConfig
    """How tokens are drawn."""
    refine_sizes: GroupSizes = ()
    """Sizes, which sum to R, of the passes that decode again; none where R is 0."""
    refine_guided: tuple[bool, ...] = ()
    """Which of those are guided."""

    def __len__(self) -> int:
        return len(self.orders)

    @property
    def num_passes(self) -> int:
        """All of them, those that decode again too."""
        return len(self.group_sizes) + len(self.refine_sizes)

    @property
    def num_sequences(self) -> int:
        """B, or 2B where a pass is guided: then every image is also run without its condition."""
        return len(self) * (2 if any(self.guided) else 1)


@dataclass(frozen=True, kw_only=True)
class DecodedPass:
    """What one pass has decoded."""

    positions: Tensor
    """(B, g) raster positions."""
    tokens: Tensor
    """(B, g) codes."""
    finite: Tensor | None
    """(B,) whether the logits of all passes are finite, for the last pass, and for the last before
    codes are decoded again."""
    log_probs: Tensor | None
    """(B, g) in nats, float32: of the distributions that the codes were drawn from, after guidance,
    temperature and filters; None where the sampler was not asked for them."""
    forgotten: Tensor | None = None
    """(B, R) raster positions that had been decoded and were unknown in this pass, for the first
    that decodes again."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What all passes have decoded."""

    codes: Tensor
    """(B, N) in raster order, int64."""
    finite: Tensor
    """(B,) whether the logits of all passes are finite."""
    log_probs: Tensor | None
    """(B, M) those of the passes, by place in generation order: of a code that was decoded again,
    that of the code that stayed, with all others known, at the place that it had at first."""


class Sampler:
    """Decodes batches of up to ``batch_size`` images with one model."""

    def __init__(
        self,
        model: LPD,
        batch_size: int,
        stack: DecodeStack | None = None,
        choose: Choose = choose,
        *,
        log_probs: bool = False,
    ) -> None:
        """Args:
        model: the transformer, in evaluation mode.
        batch_size: most images at a time.
        stack: how its blocks are run, and in what dtype; by default the readable way, in the
            weights'.
        choose: how tokens are made of logits.
        log_probs: whether to tell with what probability each token was drawn.
        """
        self.model = model
        self.batch_size = batch_size
        self.stack = stack or model.stack()
        self.choose = choose
        self.log_probs = log_probs
        self._kept: list[KVCache] = []  # none or one

    def __call__(
        self,
        condition: Condition,
        plan: DecodePlan,
        uniforms: Tensor,
        config: SamplingConfig,
        known_codes: Tensor | None = None,
        null: Condition | None = None,
    ) -> Tensor:
        """Generate the codes of some images.

        An image depends on its condition, order, uniforms and known codes alone, not on its batch.

        Args:
            condition: (B, ...) what the images are conditioned on, such as (B,) classes;
                B <= batch_size.
            plan: B orders, with their group sizes and known cells.
            uniforms: (B, M + R) numbers in [0, 1), by place in generation order, then one for each
                code that is decoded again: R is the sum of
                :func:`lpd.sampling.refinement.refine_sizes`.
            config: how tokens are drawn.
            known_codes: (B, N) in raster order, of which the known cells are read; needed where the
                plan knows any.
            null: (B, ...) what guidance leads away from; by default no condition.

        Returns:
            (B, N) codes in raster order, int64.

        Raises:
            InputError: as :meth:`upload`.
        """
        inputs = self.upload(condition, plan, uniforms, config, known_codes, null)
        return self.decode(inputs).codes

    def upload(
        self,
        condition: Condition,
        plan: DecodePlan,
        uniforms: Tensor,
        config: SamplingConfig,
        known_codes: Tensor | None = None,
        null: Condition | None = None,
    ) -> DecodeInputs:
        """Check what decoding needs and bring it to the model's device.

        Args: as for a call.

        Raises:
            InputError: a condition or code the model does not know, or a plan for another grid.
        """
        sizes = refine_sizes(config, plan.group_sizes)
        self._check(condition, plan, uniforms, sum(sizes), known_codes)
        if null is not None:
            self._check_null(null, len(condition))
        num_positions, device = self.model.config.num_positions, self.model.head.weight.device
        scales = config.guidance_scales(num_positions, plan.num_known)
        temperatures = config.temperatures(num_positions, plan.num_known)
        guided = guided_passes(scales, plan.group_sizes)
        if not any(guided):
            null = None
        codes = torch.zeros(len(plan), num_positions, dtype=torch.int64)  # (B, N)
        known = torch.from_numpy(plan.known)  # (B, K)
        if known_codes is not None and plan.num_known:
            codes = codes.to(known_codes.device)
            known = known.to(known_codes.device)
            codes.scatter_(1, known, known_codes.long().gather(1, known))
        return DecodeInputs(
            condition=_to_device(condition, device),
            null=None if null is None else _to_device(null, device),
            orders=_to_device(torch.from_numpy(plan.orders), device),
            uniforms=_to_device(uniforms, device),
            scales=_to_device(torch.from_numpy(scales), device),
            temperatures=(
                None if temperatures is None else _to_device(torch.from_numpy(temperatures), device)
            ),
            known=_to_device(known, device),
            codes=_to_device(codes, device),
            group_sizes=plan.group_sizes,
            guided=guided,
            config=config,
            refine_sizes=sizes,
            # What stays known counts as generated: those decoded again are the last.
            refine_guided=guided_passes(scales[len(scales) - sum(sizes) :], sizes),
        )

    @torch.inference_mode()
    def decode(
        self,
        inputs: DecodeInputs,
        cache: KVCache | None = None,
        on_pass: Callable[[DecodedPass], None] | None = None,
    ) -> Decoded:
        """All passes.

        Args:
            inputs: what :meth:`upload` gave.
            cache: as :meth:`passes`.
            on_pass: called after each pass.
        """
        codes, finite, by_cell = inputs.codes, None, None
        for each in self.passes(inputs, cache):
            codes = codes.scatter(1, each.positions, each.tokens)
            if each.finite is not None:
                finite = each.finite if finite is None else finite & each.finite
            if on_pass is not None:
                on_pass(each)
            if each.log_probs is not None:
                if by_cell is None:
                    by_cell = torch.zeros_like(codes, dtype=each.log_probs.dtype)  # (B, N)
                by_cell = by_cell.scatter(1, each.positions, each.log_probs)
        if finite is None:  # nothing was to be decoded
            finite = torch.ones(len(inputs), dtype=torch.bool, device=codes.device)
        return Decoded(
            codes=codes,
            finite=finite,
            log_probs=None if by_cell is None else by_cell.gather(1, inputs.orders),
        )

    def make_cache(self, inputs: DecodeInputs) -> KVCache:
        """A KV cache for decoding these."""
        return self.model.make_cache(inputs.num_sequences, self.stack.dtype)

    @torch.inference_mode()
    def passes(self, inputs: DecodeInputs, cache: KVCache | None = None) -> Iterator[DecodedPass]:
        """Decode pass by pass. A pass touches no host memory and waits for nothing.

        Args:
            inputs: what :meth:`upload` gave.
            cache: an empty one with room for the sequences. By default one that the sampler keeps
                for this and enlarges as needed.
        """
        if cache is not None:
            yield from self._all_passes(inputs, cache)
            return
        own = self._taken_cache(inputs)
        try:
            yield from self._all_passes(inputs, own)
        finally:
            self._kept[:] = [max([own, *self._kept], key=lambda each: each.num_sequences)]

    def _all_passes(self, inputs: DecodeInputs, cache: KVCache) -> Iterator[DecodedPass]:
        """The passes, and those that decode again."""
        if not inputs.refine_sizes:
            yield from self._passes(inputs, cache, self.log_probs)
            return
        tokens, log_probs = [], []
        for each in self._passes(inputs, cache, True):
            assert each.log_probs is not None
            tokens.append(each.tokens)
            log_probs.append(each.log_probs)
            yield each if self.log_probs else dataclasses.replace(each, log_probs=None)
        cache.reset()
        again = least_certain(inputs, torch.cat(tokens, dim=1), torch.cat(log_probs, dim=1))
        forgotten: Tensor | None = again.orders
        for each in self._passes(again, cache, self.log_probs):
            yield dataclasses.replace(each, forgotten=forgotten)
            forgotten = None

    def _passes(
        self, inputs: DecodeInputs, cache: KVCache, tell_log_probs: bool
    ) -> Iterator[DecodedPass]:
        """The passes over what is unknown, on an empty cache; nothing is decoded again."""
        model, stack, num_images = self.model, self.stack, len(inputs)
        halves = 2 if any(inputs.guided) else 1  # the null half last
        condition = inputs.condition
        if halves == 2:
            null = model.conditioning.null(condition) if inputs.null is None else inputs.null
            condition = model.conditioning.join([condition, null])
        cache.hide(model.conditioning.ragged(condition))
        context = model.prefix(condition).unflatten(0, (halves, num_images))  # (1 or 2, B, P, D)
        if inputs.known.shape[1]:
            # The prefix does not see tokens, so it goes first; what is known is one group.
            stack.run(context.flatten(0, 1), cache, context.shape[2])
            tokens = inputs.codes.gather(1, inputs.known)  # (B, K)
            context = model.token_context(tokens, inputs.known)[None]  # (1, B, K, D)
        start, end = 0, inputs.orders.shape[1]
        sums: list[Tensor] = []  # (B,) of each pass's logits: of NaN and infinity never finite
        for number, size in enumerate(inputs.group_sizes):
            if not any(inputs.guided[number:]):  # nobody needs the null half again
                context, halves = context[:1], 1
            places = slice(start, start + size)
            positions = inputs.orders[:, places]  # (B, g)
            parts = (context, model.query_rows(positions)[None])  # (1 or 2, B, c or g, D) each
            # Both halves have the same rows but for the prefix: one copy joins and doubles them.
            rows = torch.cat([part.expand(halves, -1, -1, -1) for part in parts], dim=2)
            rows = stack.run(rows.flatten(0, 1), cache, context.shape[2])  # (B or 2B, g, D)
            guided = inputs.guided[number]
            # At scale 1 guidance leaves the logits with the condition.
            logits = stack.logits(rows if guided else rows[:num_images])  # (B or 2B, g, V)
            scales = inputs.scales[places] if guided else None
            temperatures = None if inputs.temperatures is None else inputs.temperatures[places]
            tokens = self.choose(
                logits, scales, inputs.uniforms[:, places], inputs.config, temperatures
            )  # (B, g)
            log_probs = None
            if tell_log_probs:  # by the logits, however the tokens were drawn by them
                log_probs = log_probs_of(
                    tokens, logits, scales, inputs.config, temperatures
                )  # (B, g)
            start += size
            by_image = logits.view(-1, num_images, size * logits.shape[-1])
            sums.append(by_image.sum(dim=(0, 2), dtype=torch.float32))
            finite = torch.stack(sums).isfinite().all(dim=0) if start == end else None  # (B,)
            yield DecodedPass(
                positions=positions, tokens=tokens, finite=finite, log_probs=log_probs
            )
            if start < end:  # the last group is nobody's context
                context = model.token_context(tokens, positions)[None]  # (1, B, g, D)

    def _taken_cache(self, inputs: DecodeInputs) -> KVCache:
        # It is nobody else's until it is given back: another thread, or a caller that decodes
        # between two passes, would write over what the passes to come attend to.
        cache = None
        with contextlib.suppress(IndexError):
            cache = self._kept.pop()
        if cache is None or cache.num_sequences < inputs.num_sequences:
            cache = None  # there need not be room for both
            cache = self.make_cache(inputs)
        cache.reset()
        return cache

    def _check(
        self,
        condition: Condition,
        plan: DecodePlan,
        uniforms: Tensor,
        num_again: int,
        known_codes: Tensor | None,
    ) -> None:
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
        expected = (len(plan), plan.orders.shape[1] + num_again)
        if uniforms.shape != expected:
            raise InputError(
                f"uniforms must be of shape {list(expected)}, one for each token to "
                f"decode{' and to decode again' if num_again else ''}, got {list(uniforms.shape)}"
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

    def _check_null(self, null: Condition, num_images: int) -> None:
        if len(null) != num_images:
            raise InputError(
                f"guidance leads away from a condition for each image: {len(null)} were given for "
                f"{num_images} images"
            )
        if null.device.type == "cpu":
            self.model.conditioning.check(null)


def least_certain(inputs: DecodeInputs, tokens: Tensor, log_probs: Tensor) -> DecodeInputs:
    """What decoding the least certain codes again needs. It is all made on the device.

    Args:
        inputs: of decoding them first.
        tokens: (B, M) what that gave, by place in generation order.
        log_probs: (B, M) with what probability each was drawn; of equal ones the earlier count as
            the less certain, and NaN as certain.

    Returns:
        Inputs whose orders are the R least certain positions, in generation order; all others are
        known, and what was known before comes first among them.
    """
    num_decoded, num_again = inputs.orders.shape[1], sum(inputs.refine_sizes)
    ranked = log_probs.sort(dim=1, stable=True).indices  # (B, M)
    again = ranked[:, :num_again].sort(dim=1).values  # (B, R)
    kept = ranked[:, num_again:].sort(dim=1).values  # (B, M - R)
    known = torch.cat([inputs.known, inputs.orders.gather(1, kept)], dim=1)  # (B, N - R)
    last = slice(num_decoded - num_again, num_decoded)
    return dataclasses.replace(
        inputs,
        orders=inputs.orders.gather(1, again),
        uniforms=inputs.uniforms[:, num_decoded:],
        scales=inputs.scales[last],
        temperatures=None if inputs.temperatures is None else inputs.temperatures[last],
        known=known,
        codes=inputs.codes.scatter(1, inputs.orders, tokens),
        group_sizes=inputs.refine_sizes,
        guided=inputs.refine_guided,
        refine_sizes=(),
        refine_guided=(),
    )


def _to_device(tensor: Any, device: torch.device) -> Any:
    # From pageable memory a copy waits for all that the device was asked to do before.
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
