"""The running average of the weights."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The exponential moving average of a model's weights; a part of a checkpoint.

    After step t it is ``decay * (average before) + (1 - decay) * weights``, from the initial
    weights on.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Args:
        model: what is trained; its parameters may be sharded.
        decay: in [0, 1).
        """
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = [p.detach() for p in parameters.values()]
        self._averages = [p.clone() for p in self._parameters]
        self._names = tuple(parameters)
        self._step = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Have the weights as they are be the average."""
        _copy(self._parameters, self._averages)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._step(self._averages, self._parameters, 0)  # the count is of no matter here

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model be the average, for the length of the block."""
        with torch.no_grad():
            before = [parameter.clone() for parameter in self._parameters]
            _copy(self._averages, self._parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(before, self._parameters)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by the weights' names."""
        return dict(zip(self._names, self._averages, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over averages."""
        with torch.no_grad():
            for name, average in self.weights.items():
                average.copy_(state_dict["weights"][name])


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
