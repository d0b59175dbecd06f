"""The files that every way to measure images leaves behind."""

from pathlib import Path

from lpd.evaluation.measures.metrics import Samples
from lpd.files import write_json

SETTINGS_NAME = "settings.json"
"""Everything that the numbers of an output folder depend on."""
RESULTS_NAME = "results.json"
"""The numbers, and what they are of."""
CLASSES_NAME = "class_accuracy.json"
"""How often the images of each class are told to be of it."""


def write_class_accuracy(folder: Path, samples: Samples) -> None:
    """Write how often the images of each class are told to be of it, where something tells."""
    accuracy = samples.class_accuracy()
    if accuracy is not None:
        write_json(folder / CLASSES_NAME, accuracy.plain())
