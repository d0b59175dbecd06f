"""What training is compared with: the same blocks as an ordinary causal transformer.

It predicts each token from those before it: no queries, so P + N - 1 rows instead of P + 2N - 1,
and causal attention, for which devices have kernels of their own. Orders are the trainer's, for
they cost the same.
"""

import functools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lpd.models.condition import Condition
from lpd.models.layers import Attend
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import GroupSizes
from lpd.training.trainer import Trainer


class CausalLPD(LPD):
    """The transformer with context rows alone: each predicts the token that comes next.

    Its mask token is in no row, and is not trained.
    """

    def training_rows(self, in_order: Tensor, condition: Condition, orders: Tensor) -> Tensor:
        """(B, P + N - 1, D) rows of (B, N) codes; the last N predict."""
        prefix = self.conditioning.rows(self, condition)
        return torch.cat([prefix, self._token_rows(in_order[:, :-1], orders[:, :-1])], dim=1)


class CausalTrainer(Trainer):
    """A training of that transformer."""

    model_class = CausalLPD

    def _make_attention(self, group_sizes: GroupSizes) -> Attend:
        return functools.partial(scaled_dot_product_attention, is_causal=True)
