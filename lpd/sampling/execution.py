"""The options of how decoding is computed. They change its speed; codes only at near-ties.

Nothing here needs torch, so that flags are read in no time.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from lpd.errors import InputError

AUTO = "auto"
BACKENDS = {
    "eager": "operator by operator, as it is written down",
    "packed": "on a CPU, with weights laid out once for oneDNN's matrix products",
    "compiled": "torch.compile of what is between two attentions, once for all blocks and passes",
    "fused": "Triton kernels, five a block; not measured yet",
}
"""Ways to run the blocks of a pass."""

_BACKEND = tyro.conf.arg(
    help="How the blocks of a pass are run: "
    + "; ".join(f"{name}: {summary}" for name, summary in BACKENDS.items())
    + f"; {AUTO}: compiled on CUDA; on a CPU packed, and eager where float32 weights are few."
)


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How decoding is computed."""

    backend: Annotated[str, _BACKEND] = AUTO
    cuda_graphs: bool = True
    """On CUDA, capture all passes and the tokenizer's decoder as one graph per shape, and replay
    it."""

    def __post_init__(self) -> None:
        if self.backend != AUTO and self.backend not in BACKENDS:
            raise InputError(
                f"unknown backend {self.backend!r}: choose from {AUTO}, {', '.join(BACKENDS)}"
            )
