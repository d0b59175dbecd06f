"""From labels and plans to images: sampler, tokenizer, precision and randomness meet here.

Image i of a run depends on its label, its plan's row, the seed and i alone. So images do not depend
on the batch size or on the number of processes: exactly on CPU in float32; elsewhere a near-tie may
flip a token.

B images of a batch, n images in all, N positions, K of them known beforehand.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.ahead import one_ahead
from lpd.errors import InputError, warn_caller
from lpd.models.condition import Condition
from lpd.models.lpd import LPD
from lpd.orders.plan import DecodePlan
from lpd.randomness import token_uniforms
from lpd.sampling.backends import TABLE, choose_backend
from lpd.sampling.config import SamplingConfig
from lpd.sampling.execution import AUTO
from lpd.sampling.graphs import CudaRecorder, GraphRunner
from lpd.sampling.precision import bf16_pays
from lpd.sampling.refinement import refine_sizes
from lpd.sampling.sampler import Decoded, DecodedPass, DecodeInputs, Sampler
from lpd.tokenizer.vq_tokenizer import FLOAT32, PixelDecoder, VQTokenizer

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Labels = Sequence[Any] | npt.NDArray[np.integer]
"""What each image is to show, as the model's conditioning reads it: a class, None for no class."""


Plans = Callable[[npt.NDArray[np.int64]], DecodePlan]
"""The plan of the images of these indices in the run."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A batch of images as they are generated."""

    codes: Tensor
    """(B, N) int64, in raster order."""
    images: Tensor
    """(B, 3, H, W) uint8."""
    finite: Tensor
    """(B,) whether the numbers that an image was drawn by are finite; one that is not is no image
    of the model's."""
    log_probs: Tensor | None = None
    """(B, M) in nats, float32: with what probability each code was drawn, by place in generation
    order; see :class:`lpd.sampling.sampler.Decoded`. None where the generator was not asked for
    them."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What is known of a batch of images after a pass."""

    codes: Tensor
    """(B, N) int64, in raster order; 0 where nothing is known."""
    known: Tensor
    """(B, N) which codes are known."""
    grid: tuple[int, int]
    """Rows and columns of the N codes."""

    @classmethod
    def before(cls, inputs: DecodeInputs, grid: tuple[int, int]) -> Self:
        """What is known before the first pass."""
        known = torch.zeros_like(inputs.codes, dtype=torch.bool)
        return cls(codes=inputs.codes, known=known.scatter(1, inputs.known, True), grid=grid)

    def after(self, decoded: DecodedPass) -> Self:
        """What is known after one pass more. What is decoded again is unknown from the first of the
        passes that do so."""
        codes, known = self.codes, self.known
        if decoded.forgotten is not None:
            codes = codes.scatter(1, decoded.forgotten, 0)
            known = known.scatter(1, decoded.forgotten, False)
        return dataclasses.replace(
            self,
            codes=codes.scatter(1, decoded.positions, decoded.tokens),
            known=known.scatter(1, decoded.positions, True),
        )


OnPass = Callable[[npt.NDArray[np.int64], int, int, Preview], None]
"""Called after each pass with the (B,) rows of a batch's images in the call, the pass's number from
1, the number of passes, and what is known."""


