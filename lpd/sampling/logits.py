"""From logits to tokens: pure functions, in the order guidance, temperature, top-k, top-p, draw.

B images, g tokens of a pass, V codebook size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lpd.sampling.config import TEMPERATURES, SamplingConfig
from lpd.sampling.schedules import find_schedule

Choose = Callable[[Tensor, Tensor | None, Tensor, SamplingConfig, Tensor | None], Tensor]
"""From the logits of a pass to its tokens, as :func:`choose`."""


def choose(
    logits: Tensor,
    scales: Tensor | None,
    uniforms: Tensor,
    config: SamplingConfig,
    temperatures: Tensor | None = None,
) -> Tensor:
    """The tokens of a pass.

    Args:
        logits: (2B, g, V) with guidance, the conditional half first, else (B, g, V).
        scales: (g,) guidance scales; None without guidance.
        uniforms: (B, g) numbers in [0, 1).
        config: temperature and filters.
        temperatures: (g,) of each token; None where that of ``config`` is for all.

    Returns:
        (B, g) tokens, int64.
    """
    return draw(adjust(logits, scales, config, temperatures), uniforms)


def adjust(
    logits: Tensor,
    scales: Tensor | None,
    config: SamplingConfig,
    temperatures: Tensor | None = None,
) -> Tensor:
    """The logits that tokens are drawn by: guided, at the temperature, and filtered.

    Args: as of :func:`choose`.

    Returns:
        (B, g, V), -inf for what is never drawn.
    """
    if scales is not None:
        logits = guide(logits, scales)  # (B, g, V)
    logits = temper(logits, config, temperatures)
    return keep_top_p(keep_top_k(logits, config.top_k), config.top_p)


def temper(logits: Tensor, config: SamplingConfig, temperatures: Tensor | None = None) -> Tensor:
    """Divide (B, g, V) logits by their temperatures, of which none is below the least allowed: at
    entropy 0 an entropy-adaptive temperature would be 0."""
    by_entropy = find_schedule("temperature", config.temperature_schedule).by_entropy
    if by_entropy is not None:
        factors = by_entropy(entropy(logits), *config.parameters("temperature"))  # (B, g)
        base = config.temperature if temperatures is None else temperatures
        adapted = (base * factors).clamp(min=TEMPERATURES[0])  # (B, g)
        return logits / adapted[..., None].to(logits.dtype)
    if temperatures is not None:
        return logits / temperatures[:, None].to(logits.dtype)
    return logits if config.temperature == 1 else logits / config.temperature


def entropy(logits: Tensor) -> Tensor:
    """(...) the entropy in nats of the distributions that (..., V) logits stand for, float32."""
    return torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1)


def log_probs_of(
    tokens: Tensor,
    logits: Tensor,
    scales: Tensor | None,
    config: SamplingConfig,
    temperatures: Tensor | None = None,
) -> Tensor:
    """The log-probabilities with which :func:`choose` draws tokens.

    Args:
        tokens: (B, g) what was drawn.
        logits: of the pass, as of :func:`choose`, and the others too.

    Returns:
        (B, g) in nats, float32.
    """
    log_probs = (
        adjust(logits, scales, config, temperatures).float().log_softmax(dim=-1)
    )  # (B, g, V)
    return log_probs.gather(-1, tokens[..., None])[..., 0]


def guide(logits: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance: uncond + s (cond - uncond).

    Args:
        logits: (2B, g, V), the conditional half first.
        scale: (g,) or scalar s.

    Returns:
        (B, g, V).
    """
    cond, uncond = logits.chunk(2)
    return torch.lerp(uncond, cond, scale.reshape(-1, 1).to(logits.dtype))


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the ``top_k`` largest of (..., V) logits to -inf; of equal ones at the border the
    lower codes stay."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    threshold = logits.topk(top_k, dim=-1).values[..., -1:]
    above, at = logits > threshold, logits == threshold
    room = top_k - above.sum(dim=-1, keepdim=True)
    keep = above | (at & (at.cumsum(dim=-1) <= room))
    return logits.masked_fill(~keep, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf all of (..., V) logits but the fewest most likely tokens that together have at
    least probability ``top_p``; the most likely token always stays (nucleus sampling, arXiv
    1904.09751)."""
    if top_p >= 1:
        return logits
    probabilities, tokens = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    drop = (mass_before >= top_p).scatter(-1, tokens, mass_before >= top_p)
    drop.scatter_(-1, tokens[..., :1], False)
    return logits.masked_fill(drop, -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens by inverse CDF.

    The cumulative sum runs in float32 in codebook order and is compared with u times its total;
    the result is at most the last token of nonzero probability. A pure function without a host
    sync.

    Args:
        logits: (..., V) filtered logits.
        uniforms: (...) numbers in [0, 1).

    Returns:
        (...) tokens, int64.
    """
    probabilities = logits.float().softmax(dim=-1)  # (..., V)
    # A parallel sum may fall by a rounding error where it should stay: then a search could stop at
    # a token of probability 0.
    cumulative = probabilities.cumsum(dim=-1).cummax(dim=-1).values  # (..., V)
    target = uniforms[..., None] * cumulative[..., -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[..., 0]  # (...)
    # Where u * total rounds up to the total, no entry is above it.
    places = torch.arange(logits.shape[-1], device=logits.device)
    last_possible = torch.where(probabilities > 0, places, 0).amax(dim=-1)  # (...)
    return torch.minimum(tokens, last_possible)
