"""The Python API: a model, its tokenizer, and images from classes.

from lpd.pipeline import LPDPipeline

pipe = LPDPipeline.from_pretrained("mit-han-lab/lpd_l_256")
result = pipe(["golden retriever", 207, "volcano"], **pipe.recommended(20))
result.images[0].save("golden_retriever.png")
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from lpd.classes import ClassNames, Match, class_names_of
from lpd.data.masks import Mask
from lpd.distributed import pick_device
from lpd.errors import InputError
from lpd.evaluation.generated.published import NUM_CLASSES, ROWS
from lpd.models.lpd import LPD, preset_shape
from lpd.options import from_flat, takes_options
from lpd.pipeline_base import BasePipeline, Callback, check_dtype, load_models
from lpd.pipeline_inputs import Indices, Picture, Wanted, checked_count
from lpd.pipeline_options import OutpaintCall, PipelineOptions
from lpd.pipeline_results import EditResult, PipelineResult
from lpd.sampling.editing import EditSettings
from lpd.sampling.execution import AUTO
from lpd.tokenizer.vq_tokenizer import VQTokenizer

Label = str | int | None
"""A class by its name or number; None for no class."""


class LPDPipeline(BasePipeline):
    """Generates images from classes."""

    kind = "class"
    asked_by = "labels"

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
        """Args and errors: those of :class:`lpd.pipeline_base.BasePipeline`."""
        super().__init__(
            model,
            tokenizer,
            dtype=dtype,
            batch_size=batch_size,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )
        self.classes: ClassNames = class_names_of(model.config)
        """The names of the model's classes."""

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
        check_dtype(dtype)  # before anything is fetched
        where = pick_device(None if device is None else str(device))
        model, vq_tokenizer = load_models(
            pretrained_model_name_or_path,
            tokenizer,
            where,
            kind=cls.kind,
            preset=preset,
            img_size=img_size,
            hub=hub,
        )
        return cls(
            model,
            vq_tokenizer,
            dtype=dtype,
            batch_size=batch_size,
            backend=backend,
            cuda_graphs=cuda_graphs,
        )

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

    @takes_options(PipelineOptions)
    def __call__(
        self,
        labels: Label | Sequence[Label],
        *,
        seed: int = 0,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        callback_images: Iterable[int] | None = None,
        image_indices: Indices | None = None,
        **options: Any,
    ) -> PipelineResult:
        """Generate images of classes.

        Image i depends on its label, the options, the seed and its index alone. Orders with passes
        of their own take those, not ``generation_steps``.

        Args:
            labels: a class or several, each by name or number; None for no class.
            seed: names the run's random numbers.
            num_images_per_label: how many images of each, one after the other.
            callback: called after each pass of each batch with a :class:`Step`. On CUDA passes are
                then launched one by one, which is slower.
            callback_images: which images it is for, by their place in the call; batches without any
                of them are generated at full speed, and nothing is told of them. By default all.
            image_indices: (n,) the images' indices in a run of which the call is a part; by default
                from 0 on. The image of an index is the same in every call.
            options: those of :class:`PipelineOptions`, which are main_eval.py's by the same names;
                ``help(LPDPipeline)`` shows them with their defaults.

        Raises:
            InputError: a label, order, number of steps or sampling setting out of range.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        chosen = from_flat(PipelineOptions, options)
        count = checked_count(num_images_per_label, "num_images_per_label")
        return self._generate(
            self._wanted(labels).repeated(count),
            chosen,
            seed=seed,
            image_indices=image_indices,
            callback=callback,
            callback_images=callback_images,
            started=started,
        )

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
        image_indices: Indices | None = None,
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
            image_indices: as for generation, of the results.
            options: those of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: an image, mask, label or setting is of no use; the message names it.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        return self._inpaint(
            images,
            masks,
            self._wanted(labels),
            checked_count(num_images_per_label, "num_images_per_label"),
            from_flat(EditSettings, options),
            keep_painted=keep_painted,
            callback=callback,
            image_indices=image_indices,
            started=started,
        )

    @takes_options(EditSettings)
    def variations(
        self,
        images: Picture | Sequence[Picture],
        labels: Label | Sequence[Label],
        *,
        keep: float | npt.NDArray[np.bool_] = 0.5,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        image_indices: Indices | None = None,
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
            image_indices: as for generation, of the results.
            options: those of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: as :meth:`inpaint`.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        return self._variations(
            images,
            self._wanted(labels),
            checked_count(num_images_per_label, "num_images_per_label"),
            from_flat(EditSettings, options),
            keep=keep,
            callback=callback,
            image_indices=image_indices,
            started=started,
        )

    @takes_options(OutpaintCall)
    def outpaint(
        self,
        images: Picture | Sequence[Picture],
        labels: Label | Sequence[Label],
        *,
        num_images_per_label: int = 1,
        callback: Callback | None = None,
        image_indices: Indices | None = None,
        **options: Any,
    ) -> EditResult:
        """Continue an image beyond its sides.

        Args:
            images: as :meth:`inpaint`, like all that follows but the options.
            labels: what is to be seen.
            num_images_per_label: how many results of each.
            callback: as for generation.
            image_indices: as for generation, of the results.
            options: those of :class:`lpd.sampling.canvas.OutpaintOptions`, which say how far, and
                of :class:`lpd.sampling.editing.EditSettings`.

        Raises:
            InputError: as :meth:`inpaint`.
            TypeError: there is no option of a name.
        """
        started = time.perf_counter()
        return self._outpaint(
            images,
            self._wanted(labels),
            checked_count(num_images_per_label, "num_images_per_label"),
            from_flat(OutpaintCall, options),
            callback=callback,
            image_indices=image_indices,
            started=started,
        )

    def _wanted(self, labels: Label | Sequence[Label]) -> Wanted:
        """Classes as they were given, an entry for each."""
        # Arrays and tensors of no dimension say that they can be iterated over, and cannot.
        is_several = isinstance(labels, Iterable) and getattr(labels, "ndim", 1) > 0
        given: Any = labels
        each = self.classes.labels(
            given if is_several and not isinstance(labels, str | bytes) else [given]
        )
        return Wanted(named=tuple(each), labels=each)
