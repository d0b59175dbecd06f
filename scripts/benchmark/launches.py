"""Count what a computation launches: by the dispatcher on any machine, by the profiler on CUDA.

Under :class:`~torch._subclasses.fake_tensor.FakeTensorMode` a machine without a GPU counts what a
GPU would be asked to do: operators that compute on fake CUDA tensors. An operator may take more
than one kernel, so this is the least number of kernels of an uncompiled run; the profiler counts
kernels.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpd.models.lpd import LPD, LPDConfig
from lpd.orders.group_sizes import GroupSizes
from lpd.sampling.backends import TABLE
from lpd.sampling.config import SamplingConfig
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import DecodeInputs, Sampler

SAMPLING = SamplingConfig()
"""Draws from all tokens, at temperature 1."""
ATTENTION = "scaled_dot_product_attention"

_MADE_OF_OTHERS = "CompositeImplicitAutograd"
# They make a tensor without writing to it.
_ALLOCATIONS = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
)


def count_operators(run: Callable[[], object]) -> Counter[str]:
    """How often each operator is asked to compute something, by the operator's name.

    Views, aliases, allocations and operators on no elements are left out. Attention counts as one,
    whatever stands for it where there is no GPU.
    """
    counter = _Operators()
    with _OneAttention(counter), counter:
        run()
    return counter.counts


def count_launches(run: Callable[[], object]) -> int:
    """How many operators are asked to compute something: see :func:`count_operators`."""
    return count_operators(run).total()


class _Operators(TorchDispatchMode):
    """Counts operators while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.in_attention = False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode operators that are made of others come whole. What takes them apart is
        # what runs, in C++: a decomposition in Python may copy where that does not.
        if func.namespace != "prim" and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), _MADE_OF_OTHERS
        ):
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        result = func(*args, **kwargs)
        if not self.in_attention and _computes(func, args, kwargs, result):
            self.counts[func.overloadpacket.__name__] += 1
        return result


class _OneAttention(TorchFunctionMode):
    """Counts attention as it is called: without a GPU it falls apart into many operators."""

    def __init__(self, counter: _Operators) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.counter.counts[ATTENTION] += 1
        self.counter.in_attention = True
        try:
            return func(*args, **kwargs)
        finally:
            self.counter.in_attention = False


def _computes(func: OpOverload, args: Any, kwargs: Any, result: Any) -> bool:
    if func.is_view or func.overloadpacket.__name__ in _ALLOCATIONS:
        return False
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    if not any(output.numel() for output in outputs):
        return False
    if func._schema.is_mutable:
        return True
    inputs = {
        leaf.untyped_storage()._cdata
        for leaf in tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor)
    }
    if not inputs and all(output.ndim == 0 and output.device.type == "cpu" for output in outputs):
        return False  # a number in the host's memory, for an operator on tensors
    return any(output.untyped_storage()._cdata not in inputs for output in outputs)


class AbsentDevice(TorchFunctionMode):
    """Lets fake tensors be on a device that torch was built without.

    Most operators do not mind. Tensors' own indexing, ``copy_`` and ``contiguous`` ask the device
    for its guard before the dispatcher sees them; here the dispatcher is called instead.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args, **kwargs)
        if func is Tensor.contiguous:
            return torch.ops.aten.contiguous(*args, **kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            view = _basic_view(args[0], args[1])
            if view is not None and func is Tensor.__getitem__:
                return view
            if view is not None and isinstance(args[2], Tensor):
                return torch.ops.aten.copy_(view, args[2])
        return func(*args, **kwargs)


def _basic_view(tensor: Tensor, index: Any) -> Tensor | None:
    """``tensor[index]`` where the index is of integers, slices, None and an ellipsis; else None."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is ... or type(part) in (int, slice) for part in parts):
        return None
    missing = tensor.ndim - sum(part is not None and part is not ... for part in parts)
    at = parts.index(...) if ... in parts else len(parts)
    parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
    view, dim = tensor, 0
    for part in parts:
        if isinstance(part, int):
            view = view.select(dim, part)
            continue
        if part is None:
            view = view.unsqueeze(dim)
        elif part != slice(None):
            view = torch.ops.aten.slice(view, dim, part.start, part.stop, part.step or 1)
        dim += 1
    return view


