"""Images of plain prompts are compared with those of a data set as any images are."""

import numpy as np
import torch
from PIL import Image

from lpd.distributed import World
from lpd.evaluation.images.modes import SamplesConfig
from lpd.evaluation.images.samples import run_samples
from lpd.evaluation.measures.frechet import frechet_distance
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.options import from_flat
from tests.unit.evaluation.prompts.painting import SIZE, Painter


def test_plain_images_have_a_fid(make, extractor, run_folder, tmp_path):
    prompts = tmp_path / "captions.txt"
    prompts.write_text("\n".join(f"caption {number}" for number in range(40)))
    images = make(Painter(), prompts) / "images"
    reference = tmp_path / "reference"
    reference.mkdir()
    real = np.random.default_rng(0).integers(256, size=(30, SIZE, SIZE, 3), dtype=np.uint8)
    for number, pixels in enumerate(real):
        Image.fromarray(pixels).save(reference / f"{number}.png")
    config = from_flat(
        SamplesConfig,
        {
            "samples": images, "reference": reference, "output_dir": tmp_path / "scores",
            "feature_extractor": str(run_folder / "classifier"), "device": "cpu",
            "num_workers": 0,
        },
    )  # fmt: skip
    results = run_samples(config, World())
    assert (results["images"], results["passed_over"], results["warnings"]) == (40, 0, [])
    made = np.stack([np.array(Image.open(images / f"{number:05d}.png")) for number in range(40)])
    statistics = [
        gaussian_statistics(extractor(torch.from_numpy(each).permute(0, 3, 1, 2)).features.numpy())
        for each in (made, real)
    ]
    np.testing.assert_allclose(results["metrics"]["fid"], frechet_distance(*statistics), rtol=1e-3)
