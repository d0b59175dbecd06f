"""Images of prompts, made by a stand-in for the pipeline."""

import pytest

from lpd.distributed import World
from lpd.evaluation.prompts.config import PromptImagesConfig
from lpd.evaluation.prompts.generating import make_images
from lpd.options import from_flat
from lpd.provenance import Origin
from tests.unit.evaluation.prompts.painting import SIZE


@pytest.fixture
def make(tmp_path):
    """Makes the images of a configuration of the program's flags; gives the folder."""

    def make(painter, prompts, world=None, **flags):
        flags = {"pretrained_ckpt": "model", "prompts": prompts, **flags}
        flags.setdefault("output_dir", tmp_path / "out")
        config = from_flat(PromptImagesConfig, flags)
        read = config.layout_entry.read(config.prompts)
        identity = {name: flags[name] for name in flags if name not in ("output_dir", "eval_bsz")}
        make_images(config, read, painter, SIZE, Origin(values=identity), world or World())
        return config.output_dir

    return make
