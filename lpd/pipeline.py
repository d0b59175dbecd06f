"""The Python API: a model, its tokenizer, and images from classes.

from lpd.pipeline import LPDPipeline

pipe = LPDPipeline.from_pretrained("mit-han-lab/lpd_l_256")
result = pipe(["golden retriever", 207, "volcano"], **pipe.recommended(20))
result.images[0].save("golden_retriever.png")
"""

import contextlib
import functools
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lpd.classes import ClassNames, Match, class_names_of
from lpd.data.images import read_upright
from lpd.data.masks import Mask, read_mask
from lpd.distributed import pick_device
from lpd.editing import Edited, Editor
from lpd.errors import InputError
from lpd.evaluation.generated.published import NUM_CLASSES, ROWS
from lpd.generation import ImageGenerator, OnPass, Preview
from lpd.models.lpd import LPD, preset_shape
from lpd.options import from_flat, takes_options
from lpd.orders.plan import DecodePlan
from lpd.pipeline_options import OutpaintCall, PipelineOptions
from lpd.pipeline_results import EditResult, PipelineResult, Step, check_finite, to_images
from lpd.pretrained import (
    TOKENIZER_FOLDER,
    find_tokenizer,
    load_pretrained,
    load_tokenizer,
)
from lpd.progress import progress
from lpd.sampling.editing import EditSettings
from lpd.sampling.execution import AUTO, ExecutionOptions
from lpd.sampling.refinement import refine_sizes
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import save_pretrained

Label = str | int | None
"""A class by its name or number; None for no class."""

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
_MOST_CHARACTERS = 60  # of a value in a message
_PICTURES = (Image.Image, str, Path)
Picture = Image.Image | str | Path
"""An image, or its file."""


