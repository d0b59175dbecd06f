"""The models of the page."""

from typing import Any

from lpd.errors import InputError
from lpd.files import printable
from lpd.pipeline import LPDPipeline
from lpd.text_pipeline import LPDTextPipeline
from scripts.creation.request import ModelRequest
from scripts.creation.sampling import is_of_texts
from scripts.demo_page.studio import Studio
from scripts.demo_page.text_studio import TextStudio


def load_studios(
    classes: ModelRequest, texts: ModelRequest | None, text_encoder: str | None
) -> tuple[Studio, TextStudio | None]:
    """Load the model of classes, and that of texts where there is one.

    Args:
        classes: the first.
        texts: the second; None for none.
        text_encoder: that of the second; None for the one that its configuration names.

    Raises:
        InputError: a model is missing, damaged, or of the other kind.
    """
    if is_of_texts(classes.model):
        raise InputError(
            f"{printable(classes.model)} is a model of texts: name it with --text_model, and with "
            "--model one of classes"
        )
    studio = Studio(LPDPipeline.from_pretrained(**_arguments(classes)), classes.model)
    if texts is None:
        return studio, None
    if not is_of_texts(texts.model):
        raise InputError(
            f"{printable(texts.model)} is a model of classes: name it with --model, and with "
            "--text_model one of texts"
        )
    pipe = LPDTextPipeline.from_pretrained(text_encoder=text_encoder, **_arguments(texts))
    return studio, TextStudio(pipe, texts.model)


def _arguments(request: ModelRequest) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": request.model,
        "tokenizer": request.tokenizer_name,
        "device": request.device,
        "dtype": request.dtype,
        "batch_size": 1,
    }
