"""The numbers of torch-fidelity's one call on the same two folders of images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from lpd.distributed import World
from lpd.evaluation.features import extractors as features_module
from lpd.evaluation.features.batches import FeatureBatch, extract
from lpd.evaluation.features.extractors import Features
from lpd.evaluation.generated.report import image_path
from lpd.evaluation.images.pictures import write_png
from lpd.evaluation.images.references import load_reference, open_reference
from lpd.evaluation.measures.metrics import Samples, compute_metrics

CPU = torch.device("cpu")
NAME = "small-stand-in-for-inception"
SIDE, NUM_FEATURES, NUM_LOGITS = 16, 12, 5


class SmallNetwork(FeatureExtractorBase):
    """What Inception is to torch-fidelity, in milliseconds; without weights to download."""

    def __init__(self, name, features_list, **_kwargs):
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.convolution = torch.randn(NUM_FEATURES, 3, 5, 5, generator=generator) / 8
        self.head = torch.randn(NUM_FEATURES, NUM_LOGITS, generator=generator)

    def forward(self, images):
        maps = torch.nn.functional.conv2d(images.float() / 255 - 0.5, self.convolution)
        found = {"features": maps.relu().mean((2, 3))}
        found["logits"] = 20 * found["features"] @ self.head
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)


@pytest.fixture
def extractor():
    register_feature_extractor(NAME, SmallNetwork)
    network = SmallNetwork(NAME, ["features", "logits"])

    def compute(images):
        features, logits = network(images)
        return Features(features=features, logits=logits)

    yield features_module._NetworkExtractor(compute, CPU, fingerprint=NAME, num_classes=None)
    del FEATURE_EXTRACTORS_REGISTRY[NAME]


def test_a_run_has_the_numbers_of_its_folders(extractor, tmp_path):
    generator = np.random.default_rng(0)

    def images(count, contrast):
        coarse = generator.normal(size=(count, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
        return (128 + contrast * coarse).clip(0, 255).astype(np.uint8)

    generated, real = images(70, 40), images(90, 50)
    for index, image in enumerate(generated):
        write_png(image_path(tmp_path / "run", index), image)
    for index, image in enumerate(real):
        (tmp_path / "real" / str(index % 3)).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "real" / str(index % 3) / f"{index}.png"
        Image.fromarray(image.transpose(1, 2, 0)).save(path)

    measured = list(extract(torch.from_numpy(generated).split(16), extractor, CPU))
    samples = Samples.of(FeatureBatch.concatenate(measured), None)
    reference = load_reference(
        open_reference(tmp_path / "real", SIDE, extractor),
        extractor,
        tmp_path / "reference.npz",
        World(),
        num_workers=0,
    )
    ours = compute_metrics(samples, reference)

    theirs = calculate_metrics(
        input1=str(tmp_path / "run" / "images"),
        input2=str(tmp_path / "real"),
        **dict.fromkeys(("isc", "fid", "kid", "prc", "samples_find_deep"), True),
        feature_extractor=NAME,
        kid_subset_size=70,
        batch_size=16,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "inception_score": "inception_score_mean",
        "inception_score_std": "inception_score_std",
        "precision": "precision",
        "recall": "recall",
    }
    expected = {name: pytest.approx(theirs[of], rel=1e-5) for name, of in names.items()}
    assert {name: ours[name] for name in names} == expected
    # Numbers that tell something: neither all nothing nor all alike.
    assert 1.1 < ours["inception_score"] < NUM_LOGITS
    assert ours["kid"] > 0
    assert {0, 1}.isdisjoint((ours["precision"], ours["recall"]))
