"""Which models are evaluated here: those of classes."""

from lpd.errors import InputError
from lpd.evaluation.generated.setting import EvalConfig
from lpd.models.lpd import LPDConfig
from lpd.models.presets import preset_conditioning
from lpd.weights import find_config, weights_file


def check_conditioning(config: EvalConfig) -> None:
    """Check that a run's model is one of classes, before its weights are read.

    Raises:
        InputError: it is missing, conditioned on something else, or its configuration is damaged.
    """
    weights_file(config.pretrained_ckpt)  # else what is found may belong to something else
    found = find_config(config.pretrained_ckpt, LPDConfig)
    conditioning = "class"
    if found is not None:
        conditioning = found.conditioning
    elif config.model is not None:
        conditioning = preset_conditioning(config.model)
    if conditioning != "class":
        raise InputError(
            f"{config.pretrained_ckpt} is a model of {conditioning}, and this evaluates images of "
            "classes: make images of prompts with scripts/prompt_images.py, and score them with "
            "scripts/prompt_scores.py"
        )
