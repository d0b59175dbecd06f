"""The shapes of the models, for whoever has no use for torch."""

from lpd.errors import InputError

# Depth, width and heads. L, XL and XXL are the published models (paper table 7); tiny is for
# pictures of 64 codes and a CPU; those of text, t2i, are as large as those of classes.
PRESETS: dict[str, tuple[int, int, int]] = {
    "lpd_tiny": (4, 128, 4),
    "lpd_l": (24, 1024, 16),
    "lpd_xl": (36, 1280, 20),
    "lpd_xxl": (48, 1536, 24),
    "lpd_t2i_tiny": (4, 128, 4),
    "lpd_t2i_l": (24, 1024, 16),
    "lpd_t2i_xl": (36, 1280, 20),
}
# What they are conditioned on, where it is not classes.
_CONDITIONINGS = {"lpd_t2i_tiny": "text", "lpd_t2i_l": "text", "lpd_t2i_xl": "text"}

# Those of the published models.
STRIDE = 16
VOCAB_SIZE = 16384
NUM_CLASSES = 1000
MLP_RATIO = 4.0

# Hidden states of Gemma-2-2B, and how many of them a text has at most.
TEXT_WIDTH = 2304
TEXT_LENGTH = 128


def preset_shape(name: str) -> tuple[int, int, int]:
    """Depth, width and number of heads of a preset.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"unknown model {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_conditioning(name: str) -> str:
    """What a preset's images are conditioned on: a kind of :mod:`lpd.models.conditioning`.

    Raises:
        InputError: there is no such preset.
    """
    preset_shape(name)
    return _CONDITIONINGS.get(name, "class")
