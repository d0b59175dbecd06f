"""What pipelines of all kinds of models share: models and how they compute, calls, edits.

A kind's own module says what images are asked for by: classes (:mod:`lpd.pipeline`) or prompts
(:mod:`lpd.text_pipeline`). n images in a call.
"""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from lpd.data.images import read_upright
from lpd.data.masks import Mask, read_mask
from lpd.distributed import pick_device
from lpd.editing import Edited, Editor
from lpd.errors import InputError
from lpd.generation import ImageGenerator, OnPass, Preview
from lpd.models.lpd import LPD, LPDConfig
from lpd.orders.plan import DecodePlan
from lpd.pipeline_inputs import (
    Indices,
    Picture,
    Wanted,
    checked_indices,
    checked_places,
    read_all,
    short,
)
from lpd.pipeline_options import OutpaintCall, PipelineOptions
from lpd.pipeline_results import EditResult, PipelineResult, Step, check_finite, to_images
from lpd.pretrained import TOKENIZER_FOLDER, find_tokenizer, load_pretrained, load_tokenizer
from lpd.progress import progress
from lpd.sampling.editing import EditSettings
from lpd.sampling.execution import AUTO, ExecutionOptions
from lpd.sampling.refinement import refine_sizes
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained

PIPELINES = {"class": "lpd.pipeline.LPDPipeline", "text": "lpd.text_pipeline.LPDTextPipeline"}
"""By what a model is conditioned on, the pipeline that it is for."""
_DTYPES = {
    torch.float32: False,
    "float32": False,
    torch.bfloat16: True,
    "bfloat16": True,
    None: None,
    "auto": None,
}

Callback = Callable[[Step], None]
"""Called after each pass of each batch."""


