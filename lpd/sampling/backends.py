"""Ways to run the blocks of a pass beside the readable one (:class:`lpd.models.stack.DecodeStack`).

They compute the same numbers but for rounding. Adding one is an entry here and in
:data:`lpd.sampling.execution.BACKENDS`.

S sequences, T rows of a pass, R = S * T, D width.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpd.errors import InputError
from lpd.models.kv_cache import KVCache
from lpd.models.layers import LAYER_NORM_EPS, Block
from lpd.models.lpd import LPD
from lpd.models.stack import BlockWeights, DecodeStack, after_attention, before_attention
from lpd.sampling import kernels
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import AUTO
from lpd.sampling.logits import Choose, choose
from lpd.sampling.schedules import find_schedule

# Below this many bytes of weights a CPU keeps them in its cache, and packing them gains a tenth; a
# tenth is not worth other roundings than those of results that are there.
_PACK_FROM_BYTES = 64 * 2**20
# Layouts and tuned matrix products are chosen for about so many rows: a pass of one image at the
# published settings has 4 to 100.
_TYPICAL_ROWS = 64
# From so many rows on products are the library's, which chooses by the number of rows.
_MOST_TUNED_ROWS = 256


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class PackedStack(DecodeStack):
    """On a CPU: weights laid out once for oneDNN's matrix products, by the operators that
    TorchInductor packs weights with.

    A product of few rows is mostly the reading of its weights, and this way they are read once and
    in order. The weights are copied: what changes in the model later is not seen.
    """

    linear = staticmethod(_packed_linear)

    def __init__(
        self, blocks: Iterable[Block], norm: nn.LayerNorm, head: nn.Linear, dtype: torch.dtype
    ) -> None:
        super().__init__(blocks, norm, head, dtype)
        if not can_pack(dtype):
            raise InputError(
                f"backend packed needs oneDNN and a processor that it packs {dtype} for: choose "
                "another backend"
            )
        self._weights = [self._packed(BlockWeights.of(block)) for block in self.blocks]
        self._head = self._pack(head.weight)

    def weights(self) -> list[BlockWeights]:
        return self._weights

    def head_weight(self) -> Tensor:
        return self._head

    def _packed(self, weights: BlockWeights) -> BlockWeights:
        def packed(layer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            weight, bias = layer
            return self._pack(weight), bias.detach().to(self.dtype)

        return weights._replace(
            qkv=packed(weights.qkv),
            proj=packed(weights.proj),
            fc1=packed(weights.fc1),
            fc2=packed(weights.fc2),
        )

    def _pack(self, weight: Tensor) -> Tensor:
        weight = weight.detach().to(self.dtype)
        return torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of a dtype on this processor."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    ):
        return False
    if dtype == torch.float32:
        return True
    # Packed bfloat16 needs instructions that AVX2 alone has not.
    return dtype == torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported())


def _between_attentions(
    x: Tensor, attended: Tensor, weights: BlockWeights, following: BlockWeights
) -> tuple[Tensor, Tensor]:
    """From one block's attention to the next one's."""
    x = after_attention(x, attended, weights)
    return x, before_attention(x, following, attended.dtype)


@functools.cache
def _compiled(function: Callable[..., Any], *, tuned: bool) -> Callable[..., Any]:
    # One compiled function for all blocks, as it takes their weights as arguments, and for all
    # passes, as the number of rows is a symbol. The options are those of the mode
    # "max-autotune-no-cudagraphs", without its tables on stderr.
    options: dict[str, Any] = {
        "max_autotune": True,
        "coordinate_descent_tuning": True,
        "autotune_num_choices_displayed": 0,
    }
    return torch.compile(function, fullgraph=True, options=options if tuned else None)


class CompiledStack(DecodeStack):
    """What is between two attentions, compiled: what surrounds matrix products becomes one kernel.

    On CUDA the products of few rows are tuned. Where nothing can be compiled it goes on as the
    readable one, with a warning.
    """

    def __init__(
        self, blocks: Iterable[Block], norm: nn.LayerNorm, head: nn.Linear, dtype: torch.dtype
    ) -> None:
        super().__init__(blocks, norm, head, dtype)
        self._compiles = True
        self._is_tuned = False

    def run(self, x: Tensor, cache: KVCache, num_context: int) -> Tensor:
        num_sequences, num_rows, dim = x.shape
        last = len(self.blocks) - 1
        weights = self.weights()
        x = x.flatten(0, 1)  # (R, D)
        qkv = self._call(before_attention, (x,), weights[0], self.dtype)  # (R, 3D)
        for layer in range(last + 1):
            qkv = qkv.view(num_sequences, num_rows, 3, cache.kv.shape[3], -1)  # (S, T, 3, H, C)
            cache.write(layer, qkv)
            if layer == last:
                break
            attended = cache.attend(layer, qkv[:, :, 0], num_context).flatten(0, 1)  # (R, D)
            x, qkv = self._call(
                _between_attentions, (x, attended), weights[layer], weights[layer + 1]
            )
        if num_rows > num_context:
            x = x.view(num_sequences, num_rows, dim)[:, num_context:].flatten(0, 1)  # (S * g, D)
            attended = cache.attend(last, qkv[:, num_context:, 0], num_context, queries_only=True)
            x = self._call(after_attention, (x, attended.flatten(0, 1)), weights[last])
        else:
            x = x.new_empty(0, dim)
        cache.advance(num_context)
        return x.view(num_sequences, num_rows - num_context, dim)

    def _call(self, function: Callable[..., Any], rows: tuple[Tensor, ...], *arguments: Any) -> Any:
        num_rows = len(rows[0])
        if self._compiles and num_rows > 1:  # a compiler takes 0 and 1 for constants
            tuned = rows[0].is_cuda and num_rows <= _MOST_TUNED_ROWS
            if tuned and not self._is_tuned:
                self._is_tuned = True
                self._tune(rows[0].device)
            for each in rows:
                torch._dynamo.maybe_mark_dynamic(each, 0)
            try:
                return _compiled(function, tuned=tuned)(*rows, *arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in many ways, at the first call or later
                if rows[0].is_cuda and torch.cuda.is_current_stream_capturing():
                    raise  # the capture has failed, whatever the reason: its recorder's concern
                self._compiles = False
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(
                    f"blocks are run operator by operator: torch.compile failed: {reason}",
                    stacklevel=2,
                )
        return function(*rows, *arguments)

    def _tune(self, device: torch.device) -> None:
        """Compile for a typical number of rows, which decides what products are tuned for; the
        first pass has hardly any."""
        x = torch.zeros(_TYPICAL_ROWS, self.norm.normalized_shape[0], device=device)  # (R, D)
        attended = torch.zeros_like(x, dtype=self.dtype)
        weights = self.weights()[:2]
        self._call(before_attention, (x,), weights[0], self.dtype)
        if len(weights) > 1:
            self._call(_between_attentions, (x, attended), *weights)
        self._call(after_attention, (x, attended), weights[0])


class FusedStack(DecodeStack):
    """Five Triton kernels a block. Without a GPU their twins in plain torch run."""

    def run(self, x: Tensor, cache: KVCache, num_context: int) -> Tensor:
        last, start = len(self.blocks) - 1, cache.length
        for layer, weights in enumerate(self.weights()):
            kv = cache.kv[layer]
            q = kernels.norm_qkv(x, *weights.norm1, LAYER_NORM_EPS, *weights.qkv, kv, start)
            if layer == last:
                x, q = x[:, num_context:], q[:, num_context:]  # (S, g, D), (S, g, H, C)
                if not x.shape[1]:
                    break  # nothing is asked
            attended = kernels.attend(q, kv, start, num_context, layer == last, cache.bias)
            x = kernels.project(attended, *weights.proj, x)
            hidden = kernels.norm_mlp_in(x, *weights.norm2, LAYER_NORM_EPS, *weights.fc1)
            x = kernels.project(hidden, *weights.fc2, x)
        cache.advance(num_context)
        return x

    def weights(self) -> list[BlockWeights]:
        """In this stack's dtype; those that are resident in it are not copied."""
        return [
            each._replace(
                **{
                    name: tuple(tensor.to(self.dtype) for tensor in getattr(each, name))
                    for name in ("qkv", "proj", "fc1", "fc2")
                }
            )
            for each in super().weights()
        ]