class ImageGenerator:
    """Generates images with a model and its tokenizer."""

    def __init__(
        self,
        model: LPD,
        tokenizer: VQTokenizer,
        *,
        batch_size: int = 64,
        bf16: bool | None = False,
        backend: str = AUTO,
        cuda_graphs: bool = True,
        rounding: str = FLOAT32,
        same_bits: bool = False,
        log_probs: bool = False,
    ) -> None:
        """Args:
            model: the transformer, in evaluation mode. With bf16 its linear layers are cast, but
                for those with gradients.
            tokenizer: the tokenizer whose codes it models, on the same device.
            batch_size: most images generated at a time.
            bf16: compute in bfloat16 what autocast would; None where it pays, which on a CPU is
                measured (:mod:`lpd.sampling.precision`).
            backend: how the blocks of a pass are run, see :mod:`lpd.sampling.execution`.
            cuda_graphs: on CUDA, generate by captured graphs.
            rounding: how pixels are made, see :func:`lpd.tokenizer.vq_tokenizer.to_pixels`.
            same_bits: on a CPU, an image's pixels do not depend on its batch by a bit, though a
                single image is decoded by a single thread then.
            log_probs: whether to tell with what probability each code was drawn.

        Raises:
            InputError: the tokenizer's codebook is not the model's vocabulary, or float32 is wanted
                of weights that were cast.
        """
        config = model.config
        tokenizer.check_fits(
            vocab_size=config.vocab_size, stride=config.stride, sha256=config.tokenizer_sha256
        )
        self.model = model
        self.tokenizer = tokenizer
        if bf16 is None:
            bf16 = bf16_pays(self.device)
        elif bf16 and self.device.type == "cpu" and not bf16_pays(self.device):
            warn_caller("on this processor bfloat16 is hardly faster than float32, or slower")
        if not bf16 and model.head.weight.dtype == torch.bfloat16:
            raise InputError(
                "this model's weights are rounded to bfloat16, by a pipeline or generator that "
                "computes in it: load the model anew for float32"
            )
        if bf16:
            cast_linears(model, torch.bfloat16)
        dtype = torch.bfloat16 if bf16 else model.head.weight.dtype
        self.batch_size = batch_size
        self.bf16 = bf16
        """Whether it computes in bfloat16."""
        self.backend = choose_backend(backend, model, dtype)
        """The backend in use."""
        way = TABLE[self.backend]
        self._sampler = Sampler(
            model, batch_size, model.stack(dtype, way.stack), way.choose, log_probs=log_probs
        )
        self._to_pixels = tokenizer.pixel_decoder(
            bf16=bf16,
            fused=self.backend == "fused",
            rounding=rounding,
            same_bits=same_bits,
        )
        self._work = _whole_generation(self._sampler, self._to_pixels, self.grid)
        self._is_compiled = False
        self.graphs: GraphRunner | None = None
        """The captured graphs, where there are any."""
        if cuda_graphs and self.device.type == "cuda":
            self.graphs = GraphRunner(self._work, CudaRecorder(self.device), batch_size=batch_size)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.model.config.num_classes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the code grid."""
        return self.model.config.grid

    @property
    def device(self) -> torch.device:
        """Where images are generated."""
        return self.tokenizer.device

    def check_wanted(self, labels: Labels, null_labels: Labels | None = None) -> None:
        """Check what is asked for.

        Args:
            labels: what each image is to show.
            null_labels: what guidance leads each image away from; by default nothing.

        Raises:
            InputError: a label the model does not know, or other numbers of them.
        """
        self.model.conditioning.check_wanted(labels)
        if null_labels is None:
            return
        if len(null_labels) != len(labels):
            raise InputError(
                f"{len(null_labels)} labels that guidance leads away from were given for "
                f"{len(labels)} images"
            )
        self.model.conditioning.check_wanted(null_labels)

    def prepare(
        self,
        labels: Labels,
        plan: DecodePlan,
        *,
        seed: int,
        image_indices: npt.NDArray[np.int64],
        sampling: SamplingConfig,
        known_codes: npt.NDArray[np.integer] | None = None,
        null_labels: Labels | None = None,
    ) -> DecodeInputs:
        """The host's work for a batch of up to ``batch_size`` images: check, draw, upload.

        It may be done in another thread, while the device runs the batch before.

        Args:
            labels: what the B images are to show.
            plan: their orders, group sizes and known cells.
            seed: the run's seed.
            image_indices: (B,) the images' indices in the run.
            sampling: how tokens are drawn.
            known_codes: (B, N) in raster order, of which the cells are read that the plan knows.
            null_labels: what guidance leads each image away from; by default nothing.

        Raises:
            InputError: a label or code the model does not know, or a plan that does not fit.
        """
        num_again = sum(refine_sizes(sampling, plan.group_sizes))
        uniforms = token_uniforms(seed, image_indices, plan.num_positions + num_again)  # (B, N + R)
        return self._sampler.upload(
            self.model.conditioning.encode(labels),
            plan,
            torch.from_numpy(uniforms[:, plan.num_known :]),
            sampling,
            None if known_codes is None else torch.from_numpy(known_codes.astype(np.int64)),
            self._null(null_labels),
        )

    def _null(self, null_labels: Labels | None) -> Condition | None:
        """What guidance leads away from; None for nothing, however it is said, so that there is no
        graph of its own for that."""
        if null_labels is None or all(label is None for label in null_labels):
            return None
        condition: Condition = self.model.conditioning.encode(null_labels)
        return condition

    def prepare_ahead(
        self, prepare: Callable[[Item], Prepared], items: Iterable[Item]
    ) -> Generator[Prepared, None, None]:
        """``map(prepare, items)``, one ahead in a thread (:func:`lpd.ahead.one_ahead`).

        Args:
            prepare: calls :meth:`prepare`.
            items: what it is called with.
        """

        def on_stream(job: tuple[Item, Any]) -> Prepared:
            item, stream = job
            # A thread begins on the default stream, and uploads must come before the caller's work.
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                return prepare(item)

        on_cuda = self.device.type == "cuda"
        # Items are taken in the caller's thread, so this is the stream that it runs batches on.
        jobs = (
            (item, torch.cuda.current_stream(self.device) if on_cuda else None) for item in items
        )
        return one_ahead(on_stream, jobs)

    def ready(self, inputs: DecodeInputs) -> None:
        """Do what the first batch of a shape needs and later ones do not, such as compiling and
        capturing, so that :meth:`run` takes no longer for it."""
        if self.graphs is not None:
            self.graphs.ready(inputs)
        elif self.backend == "compiled" and not self._is_compiled:
            self._sampler.decode(inputs)
            self._is_compiled = True

    def run(
        self, inputs: DecodeInputs, on_pass: Callable[[int, Preview], None] | None = None
    ) -> Generated:
        """The device's work for a batch: all passes, then the tokenizer's decoder.

        On CUDA it returns before the work is done, unless ``on_pass`` looks at the passes.

        Args:
            inputs: what :meth:`prepare` gave.
            on_pass: called after each pass with its number from 1 and what is known. Captured
                graphs do not stop between passes, so they are not used then.
        """
        if self.graphs is not None and on_pass is None:
            codes, images, finite, *log_probs = self.graphs(inputs)
            return Generated(
                codes=codes,
                images=images,
                finite=finite,
                log_probs=log_probs[0] if log_probs else None,
            )
        decoded = self.complete(inputs, on_pass)
        return Generated(
            codes=decoded.codes,
            images=self.pixels(decoded.codes),
            finite=decoded.finite,
            log_probs=decoded.log_probs,
        )

    def generate(
        self,
        labels: Labels,
        plan: DecodePlan,
        *,
        seed: int,
        image_indices: npt.NDArray[np.int64],
        sampling: SamplingConfig,
        known_codes: npt.NDArray[np.integer] | None = None,
        null_labels: Labels | None = None,
    ) -> Generated:
        """Generate a batch: :meth:`prepare`, then :meth:`run`."""
        return self.run(
            self.prepare(
                labels,
                plan,
                seed=seed,
                image_indices=image_indices,
                sampling=sampling,
                known_codes=known_codes,
                null_labels=null_labels,
            )
        )

    def batches(
        self,
        labels: Labels,
        plan: DecodePlan | Plans,
        *,
        seed: int,
        sampling: SamplingConfig,
        image_indices: npt.NDArray[np.int64] | None = None,
        known_codes: npt.NDArray[np.integer] | None = None,
        null_labels: Labels | None = None,
        on_pass: OnPass | None = None,
        watched: Collection[int] | None = None,
    ) -> Iterator[Generated]:
        """Generate any number of images, batch by batch; each batch is prepared in a thread while
        the one before runs.

        Args:
            labels: what the n images are to show.
            plan: their orders, group sizes and known cells; or what makes those of a batch's
                images, which is called batch by batch while the one before runs.
            seed: the run's seed.
            sampling: how tokens are drawn.
            image_indices: (n,) the images' indices in the run; by default from 0 on.
            known_codes: (n, N) in raster order, of which the cells are read that the plan knows.
            null_labels: what guidance leads each image away from; by default nothing.
            on_pass: called after each pass of each batch that is watched.
            watched: some of the n images, by their place among them: those batches are watched that
                have any of them in it, and the others run as if nobody looked on, by captured
                graphs too. By default all are watched.

        Raises:
            InputError: as :meth:`generate`; for a label at once.
        """
        self.check_wanted(labels, null_labels)  # a wrong label is named at once
        indices = np.arange(len(labels)) if image_indices is None else image_indices

        def prepare(rows: slice) -> DecodeInputs:
            return self.prepare(
                labels[rows],
                plan[rows] if isinstance(plan, DecodePlan) else plan(indices[rows]),
                seed=seed,
                image_indices=indices[rows],
                sampling=sampling,
                known_codes=None if known_codes is None else known_codes[rows],
                null_labels=None if null_labels is None else null_labels[rows],
            )

        parts = list(slices(len(labels), self.batch_size))
        prepared = self.prepare_ahead(prepare, parts)

        def run() -> Iterator[Generated]:
            with contextlib.closing(prepared):
                for rows, inputs in zip(parts, prepared, strict=True):
                    told = None
                    places = np.arange(rows.start, rows.stop)
                    is_watched = watched is None or any(place in places for place in watched)
                    if on_pass is not None and is_watched:
                        told = functools.partial(_tell, on_pass, places, inputs.num_passes)
                    yield self.run(inputs, told)

        return run()

    def complete(
        self, inputs: DecodeInputs, on_pass: Callable[[int, Preview], None] | None = None
    ) -> Decoded:
        """All passes, and no pixels: for codes that are a part of a larger image. They are not
        captured: a graph holds the tokenizer's decoder as well.

        Args: as :meth:`run`.
        """
        tell = None if on_pass is None else _telling(Preview.before(inputs, self.grid), on_pass)
        return self._sampler.decode(inputs, on_pass=tell)

    def pixels(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N) codes on the device to (B, 3, H, W) uint8; of another grid than the model's where
        one is given."""
        return self._to_pixels(codes, grid or self.grid)

    def decode(
        self, codes: npt.NDArray[np.integer], grid: tuple[int, int] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Decode (n, N) codes to (n, 3, H, W) pixels, so many at a time that there are no more than
        in ``batch_size`` images of the model's.

        Args:
            codes: in raster order.
            grid: rows and columns of the N codes; None for the model's.
        """
        num_positions = self.model.config.num_positions
        batch_size = max(1, self.batch_size * num_positions // codes.shape[1])
        height, width = (side * self.tokenizer.stride for side in grid or self.grid)
        images = [np.empty((0, 3, height, width), dtype=np.uint8)]
        for rows in slices(len(codes), batch_size):
            batch = torch.from_numpy(codes[rows].astype(np.int64)).to(self.device)  # (B, N)
            images.append(self.pixels(batch, grid).cpu().numpy())
        return np.concatenate(images)  # (n, 3, H, W)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _whole_generation(
    sampler: Sampler, decode: PixelDecoder, grid: tuple[int, int]
) -> Callable[[DecodeInputs], tuple[Tensor, ...]]:
    """All of a batch's work, as a graph captures it: the fields of :class:`Generated`.

    A function of the parts and not of the generator: held by the generator, it would keep that, and
    a GPU's memory with it, until garbage is collected.
    """

    def work(inputs: DecodeInputs) -> tuple[Tensor, ...]:
        # The sampler's own cache may be replaced by a larger one, and a graph would not know.
        decoded = sampler.decode(inputs, sampler.make_cache(inputs))
        outputs = decoded.codes, decode(decoded.codes, grid), decoded.finite
        return outputs if decoded.log_probs is None else (*outputs, decoded.log_probs)

    return work


def _telling(
    known: Preview, on_pass: Callable[[int, Preview], None]
) -> Callable[[DecodedPass], None]:
    """What tells of each pass what is known after it."""
    number = 0

    def tell(decoded: DecodedPass) -> None:
        nonlocal known, number
        known, number = known.after(decoded), number + 1
        with torch.inference_mode(False):  # what the caller does is the caller's
            on_pass(number, known)

    return tell


def _tell(
    on_pass: OnPass, rows: npt.NDArray[np.int64], num_passes: int, number: int, known: Preview
) -> None:
    on_pass(rows, number, num_passes, known)


def cast_linears(model: LPD, dtype: torch.dtype) -> None:
    """Keep the weights of the linear layers in the dtype that autocast computes them in.

    Autocast casts weights without gradients anew in every pass; this gives the same numbers and
    casts once. Weights with gradients stay as they are: they are in training.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
            module.to(dtype)


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
