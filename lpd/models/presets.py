"""The shapes of the models, for whoever has no use for torch."""

from lpd.errors import InputError

# Depth, width and heads. L, XL and XXL are the published models (paper table 7); tiny is for
# pictures of 64 codes and a CPU.
PRESETS: dict[str, tuple[int, int, int]] = {
    "lpd_tiny": (4, 128, 4),
    "lpd_l": (24, 1024, 16),
    "lpd_xl": (36, 1280, 20),
    "lpd_xxl": (48, 1536, 24),
}

# Those of the published models.
STRIDE = 16
VOCAB_SIZE = 16384
NUM_CLASSES = 1000
MLP_RATIO = 4.0


def preset_shape(name: str) -> tuple[int, int, int]:
    """Depth, width and number of heads of a preset.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"unknown model {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
