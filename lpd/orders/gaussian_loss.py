"""What a plan loses with a perfect model of a Gaussian field: nats, in closed form.

Parallel decoding draws the cells of a pass independently of each other, given the passes before.
With a model that knows every conditional distribution, what that loses is the total correlation
inside each pass given what is known:

    sum over its cells of h(cell | earlier passes)  -  h(all its cells | earlier passes),

and their sum is the Kullback-Leibler divergence of what is decoded from the field. Of a Gaussian
field with the covariance permuted into generation order, one Cholesky factor L has it all. Given
the earlier passes, the i-th cell of a pass has the variance sum of L[i, j]^2 over the j of its
pass, and given those and the cells before it in its pass, L[i, i]^2.

B images, N cells of which K are known beforehand, S passes.
"""

import numpy as np

from lpd.orders.covariances import Floats, check_covariance, cholesky
from lpd.orders.plan import DecodePlan

# Numbers of permuted covariances that are factored at a time: 16 MiB.
_NUMBERS_AT_A_TIME = 1 << 21


def gaussian_loss(plan: DecodePlan, covariance: Floats) -> Floats:
    """What every pass of a plan loses on a zero-mean Gaussian field.

    Nothing is lost by the cells that the plan takes as known.

    Args:
        plan: of B images.
        covariance: (N, N) of the field, between raster positions.

    Returns:
        (B, S) nats, none negative; their sum over the passes is the image's loss.

    Raises:
        InputError: the covariance is of another size, not finite, not symmetric or not positive
            definite.
    """
    check_covariance(covariance, plan.num_positions)
    cells = np.concatenate([plan.known, plan.orders], axis=1)  # (B, N)
    # Many kinds of order are the same for every image.
    cells, row_of_image = np.unique(cells, axis=0, return_inverse=True)
    losses = np.empty((len(cells), plan.num_groups))
    at_a_time = max(1, _NUMBERS_AT_A_TIME // covariance.size)
    for start in range(0, len(cells), at_a_time):
        part = slice(start, start + at_a_time)
        factors = cholesky(covariance[cells[part, :, None], cells[part, None, :]])  # (b, N, N)
        end = plan.num_known
        for s, size in enumerate(plan.group_sizes):
            begin, end = end, end + size
            losses[part, s] = _total_correlation(factors[:, begin:end, begin:end])
    return losses[row_of_image.reshape(-1)]


def _total_correlation(factors: Floats) -> Floats:
    """Of the Cholesky factors (b, g, g) of covariances: (b,) nats."""
    chain_rule = np.square(np.diagonal(factors, axis1=1, axis2=2))  # (b, g)
    # Apart from the diagonal, so that small losses keep their digits and none is below zero.
    shared = np.square(np.tril(factors, -1)).sum(axis=2)  # (b, g)
    return np.log1p(shared / chain_rule).sum(axis=1) / 2
