"""Re-decoding: how many codes of an image are decoded once more, and in how many passes.

When all codes are there, the least certain ones, by the probability they were drawn with, become
unknown again and are decoded anew, with all others known. Nothing here needs torch.

M codes are decoded first, in S passes; R of them once more.
"""

from lpd.errors import InputError
from lpd.orders.group_sizes import GroupSizes, make_group_sizes
from lpd.sampling.config import SamplingConfig


def num_refined(refine: float, num_decoded: int) -> int:
    """R = refine * M, rounded, but at least one code is decoded again and at least one stays."""
    if refine == 0 or num_decoded < 2:
        return 0
    return min(max(1, round(refine * num_decoded)), num_decoded - 1)


def default_refine_steps(refine: float, group_sizes: GroupSizes) -> int:
    """The passes of ``refine_steps`` 0: refine * S, rounded, at least one and at most R."""
    count = num_refined(refine, sum(group_sizes))
    return min(max(1, round(refine * len(group_sizes))), count)


def refine_sizes(sampling: SamplingConfig, group_sizes: GroupSizes) -> GroupSizes:
    """Tokens per pass of decoding again, by the cosine schedule; empty where nothing is.

    Args:
        sampling: says how much is decoded again, and in how many passes.
        group_sizes: S sizes of the passes before, which sum to M.

    Raises:
        InputError: more passes than codes.
    """
    count = num_refined(sampling.refine, sum(group_sizes))
    if not count:
        return ()
    steps = sampling.refine_steps or default_refine_steps(sampling.refine, group_sizes)
    if steps > count:
        raise InputError(
            f"refine_steps {steps} are more passes than there are codes to decode again: refine "
            f"{sampling.refine:g} of {sum(group_sizes)} is {count}"
        )
    return make_group_sizes(count, steps)