class BasePipeline:
    """A model, its tokenizer, and how they compute."""

    kind: ClassVar[str]
    """What its models are conditioned on."""
    asked_by: ClassVar[str]
    """What a message calls that: labels or prompts."""

    def __init__(
        self,
        model: LPD,
        tokenizer: VQTokenizer,
        *,
        dtype: torch.dtype | str | None = torch.float32,
        batch_size: int = 64,
        backend: str = AUTO,
        cuda_graphs: bool = True,
    ) -> None:
        """Args:
            model: the transformer, in evaluation mode.
            tokenizer: the tokenizer whose codes it models.
            dtype: what to compute in: torch.float32, torch.bfloat16, or None for the faster of
                these two. For bfloat16 the model's own weights are rounded, for whoever else has
                it too.
            batch_size: most images generated at a time.
            backend: how the transformer's blocks are run, see :mod:`lpd.sampling.execution`. On
                CUDA they are compiled by default, which takes a while in the first call.
            cuda_graphs: on CUDA, generate by captured graphs.

        Raises:
            InputError: the model is for another pipeline, the tokenizer's codebook is not its
                vocabulary, there is no such dtype or backend, or float32 is wanted of weights that
                were rounded.
        """
        check_kind(model.config, self.kind, "this model")
        check_dtype(dtype)
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "bf16": _DTYPES[dtype],
            "backend": ExecutionOptions(backend=backend).backend,
            "cuda_graphs": cuda_graphs,
        }
        self.generator = ImageGenerator(model, tokenizer, **self._settings)
        self._progress: dict[str, Any] = {}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and configurations into a folder that ``from_pretrained`` takes.

        Raises:
            InputError: the weights were rounded to bfloat16 for computing.
        """
        # Another pipeline of the same model may have done it.
        if any(weight.dtype == torch.bfloat16 for weight in self.model.parameters()):
            raise InputError(
                "this pipeline's weights are rounded to bfloat16; load it with "
                "dtype=torch.float32 to save it"
            )
        folder = Path(folder)
        self.tokenizer.save(folder / TOKENIZER_FOLDER)
        save_pretrained(folder, self.model, self._saved_config())

    def _saved_config(self) -> LPDConfig:
        """The configuration that is saved with the model."""
        return self.model.config

    def to(self, device: str | torch.device) -> Self:
        """Move to a device.

        Raises:
            InputError: there is no such device, or the backend is for others; the pipeline stays
                where it is.
        """
        where, before = pick_device(str(device)), self.device
        if where == before:
            return self
        # Weights that are rounded stay so, also where bfloat16 would not be chosen.
        settings = self._settings | ({"bf16": True} if self.generator.bf16 else {})
        try:
            moved = self.model.to(where), self.tokenizer.to(where)
            self.generator = ImageGenerator(*moved, **settings)
        except BaseException:
            self.model.to(before)
            self.tokenizer.to(before)
            raise
        return self

    @property
    def model(self) -> LPD:
        """The transformer."""
        return self.generator.model

    @property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer."""
        return self.generator.tokenizer

    @property
    def device(self) -> torch.device:
        """Where images are generated."""
        return self.generator.device

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the code grid."""
        return self.generator.grid

    @property
    def img_size(self) -> int:
        """Image side in pixels."""
        return self.model.config.img_size

    def set_progress_bar_config(self, **options: Any) -> None:
        """Give the progress bar tqdm's options; ``disable=True`` turns it off."""
        self._progress = options

    def encode(self, images: Picture | Sequence[Picture]) -> npt.NDArray[np.int64]:
        """The codes of images, prepared as in training.

        Args:
            images: one or several, of any size. Files are turned as their EXIF says, which
                training does not do; images in memory are taken as they are.

        Returns:
            (n, N) in raster order.

        Raises:
            InputError: an image cannot be read.
        """
        editor = Editor(self.generator)
        return editor.encode(editor.prepare(read_all(images, read_upright)))

    def _generate(
        self,
        wanted: Wanted,
        options: PipelineOptions,
        *,
        seed: int,
        image_indices: Indices | None,
        callback: Callback | None,
        callback_images: Iterable[int] | None,
        started: float,
    ) -> PipelineResult:
        """Generate images.

        Args:
            wanted: what they are to show.
            options: how.
            seed: the run's.
            image_indices: (n,) the images' indices in the run; by default from 0 on.
            callback: called after each pass of each batch.
            callback_images: which images it is for; None for all.
            started: when the call began, by ``time.perf_counter``.
        """
        indices = checked_indices(image_indices, len(wanted))
        order_file = options.lpd_order_file
        source = options.decoding.source(
            self.grid, lpd_order_file=None if order_file is None else Path(order_file)
        )
        plans = [source.plan(seed, np.empty(0, dtype=np.int64))]  # checks before anything is made

        def plan_of(batch: npt.NDArray[np.int64]) -> DecodePlan:
            plans.append(source.plan(seed, batch))
            return plans[-1]

        batches = self.generator.batches(
            wanted.labels,
            plan_of,
            seed=seed,
            sampling=options.sampling,
            image_indices=indices,
            null_labels=wanted.null_labels,
            on_pass=self._on_pass(callback),
            watched=checked_places(callback_images, len(wanted)),
        )
        images, codes = [], [np.empty((0, self.model.config.num_positions), dtype=np.int64)]
        with progress(total=len(wanted), unit="image", **self._progress) as bar:
            for batch in batches:
                check_finite(batch.finite.cpu().numpy())
                codes.append(batch.codes.cpu().numpy())
                images += to_images(batch.images.cpu().numpy())
                bar.update(len(batch.codes))
        plan = DecodePlan(np.concatenate([each.orders for each in plans]), source.group_sizes)
        return PipelineResult(
            images=images,
            codes=np.concatenate(codes),
            labels=wanted.named,
            plan=plan,
            num_passes=plan.num_groups + len(refine_sizes(options.sampling, plan.group_sizes)),
            seconds=time.perf_counter() - started,
        )

    def _inpaint(
        self,
        images: Picture | Sequence[Picture],
        masks: Picture | Mask | Sequence[Picture | Mask],
        wanted: Wanted,
        count: int,
        settings: EditSettings,
        *,
        keep_painted: bool,
        **how: Any,
    ) -> EditResult:
        """Edit by masks; the rest is as of :meth:`_edit`."""
        edit = functools.partial(self._editor.inpaint, settings=settings, keep_painted=keep_painted)
        given = (read_all(images, read_upright), read_all(masks, read_mask))
        return self._edit(edit, given, wanted, count, **how)

    def _variations(
        self,
        images: Picture | Sequence[Picture],
        wanted: Wanted,
        count: int,
        settings: EditSettings,
        *,
        keep: float | npt.NDArray[np.bool_],
        **how: Any,
    ) -> EditResult:
        """Keep some of the codes; the rest is as of :meth:`_edit`."""
        edit = functools.partial(self._editor.variations, settings=settings, keep=keep)
        return self._edit(edit, (read_all(images, read_upright),), wanted, count, **how)

    def _outpaint(
        self,
        images: Picture | Sequence[Picture],
        wanted: Wanted,
        count: int,
        options: OutpaintCall,
        **how: Any,
    ) -> EditResult:
        """Continue images; the rest is as of :meth:`_edit`."""
        edit = functools.partial(
            self._editor.outpaint, settings=options.settings, options=options.canvas
        )
        return self._edit(edit, (read_all(images, read_upright),), wanted, count, **how)

    @property
    def _editor(self) -> Editor:
        """What edits with the bar that is asked for."""
        return Editor(self.generator, bar=self._progress)

    def _edit(
        self,
        edit: Callable[..., Edited],
        given: tuple[list[Any], ...],
        wanted: Wanted,
        count: int,
        *,
        image_indices: Indices | None,
        callback: Callback | None,
        started: float,
    ) -> EditResult:
        """Edit images, each as many times as is asked for.

        Args:
            edit: takes lists such as ``given``, each of one entry for every result, then their
                labels.
            given: images, and masks where there are any: one for all, or one for each label.
            wanted: what they are to show: one for all, or one for each image.
            count: how many results of each.
            image_indices: (n,) the results' indices in the run; by default from 0 on.
            callback: as for generation.
            started: likewise.
        """
        counts = [*map(len, given), len(wanted)]
        if set(counts) - {1, max(counts)}:
            raise InputError(
                f"images, masks and {self.asked_by} must be as many as each other, or one for all; "
                f"got {', '.join(map(str, counts))}"
            )
        rows = [row for row in range(max(counts)) for _ in range(count)]
        lists = ([entries[row % len(entries)] for row in rows] for entries in given)
        each = wanted.rows(row % len(wanted) for row in rows)
        edited = edit(
            *lists,
            each.labels,
            null_labels=each.null_labels,
            image_indices=checked_indices(image_indices, len(each)),
            on_pass=self._on_pass(callback),
        )
        check_finite(edited.finite)
        return EditResult(
            images=to_images(edited.images),
            sources=to_images(edited.sources),
            labels=each.named,
            edited=edited,
            seconds=time.perf_counter() - started,
        )

    def _on_pass(self, callback: Callback | None) -> OnPass | None:
        if callback is None:
            return None
        if not callable(callback):
            raise InputError(f"callback must be a function of a Step, got {short(callback)}")

        def tell(rows: npt.NDArray[np.int64], number: int, num_passes: int, known: Preview) -> None:
            callback(Step(number, num_passes, rows, known, self.generator))

        return tell


