"""The pipeline that a request asks for, and the options of its calls."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import lpd
from lpd.classes import imagenet
from lpd.options import flatten
from lpd.pipeline import LPDPipeline
from lpd.pipeline_base import BasePipeline, Callback
from lpd.pipeline_results import PipelineResult
from lpd.pretrained import sha256_of_local
from scripts.creation.request import CreationRequest

_ALL_OF = 16  # classes; of more, a few are shown
_SOME = 8
# Of ImageNet: golden retriever, macaw, arctic fox, tiger, balloon, castle, lakeside, volcano.
_SOME_OF_IMAGENET = (207, 88, 279, 292, 417, 483, 975, 980)


@dataclass(frozen=True, kw_only=True)
class Loaded(ABC):
    """A request's pipeline, ready to be called."""

    request: CreationRequest
    options: dict[str, Any]
    """Of every call."""
    provenance: dict[str, Any]
    """What every image depends on beside its class or prompt, and its index, for its settings."""

    @abstractmethod
    def name_of(self, wanted: Any) -> str:
        """What a picture calls a class or prompt."""

    @abstractmethod
    def settings_of(self, wanted: Any) -> dict[str, Any]:
        """What an image's settings tell of its class or prompt."""

    @abstractmethod
    def create(
        self, wanted: Sequence[Any], callback: Callback, callback_images: Iterable[int]
    ) -> PipelineResult:
        """Generate the images that the request asks for.

        Args:
            wanted: what they are to show: a class or prompt for each row of them.
            callback: called after each pass of the batches that have any of ``callback_images``.
            callback_images: images by their place in the call.

        Raises:
            InputError: an option does not fit.
        """


@dataclass(frozen=True, kw_only=True)
class LoadedClasses(Loaded):
    """Of a model of classes."""

    pipeline: LPDPipeline

    def name_of(self, wanted: int | None) -> str:
        """A class's name."""
        return "no class" if wanted is None else self.pipeline.classes.names[wanted]

    def settings_of(self, wanted: int | None) -> dict[str, Any]:
        """Its number and name."""
        return {"label": wanted, "class_name": self.name_of(wanted)}

    def create(
        self, wanted: Sequence[int | None], callback: Callback, callback_images: Iterable[int]
    ) -> PipelineResult:
        """Images of classes."""
        return self.pipeline(
            wanted,
            seed=self.request.seed,
            num_images_per_label=self.request.num_images_per_label,
            callback=callback,
            callback_images=callback_images,
            **self.options,
        )


def load(request: CreationRequest) -> LoadedClasses:
    """Load the models of classes.

    Raises:
        InputError: a model is missing, does not fit, or has no such published setting.
    """
    request.check_quickstart()
    pipeline = LPDPipeline.from_pretrained(
        request.model_name,
        request.tokenizer_name,
        device=request.device,
        dtype=request.dtype,
        batch_size=request.batch_size,
    )
    options = flatten(request.options)
    if request.recommended is not None:
        options |= pipeline.recommended(request.recommended)
    return LoadedClasses(
        request=request,
        pipeline=pipeline,
        options=options,
        provenance=provenance_of(request, pipeline, options),
    )


def provenance_of(
    request: CreationRequest, pipeline: BasePipeline, options: dict[str, Any]
) -> dict[str, Any]:
    """What every image of a request depends on."""
    return {
        "lpd": lpd.__version__,
        "model": request.model_name,
        "model_sha256": sha256_of_local(request.model_name),
        "tokenizer": request.tokenizer_name,
        "tokenizer_sha256": pipeline.tokenizer.sha256,
        "dtype": request.dtype,
        "device": str(pipeline.device),
        "seed": request.seed,
        "options": options,
    }


def default_labels(pipeline: LPDPipeline) -> list[int]:
    """All classes of a model that has few, or a few of the others."""
    count = pipeline.num_classes
    if count <= _ALL_OF:
        return list(range(count))
    if pipeline.classes.names == imagenet().names:
        return list(_SOME_OF_IMAGENET)
    return list(range(_SOME))
