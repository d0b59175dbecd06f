"""The images that scripts/sample.py is asked for: of classes or of prompts, as the model has it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpd.errors import InputError
from lpd.files import printable
from lpd.hub import fetch_folder, find_published_model
from lpd.models.lpd import LPDConfig
from lpd.options import flatten
from lpd.pipeline_base import Callback
from lpd.pipeline_results import PipelineResult
from lpd.text_pipeline import LPDTextPipeline
from lpd.weights import CONFIG_NAME, find_config
from scripts.creation.loading import (
    Loaded,
    LoadedClasses,
    default_labels,
    load,
    provenance_of,
)
from scripts.creation.sample_request import SampleConfig


@dataclass(frozen=True, kw_only=True)
class LoadedTexts(Loaded):
    """Of a model of texts."""

    pipeline: LPDTextPipeline
    negative_prompt: str | None

    def name_of(self, wanted: str) -> str:
        """The prompt."""
        return wanted if wanted.strip() else "no prompt"

    def settings_of(self, wanted: str) -> dict[str, Any]:
        """The prompt, and what guidance led away from."""
        return {"prompt": wanted, "negative_prompt": self.negative_prompt}

    def create(
        self, wanted: Sequence[str], callback: Callback, callback_images: Iterable[int]
    ) -> PipelineResult:
        """Images of prompts."""
        return self.pipeline(
            wanted,
            negative_prompt=self.negative_prompt,
            seed=self.request.seed,
            num_images_per_prompt=self.request.num_images_per_label,
            callback=callback,
            callback_images=callback_images,
            **self.options,
        )


def load_any(config: SampleConfig) -> tuple[LoadedClasses | LoadedTexts, Sequence[Any]]:
    """Load the models, of whatever they are conditioned on.

    Returns:
        What is loaded, and what images are to show: a class or prompt for each row of them.

    Raises:
        InputError: a model, class or prompt that does not exist or fit.
    """
    config.check_quickstart()
    if is_of_texts(config.model_name):
        _refuse_options_of_classes(config)
        prompts = config.wanted_prompts()
        return load_texts(config), prompts
    _refuse_options_of_texts(config)
    loaded = load(config)
    classes = loaded.pipeline.classes
    return loaded, classes.labels(config.labels or default_labels(loaded.pipeline))


def load_texts(config: SampleConfig) -> LoadedTexts:
    """Load the models of texts.

    Raises:
        InputError: one is missing, or they do not fit each other.
    """
    pipeline = LPDTextPipeline.from_pretrained(
        config.model_name,
        config.tokenizer_name,
        text_encoder=config.text_encoder,
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
    )
    options = flatten(config.options)
    identity = pipeline.text_encoder.identity
    return LoadedTexts(
        request=config,
        pipeline=pipeline,
        options=options,
        negative_prompt=config.negative_prompt,
        provenance={
            **provenance_of(config, pipeline, options),
            "text_encoder": identity.name,
            "text_encoder_sha256": identity.sha256,
        },
    )


def is_of_texts(model: str) -> bool:
    """Whether a model is conditioned on texts, by its configuration; published ones have none, and
    are of classes.

    Raises:
        InputError: it is nowhere, or its configuration is damaged.
    """
    path = Path(model)
    if find_published_model(model) is not None:
        return False
    if not path.exists():
        path = fetch_folder(model, [CONFIG_NAME])
    config = find_config(path, LPDConfig)
    return config is not None and config.conditioning == "text"


def _refuse_options_of_classes(config: SampleConfig) -> None:
    model = printable(config.model_name)
    if config.labels is not None:
        raise InputError(
            f"--labels are for models of classes, and {model} is one of texts: use --prompts"
        )
    if config.recommended is not None:
        raise InputError(
            f"--recommended is for published models of classes, and {model} is one of texts: give "
            "--generation_steps and --cfg"
        )


def _refuse_options_of_texts(config: SampleConfig) -> None:
    flags = ("prompts", "prompt_file", "negative_prompt", "text_encoder")
    given = [name for name in flags if getattr(config, name) is not None]
    if given:
        raise InputError(
            f"--{given[0]} is for models of texts, and {printable(config.model_name)} is one of "
            "classes: use --labels"
        )
