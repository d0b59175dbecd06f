"""The pipeline that a request asks for, and the options of its calls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lpd
from lpd.classes import imagenet
from lpd.files import sha256_of_file
from lpd.options import flatten
from lpd.pipeline import LPDPipeline
from lpd.weights import weights_file
from scripts.creation.request import CreationRequest

_ALL_OF = 16  # classes; of more, a few are shown
_SOME = 8
# Of ImageNet: golden retriever, macaw, arctic fox, tiger, balloon, castle, lakeside, volcano.
_SOME_OF_IMAGENET = (207, 88, 279, 292, 417, 483, 975, 980)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A request's pipeline, ready to be called."""

    request: CreationRequest
    pipeline: LPDPipeline
    options: dict[str, Any]
    """Of every call."""
    provenance: dict[str, Any]
    """What every image depends on beside its class and index, for its settings."""

    def name_of(self, label: int | None) -> str:
        """What a picture calls a class."""
        return "no class" if label is None else self.pipeline.classes.names[label]


def load(request: CreationRequest) -> Loaded:
    """Load the models.

    Raises:
        InputError: a model is missing, does not fit, or has no such published setting.
    """
    request.check_quickstart()
    pipeline = LPDPipeline.from_pretrained(
        request.model,
        request.tokenizer_name,
        device=request.device,
        dtype=request.dtype,
        batch_size=request.batch_size,
    )
    options = flatten(request.options)
    if request.recommended is not None:
        options |= pipeline.recommended(request.recommended)
    local = Path(request.model)
    return Loaded(
        request=request,
        pipeline=pipeline,
        options=options,
        provenance={
            "lpd": lpd.__version__,
            "model": request.model,
            # Where it came from the hub, its name there tells.
            "model_sha256": sha256_of_file(weights_file(local)) if local.exists() else None,
            "tokenizer": request.tokenizer_name,
            "tokenizer_sha256": pipeline.tokenizer.sha256,
            "dtype": request.dtype,
            "device": str(pipeline.device),
            "seed": request.seed,
            "options": options,
        },
    )


def default_labels(pipeline: LPDPipeline) -> list[int]:
    """All classes of a model that has few, or a few of the others."""
    count = pipeline.num_classes
    if count <= _ALL_OF:
        return list(range(count))
    if pipeline.classes.names == imagenet().names:
        return list(_SOME_OF_IMAGENET)
    return list(range(_SOME))
