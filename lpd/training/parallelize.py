"""How a training is spread over the run's processes.

A strategy is an entry of :data:`STRATEGIES`. It imports torch when it is used: the settings, which
name the strategies, do without.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from lpd.distributed import World
    from lpd.models.layers import Block


class Strategy(ABC):
    """A way to share a training among processes, of which there are two or more."""

    @abstractmethod
    def wrap(self, model: nn.Module, world: World, *, bf16: bool) -> nn.Module:
        """What is trained in the model's place.

        Args:
            model: the transformer, on the process's device.
            world: the run's processes.
            bf16: whether the training computes in bfloat16.

        Returns:
            A module whose parameters are the optimizer's; the gradient's norm is the same in all
            processes.
        """

    @abstractmethod
    def adding_up(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """A block whose backward pass is one of several that make a step's gradient.

        Args:
            model: what :meth:`wrap` returned.
            last: whether it is the step's last one, after which the gradient is averaged.
        """


class DataParallel(Strategy):
    """A whole copy of the model in every process; gradients are averaged as they are computed."""

    def wrap(self, model: nn.Module, world: World, *, bf16: bool) -> nn.Module:
        """torch's DistributedDataParallel around the model."""
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            model,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def adding_up(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """The gradients stay the process's own until the last."""
        from torch.nn.parallel import DistributedDataParallel

        return contextlib.nullcontext() if last else cast(DistributedDataParallel, model).no_sync()


class FullySharded(Strategy):
    """Every process keeps its share of weights, gradients and moments, and borrows the rest of a
    block while it computes it (FSDP2).

    In bfloat16 the blocks' linear layers are sent in it, half the traffic; each process's share of
    the weights, the gradients' sum and the optimizer stay in float32, as does all else.
    """

    def wrap(self, model: nn.Module, world: World, *, bf16: bool) -> nn.Module:
        """The same module; its parameters are DTensors from here on."""
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # autocast knows what may be rounded
        )
        for block in cast("Iterable[Block]", model.blocks):
            # The norms go with the rest of the model: they are small, and stay in float32.
            fully_shard([block.attn, block.mlp], mesh=mesh, mp_policy=policy)
        # Sharded again after each forward pass, as blocks are: whoever writes to the weights, as
        # measuring their average does, must find no whole ones left over.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        return model

    def adding_up(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Every part's gradients are shared out at once: whole ones would take as much memory as
        the weights."""
        return contextlib.nullcontext()


STRATEGIES: dict[str, Strategy] = {"ddp": DataParallel(), "fsdp": FullySharded()}
"""By name."""