def fused_choose(
    logits: Tensor,
    scales: Tensor | None,
    uniforms: Tensor,
    config: SamplingConfig,
    temperatures: Tensor | None = None,
) -> Tensor:
    """:func:`lpd.sampling.logits.choose` by one kernel where nothing is filtered and one
    temperature is for all tokens; else by that function itself."""
    schedule = find_schedule("temperature", config.temperature_schedule)
    one_temperature = temperatures is None and schedule.by_entropy is None
    if config.top_k or config.top_p < 1 or not one_temperature:
        return choose(logits, scales, uniforms, config, temperatures)
    return kernels.guided_draw(logits, scales, config.temperature, uniforms)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way."""

    stack: type[DecodeStack]
    """Runs the blocks."""
    choose: Choose = choose
    """Makes tokens of logits."""


TABLE: dict[str, Backend] = {
    "eager": Backend(stack=DecodeStack),
    "packed": Backend(stack=PackedStack),
    "compiled": Backend(stack=CompiledStack),
    "fused": Backend(stack=FusedStack, choose=fused_choose),
}


def choose_backend(name: str, model: LPD, dtype: torch.dtype) -> str:
    """The backend's name, where ``name`` may be auto.

    Args:
        name: what was asked for.
        model: what it is for. Weights that are in training are never copied.
        dtype: what is computed in.

    Raises:
        InputError: the model is where the backend is not.
    """
    weight = model.head.weight
    if name == "packed" and weight.device.type != "cpu":
        raise InputError(
            f"backend packed is for CPUs, and the model is on {weight.device}: choose another one"
        )
    if name == "packed" and weight.requires_grad:
        raise InputError(
            "backend packed copies the weights, and these are in training: choose another one"
        )
    if name != AUTO:
        return name
    if weight.device.type == "cuda":
        return "compiled"
    if weight.device.type != "cpu" or weight.requires_grad or not can_pack(dtype):
        return "eager"
    num_bytes = sum(each.numel() * each.element_size() for each in model.blocks.parameters())
    return "packed" if dtype != torch.float32 or num_bytes >= _PACK_FROM_BYTES else "eager"
