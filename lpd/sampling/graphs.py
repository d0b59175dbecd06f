"""A whole generation as one CUDA graph: recorded once per shape, replayed ever after.

Launching a small kernel takes a CPU longer than a GPU takes to run it, so an eager generation waits
for its launches. A graph launches everything at once. All lengths of a decode plan are static: the
KV cache grows by plain slices, nothing is padded or masked, and what differs between two batches is
in the tensors of :class:`~lpd.sampling.sampler.DecodeInputs`, which become the graph's buffers.

Nothing here is about CUDA but :class:`CudaRecorder`; tests record by other means.
"""

import dataclasses
import gc
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lpd.sampling.sampler import DecodeInputs

Outputs = tuple[Tensor, ...]
Work = Callable[[DecodeInputs], Outputs]

_PER_IMAGE = ("condition", "null", "orders", "uniforms", "known", "codes")
_SHARED = ("scales", "temperatures")
_MOST_MET = 64  # shapes that were met once and not recorded, of which no more is kept than a key
_WARM_UP_RUNS = 2  # libraries choose kernels and allocate in the first; the second shows it is over


class Recorder(Protocol):
    """Records what a device is told to do."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Run ``work`` and record it.

        Returns:
            What does it again, in the same memory, and where the outputs are after that.

        Raises:
            RuntimeError: it cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs, whose memory they share: they must be replayed on one stream, and a
    graph's outputs must be copied before another one is replayed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        # One for all: memory is shared by graphs that were captured on the same stream.
        self._stream: torch.cuda.Stream | None = None

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        with torch.cuda.device(self._device):
            stream = self._stream = self._stream or torch.cuda.Stream()
            before = torch.cuda.current_stream()
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_RUNS):
                    work()
            before.wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            gc.collect()  # what is collected while capturing may not be freed then
            graph = torch.cuda.CUDAGraph()
            try:
                # thread_local: another thread may prepare the next batch meanwhile, and allocate.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
                ):
                    outputs = work()
            finally:
                # A capture that fails leaves its stream the current one.
                torch.cuda.set_stream(before)
        return graph.replay, outputs


@dataclass(frozen=True)
class _Recorded:
    buffers: DecodeInputs
    replay: Callable[[], None]
    outputs: Outputs


class GraphRunner:
    """Runs work on batches by recorded graphs.

    Batches are rounded up to a power of two, or to the largest batch: few shapes are recorded, and
    a run's last batch needs none of its own. An image does not depend on its batch, so the images
    beside those asked for change nothing.

    Of shapes with known cells there is one for every number of them, and who edits with many masks
    meets many: such a shape is recorded when it is met again, as recording takes longer than to run
    it once, and would push out a graph that is in use.
    """

    def __init__(
        self, work: Work, recorder: Recorder, *, batch_size: int, capacity: int = 8
    ) -> None:
        """Args:
        work: from inputs to outputs, whose first dimension is the images'. It may read nothing
            but the inputs and what never changes, and allocate what it needs.
        recorder: records it.
        batch_size: most images of a batch.
        capacity: most graphs kept; the least recently used goes first.
        """
        self._work = work
        self._recorder = recorder
        self._batch_size = batch_size
        self._capacity = capacity
        # None where there was no room for a graph.
        self._recorded: OrderedDict[Any, _Recorded | None] = OrderedDict()
        self._met: OrderedDict[Any, None] = OrderedDict()
        self._gave_up = False
        self._told: set[type[RuntimeError]] = set()
        self.record_seconds = 0.0
        """Time spent recording, warming up included, in all."""

    @property
    def num_recorded(self) -> int:
        """Graphs that are kept."""
        return len(self._recorded) - len(self._without_graph())

    def __call__(self, inputs: DecodeInputs) -> Outputs:
        """Do the work on a batch, by a graph where one can be had.

        The outputs are the caller's: no later call writes to them.
        """
        recorded = self.ready(inputs) if self._pays(inputs) else None
        with torch.inference_mode():
            if recorded is None:
                return self._work(inputs)
            _copy(inputs, recorded.buffers)
            recorded.replay()
            return tuple(each[: len(inputs)].clone() for each in recorded.outputs)

    def _pays(self, inputs: DecodeInputs) -> bool:
        """Whether a batch is run by a graph, and recorded where there is none."""
        if not inputs.known.shape[1]:
            return True
        key = _key(inputs, self._rounded(len(inputs)))
        if key in self._recorded:
            return True
        if key in self._met:
            del self._met[key]  # where it is pushed out, it is to be met twice again
            return True
        self._met[key] = None
        if len(self._met) > _MOST_MET:
            self._met.popitem(last=False)
        return False

    @torch.inference_mode()
    def ready(self, inputs: DecodeInputs) -> "_Recorded | None":
        """Record the graph of a batch, where there is none: then a call only replays it.

        Returns:
            The graph; None where the batch is run without one.
        """
        if self._gave_up:
            return None
        size = self._rounded(len(inputs))
        key = _key(inputs, size)
        if key in self._recorded:
            self._recorded.move_to_end(key)
            return self._recorded[key]
        failure: RuntimeError | None = None
        recorded: _Recorded | None = None
        try:
            recorded = self._record(inputs, size)
        except RuntimeError as error:
            # Its frames hold the memory of the attempt, which the next one may need.
            failure = error.with_traceback(None)
        if failure is not None:
            # There is need of the graphs' memory, or they are of no use.
            self._recorded = OrderedDict.fromkeys(self._without_graph())
            # Without room for this batch's graph there may be room for a smaller one's.
            self._gave_up = not isinstance(failure, torch.OutOfMemoryError)
            self._warn(failure)
        self._recorded[key] = recorded
        if len(self._recorded) > self._capacity:  # recording has waited for its last replay
            self._recorded.popitem(last=False)
        return recorded

    def _without_graph(self) -> list[Any]:
        """The shapes for which there was no room."""
        return [key for key, recorded in self._recorded.items() if recorded is None]

    def _rounded(self, num_images: int) -> int:
        return min(1 << (num_images - 1).bit_length(), self._batch_size)

    def _record(self, inputs: DecodeInputs, size: int) -> _Recorded:
        start = time.perf_counter()
        buffers = _padded(inputs, size)
        replay, outputs = self._recorder.record(lambda: self._work(buffers))
        self.record_seconds += time.perf_counter() - start
        return _Recorded(buffers, replay, outputs)

    def _warn(self, error: RuntimeError) -> None:
        if type(error) not in self._told:
            self._told.add(type(error))
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"decoding is not captured in a CUDA graph, and is slower for it: {reason}",
                stacklevel=4,
            )


def _key(inputs: DecodeInputs, size: int) -> Any:
    """What a graph is good for: equal for batches that differ in the values of tensors alone."""
    config = inputs.config
    temperature: Any = None
    if inputs.temperatures is None:  # else it is in that tensor
        temperature = (
            config.temperature,
            config.temperature_schedule,
            config.parameters("temperature"),
        )
    return (
        size,
        (inputs.group_sizes, inputs.guided),
        (inputs.refine_sizes, inputs.refine_guided),
        (temperature, config.top_k, config.top_p),
        tuple(
            (name, each.dtype, each.shape[1:])
            for name, each in _tensors(inputs, (*_PER_IMAGE, *_SHARED)).items()
        ),
    )


def _tensors(inputs: DecodeInputs, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the names that are there."""
    found = {name: getattr(inputs, name) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def _padded(inputs: DecodeInputs, size: int) -> DecodeInputs:
    """A copy with ``size`` images: those of ``inputs``, then its first again and again."""
    rows = [*range(len(inputs)), *[0] * (size - len(inputs))]
    copies: dict[str, Any] = {
        name: each[rows] for name, each in _tensors(inputs, _PER_IMAGE).items()
    }
    shared: dict[str, Any] = {
        name: each.clone() for name, each in _tensors(inputs, _SHARED).items()
    }
    return dataclasses.replace(inputs, **copies, **shared)


def _copy(inputs: DecodeInputs, buffers: DecodeInputs) -> None:
    """Copy a batch into buffers; the images beyond it are those of an earlier one, and as good."""
    for name, each in _tensors(inputs, _PER_IMAGE).items():
        getattr(buffers, name)[: len(inputs)].copy_(each)
    for name, each in _tensors(inputs, _SHARED).items():
        getattr(buffers, name).copy_(each)