def load_models(
    name: str | Path,
    tokenizer: str | Path | None,
    device: torch.device,
    *,
    kind: str,
    preset: str | None,
    img_size: int | None,
    hub: dict[str, Any],
) -> tuple[LPD, VQTokenizer]:
    """Load a model and its tokenizer.

    Args:
        name: the model, as of :func:`lpd.pretrained.load_pretrained`.
        tokenizer: the same for the tokenizer; None for the one beside the model, or that of the
            published models.
        device: where they go.
        kind: what the model is to be conditioned on.
        preset: the model's preset, for weights that are known neither by a configuration nor by
            their name.
        img_size: image side in pixels, for the same.
        hub: for huggingface_hub.

    Raises:
        InputError: a file is missing, damaged, or does not fit, the model is for another pipeline,
            or the hub cannot be reached.
    """
    model = load_pretrained(name, device, preset=preset, img_size=img_size, **hub)
    check_kind(model.config, kind, str(name))
    if tokenizer is None:
        tokenizer = find_tokenizer(name, model.config, **hub)
    # A revision is the model's: another repository has none of that name.
    of_others = {option: value for option, value in hub.items() if option != "revision"}
    return model, load_tokenizer(tokenizer, device, **of_others)


def check_dtype(dtype: Any) -> None:
    """Raise InputError unless it is a dtype to compute in, or its name."""
    is_name = dtype is None or isinstance(dtype, torch.dtype | str)
    if not is_name or dtype not in _DTYPES:
        raise InputError(f"dtype must be float32, bfloat16 or None, got {short(dtype)}")


def check_kind(config: LPDConfig, kind: str, name: str) -> None:
    """Check that a model is of a pipeline's kind.

    Raises:
        InputError: it is another's, which the message names.
    """
    if config.conditioning != kind:
        raise InputError(
            f"{name} is conditioned on {config.conditioning}, and {PIPELINES[kind]} is for models "
            f"conditioned on {kind}: use {PIPELINES[config.conditioning]}"
        )