class LPDPipeline:
    """Generates images from classes."""

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
                these two.
            batch_size: most images generated at a time.
            backend: how the transformer's blocks are run, see :mod:`lpd.sampling.execution`. On
                CUDA they are compiled by default, which takes a while in the first call.
            cuda_graphs: on CUDA, generate by captured graphs.

        Raises:
            InputError: the tokenizer's codebook is not the model's vocabulary, or there is no such
                dtype or backend.
        """
        _check_dtype(dtype)
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
        self.generator = ImageGenerator(
            model,
            tokenizer,
            batch_size=batch_size,
            bf16=_DTYPES[dtype],
            backend=ExecutionOptions(backend=backend).backend,
            cuda_graphs=cuda_graphs,
        )
        self.classes: ClassNames = class_names_of(model.config)
        """The names of the model's classes."""
        self._settings: dict[str, Any] = {
            "dtype": dtype,
            "batch_size": batch_size,
            "backend": backend,
            "cuda_graphs": cuda_graphs,
        }
        self._progress: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        tokenizer: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = torch.float32,
        preset: str | None = None,
        img_size: int | None = None,
        batch_size: int = 64,
        backend: str = AUTO,
        cuda_graphs: bool = True,
        **hub: Any,
    ) -> Self:
        """Load a model and its tokenizer.

        Args:
            pretrained_model_name_or_path: a folder that LPD wrote, a weight file, or a repository
                of the hub, such as ``mit-han-lab/lpd_l_256``; see
                :func:`lpd.pretrained.load_pretrained`.
            tokenizer: the same for the tokenizer. By default it is the one that
                :meth:`save_pretrained` has put beside the model, or else that of the published
                models.
            device: cpu, cuda, ...; by default CUDA where there is one.
            dtype: as for the class.
            preset: the model's preset, for weights that are known neither by a configuration nor
                by their name.
            img_size: image side in pixels, for the same.
            batch_size: as for the class.
            backend: as for the class.
            cuda_graphs: as for the class.
            hub: for huggingface_hub: revision (of the model), cache_dir, token, local_files_only,
                ...

        Raises:
            InputError: a file is missing, damaged, or does not fit, or the hub cannot be reached.
            TypeError: there is no option of a name.
        """
        _check_dtype(dtype)  # before anything is fetched
        where = pick_device(None if device is None else str(device))
        name = pretrained_model_name_or_path
        model = load_pretrained(name, where, preset=preset, img_size=img_size, **hub)
        if tokenizer is None:
            tokenizer = find_tokenizer(name, model.config, **hub)
        # A revision is the model's: another repository has none of that name.
        of_tokenizer = {option: value for option, value in hub.items() if option != "revision"}
        return cls(
            model,
            load_tokenizer(tokenizer, where, **of_tokenizer),
            dtype=dtype,
            batch_size=batch_size,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and configurations into a folder that :meth:`from_pretrained`
        takes.

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
        save_pretrained(folder, self.model, self.model.config)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device.

        Raises:
            InputError: there is no such device.
        """
        where = pick_device(str(device))
        if where != self.device:
            moved = type(self)(self.model.to(where), self.tokenizer.to(where), **self._settings)
            self.generator = moved.generator
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

    @property
    def num_classes(self) -> int:
        """C."""
        return self.generator.num_classes

    def find_classes(self, text: str) -> list[Match]:
        """The classes whose names are like a text, the nearest first."""
        return self.classes.find(text)

    def recommended(self, generation_steps: int) -> dict[str, Any]:
        """The options of the published setting of this model in so many passes, for a call.

        Raises:
            InputError: the model is none of the published ones, or not with so many passes.
        """
        config = self.model.config
        is_published_kind = (config.conditioning, config.num_classes) == ("class", NUM_CLASSES)
        shape = (config.depth, config.dim, config.num_heads)
        rows = {
            row.generation_steps: row
            for row in ROWS.values()
            if is_published_kind
            and (preset_shape(row.preset), row.img_size) == (shape, config.img_size)
        }
        if generation_steps not in rows:
            known = " or ".join(map(str, sorted(rows)))
            what = f"has published settings of {known} passes" if rows else "is no published one"
            raise InputError(f"this model {what}, so none of {generation_steps} passes")
        row = rows[generation_steps]
        return {
            "generation_steps": generation_steps,
            "cfg": row.cfg,
            "repulsion_threshold": row.repulsion_threshold,
        }

    def set_progress_bar_config(self, **options: Any) -> None:
        """Give the progress bar tqdm's options; ``disable=True`` turns it off."""
        self._progress = options

    @takes_options(PipelineOptions)
    def __call__(
        self,
        labels: Label | Sequence[Label],
        *,
        seed: int = 0,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        callback_images: Iterable[int] | None = None,
        **options: Any,
    ) -> PipelineResult:
        """Generate images of classes.

        Image i depends on its label, the options, the seed and i alone. Orders with passes of their
        own take those, not ``generation_steps``.

        Args:
            labels: a class or several, each by name or number; None for no class.
            seed: names the run's random numbers.
            num_images_per_label: how many images of each, one after the other.
            callback: called after each pass of each batch with a :class:`Step`. On CUDA passes are
                then launched one by one, which is slower.
            callback_images: which images it is for, by their index in the call; batches without any
                of them are generated at full speed, and nothing is told of them. By default all.
            options: those of :class:`PipelineOptions`, which are main_eval.py's by the same names;
                ``help(LPDPipeline)`` shows them with their defaults.

        Raises:
            InputError: a label, order, number of steps or sampling setting out of range.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        chosen = from_flat(PipelineOptions, options)
        wanted = self._labels(labels, num_images_per_label)
        order_file = chosen.lpd_order_file
        source = chosen.decoding.source(
            self.grid, lpd_order_file=None if order_file is None else Path(order_file)
        )
        plans = [source.plan(seed, np.empty(0, dtype=np.int64))]  # checks before anything is made

        def plan_of(indices: npt.NDArray[np.int64]) -> DecodePlan:
            plans.append(source.plan(seed, indices))
            return plans[-1]

        batches = self.generator.batches(
            wanted,
            plan_of,
            seed=seed,
            sampling=chosen.sampling,
            on_pass=self._on_pass(callback),
            watched=_places(callback_images, len(wanted)),
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
            labels=tuple(wanted),
            plan=plan,
            num_passes=plan.num_groups + len(refine_sizes(chosen.sampling, plan.group_sizes)),
            seconds=time.perf_counter() - started,
        )

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
        return editor.encode(editor.prepare(_read_all(images, read_upright)))

    @takes_options(EditSettings)
    def inpaint(
        self,
        images: Picture | Sequence[Picture],
        masks: Picture | Mask | Sequence[Picture | Mask],
        labels: Label | Sequence[Label],
        *,
        keep_painted: bool = False,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        **options: Any,
    ) -> EditResult:
        """Generate anew what a mask touches; with another class than the image's, swap the class.

        The codes of all other cells are the image's own, exactly. Image i depends on its image,
        mask and label, the options, the seed and i alone.

        Args:
            images: one for all labels, or one for each. Files are turned as their EXIF says.
            masks: likewise, of their images' sizes: white, or anything painted, is generated anew;
                see :func:`lpd.data.masks.painted`.
            labels: what is to be seen: a class or several, each by name or number.
            keep_painted: the other way round: keep what is painted, generate the rest.
            num_images_per_label: how many results of each, one after the other.
            callback: as for generation.
            options: those of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: an image, mask, label or setting is of no use; the message names it.
            TypeError: there is no option of a name.
        """
        settings = from_flat(EditSettings, options)
        edit = functools.partial(self._editor.inpaint, settings=settings, keep_painted=keep_painted)
        given = (_read_all(images, read_upright), _read_all(masks, read_mask))
        return self._edit(edit, given, labels, num_images_per_label, callback)

    @takes_options(EditSettings)
    def variations(
        self,
        images: Picture | Sequence[Picture],
        labels: Label | Sequence[Label],
        *,
        keep: float | npt.NDArray[np.bool_] = 0.5,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        **options: Any,
    ) -> EditResult:
        """Keep some of an image's codes and generate the others anew.

        Args:
            images: as :meth:`inpaint`, like all that follows but ``keep``.
            labels: what is to be seen.
            keep: the share of the codes that is kept, chosen at random by seed and image; or which
                cells, (rows, columns) or (N,) booleans.
            num_images_per_label: how many results of each.
            callback: as for generation.
            options: those of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: as :meth:`inpaint`.
            TypeError: there is no option of a name.
        """
        settings = from_flat(EditSettings, options)
        edit = functools.partial(self._editor.variations, settings=settings, keep=keep)
        given = (_read_all(images, read_upright),)
        return self._edit(edit, given, labels, num_images_per_label, callback)

    @takes_options(OutpaintCall)
    def outpaint(
        self,
        images: Picture | Sequence[Picture],
        labels: Label | Sequence[Label],
        *,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        **options: Any,
    ) -> EditResult:
        """Continue an image beyond its sides.

        Args:
            images: as :meth:`inpaint`, like all that follows but the options.
            labels: what is to be seen.
            num_images_per_label: how many results of each.
            callback: as for generation.
            options: those of :class:`lpd.sampling.canvas.OutpaintOptions`, which say how far, and
                of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: as :meth:`inpaint`.
            TypeError: there is no option of a name.
        """
        chosen = from_flat(OutpaintCall, options)
        edit = functools.partial(
            self._editor.outpaint, settings=chosen.settings, options=chosen.canvas
        )
        given = (_read_all(images, read_upright),)
        return self._edit(edit, given, labels, num_images_per_label, callback)

    @property
    def _editor(self) -> Editor:
        """What edits with the bar that is asked for."""
        return Editor(self.generator, bar=self._progress)

    def _edit(
        self,
        edit: Callable[..., Edited],
        given: tuple[list[Any], ...],
        labels: Label | Sequence[Label],
        num_images_per_label: int,
        callback: Callback | None,
    ) -> EditResult:
        """Edit images, each as many times as is asked for.

        Args:
            edit: takes lists such as ``given``, each of one entry for every result, then their
                labels.
            given: images, and masks where there are any: one for all, or one for each label.
            labels: as they were given.
            num_images_per_label: how many results of each.
            callback: as for generation.
        """
        started = time.perf_counter()
        each = (*given, self._labels(labels, 1))
        counts = [len(entries) for entries in each]
        if set(counts) - {1, max(counts)}:
            raise InputError(
                "images, masks and labels must be as many as each other, or one for all; got "
                f"{', '.join(map(str, counts))}"
            )
        check_count(num_images_per_label)
        rows = [row for row in range(max(counts)) for _ in range(num_images_per_label)]
        *lists, wanted = ([entries[row % len(entries)] for row in rows] for entries in each)
        edited = edit(*lists, wanted, on_pass=self._on_pass(callback))
        check_finite(edited.finite)
        return EditResult(
            images=to_images(edited.images),
            sources=to_images(edited.sources),
            labels=tuple(wanted),
            edited=edited,
            seconds=time.perf_counter() - started,
        )

    def _labels(self, labels: Label | Sequence[Label], count: int) -> list[int | None]:
        """Every image's class."""
        check_count(count)
        # Arrays and tensors of no dimension say that they can be iterated over, and cannot.
        is_several = isinstance(labels, Iterable) and getattr(labels, "ndim", 1) > 0
        given: Any = labels
        each = self.classes.labels(
            given if is_several and not isinstance(labels, str | bytes) else [given]
        )
        return [label for label in each for _ in range(count)]

    def _on_pass(self, callback: Callback | None) -> OnPass | None:
        if callback is None:
            return None
        if not callable(callback):
            raise InputError(f"callback must be a function of a Step, got {_short(callback)}")

        def tell(
            indices: npt.NDArray[np.int64], number: int, num_passes: int, known: Preview
        ) -> None:
            callback(Step(number, num_passes, indices, known, self.generator))

        return tell


def check_count(num_images_per_label: Any) -> None:
    """Raise InputError unless it is a number of images."""
    is_number = isinstance(num_images_per_label, int | np.integer)
    if not is_number or isinstance(num_images_per_label, bool) or num_images_per_label < 1:
        raise InputError(f"num_images_per_label must be at least 1, got {num_images_per_label!r}")


def _places(images: Iterable[Any] | None, count: int) -> frozenset[int] | None:
    """Some of a call's images by their index, checked."""
    if images is None:
        return None
    with contextlib.suppress(TypeError):
        given = list(images)
        places = frozenset(operator.index(image) for image in given)
        is_truth = any(isinstance(image, bool) for image in given)  # a mask, taken for 0 and 1
        if not is_truth and all(0 <= place < count for place in places):
            return places
    raise InputError(
        f"callback_images must be indices of the call's {count} images, from 0 on, "
        f"got {_short(images)}"
    )


def _check_dtype(dtype: Any) -> None:
    is_name = dtype is None or isinstance(dtype, torch.dtype | str)
    if not is_name or dtype not in _DTYPES:
        raise InputError(f"dtype must be float32, bfloat16 or None, got {_short(dtype)}")


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:_MOST_CHARACTERS]


def _read_all(given: Any, read: Callable[[Path], Any]) -> list[Any]:
    """Images or masks, of which each may be its file, and which may be one alone."""
    if isinstance(given, np.ndarray):
        alone = given.ndim <= 2
    else:
        alone = isinstance(given, (*_PICTURES, bytes)) or not isinstance(given, Iterable)
    return [
        read(Path(each)) if isinstance(each, str | Path) else each
        for each in ([given] if alone else given)
    ]
