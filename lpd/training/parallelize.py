"""How a training is spread over the run's processes.

A strategy is an entry of :data:`STRATEGIES`. It imports torch when it is called: the settings,
which name the strategies, do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from lpd.distributed import World


def distributed_data_parallel(model: nn.Module, world: World) -> nn.Module:
    """A whole copy of the model in every process; gradients are averaged as they are computed."""
    from torch.nn.parallel import DistributedDataParallel

    if world.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


STRATEGIES: dict[str, Callable[[nn.Module, World], nn.Module]] = {
    "ddp": distributed_data_parallel,
}
"""By name: makes, of the model on the process's device, the module that is trained in its place.
Its parameters are the optimizer's; the gradient's norm is the same in all processes."""