def profiled_launches(run: Callable[[], object]) -> Counter[str]:
    """What a run does on a CUDA device, by the kernel's name: kernels, copies and fills, also those
    inside a CUDA graph."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return Counter(
        event.name
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )


def decoding_launches(
    config: LPDConfig,
    group_sizes: GroupSizes,
    *,
    batch_size: int,
    guided: tuple[bool, ...],
    dtype: torch.dtype,
    backend: str = "eager",
) -> int:
    """How many operators all passes launch, by the dispatcher.

    Blocks between the first and the last launch the same, so two depths give all of them. The
    arguments are those of :func:`fake_decoding`.
    """

    def launches(depth: int) -> int:
        shallow = dataclasses.replace(config, depth=depth)
        decoding = fake_decoding(
            shallow,
            group_sizes,
            batch_size=batch_size,
            guided=guided,
            dtype=dtype,
            backend=backend,
        )
        with decoding as run:
            return count_launches(run)

    if config.depth <= 3:
        return launches(config.depth)
    two = launches(2)
    return two + (config.depth - 2) * (launches(3) - two)


@contextlib.contextmanager
def fake_decoding(
    config: LPDConfig,
    group_sizes: GroupSizes,
    *,
    batch_size: int,
    guided: tuple[bool, ...],
    dtype: torch.dtype,
    backend: str = "eager",
    device: str = "cuda",
    sampling: SamplingConfig = SAMPLING,
    has_null: bool = False,
) -> Iterator[Callable[[], Tensor]]:
    """All passes on fake tensors, as a function to count.

    Args:
        config: the model's.
        group_sizes: of the passes; what they leave of the positions is known.
        batch_size: B.
        guided: which passes are guided.
        dtype: of linear layers, resident in it, and of the cache.
        backend: how blocks are run; one that neither compiles nor packs.
        device: what the fake tensors are said to be on; it need not be there.
        sampling: how tokens are drawn; its guidance does not matter. What is decoded again is
            guided where all passes are.
        has_null: whether guidance leads away from conditions of the images' own.
    """
    with torch.device("meta"):
        model = LPD(config).eval().requires_grad_(False)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    linears = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for own, _ in module.named_parameters()
    }

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    def integers(*shape: int) -> Tensor:
        return empty(*shape, dtype=torch.int64)

    with FakeTensorMode(), AbsentDevice():
        state = {
            name: empty(*shape, dtype=dtype) if name in linears else empty(*shape)
            for name, shape in shapes.items()
        }
        model.load_state_dict(state, assign=True)
        way = TABLE[backend]
        sampler = Sampler(model, batch_size, model.stack(dtype, way.stack), way.choose)
        num_positions, num_decoded = config.num_positions, sum(group_sizes)
        sizes = refine_sizes(sampling, group_sizes)
        has_temperatures = sampling.temperatures(num_positions) is not None
        inputs = DecodeInputs(
            condition=model.conditioning.empty(batch_size, device=device),
            null=model.conditioning.empty(batch_size, device=device) if has_null else None,
            orders=integers(batch_size, num_decoded),
            uniforms=empty(batch_size, num_decoded + sum(sizes)),
            scales=empty(num_decoded),
            temperatures=empty(num_decoded) if has_temperatures else None,
            known=integers(batch_size, num_positions - num_decoded),
            codes=integers(batch_size, num_positions),
            group_sizes=group_sizes,
            guided=guided,
            config=sampling,
            refine_sizes=sizes,
            refine_guided=(all(guided),) * len(sizes),
        )
        yield lambda: sampler.decode(inputs).codes
