"""Feature extractors: what they compute, and that nothing unknown is unpickled."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from lpd.evaluation import features
from lpd.evaluation.features import (
    Classifier,
    ClassifierConfig,
    check_inception_file,
    load_feature_extractor,
)
from lpd.weights import load_state_dict_file

CPU = torch.device("cpu")


class _Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


class TestInception:
    def test_a_file_with_another_hash_is_refused_before_it_is_unpickled(self, tmp_path):
        marker = tmp_path / "code_ran"
        path = tmp_path / features.INCEPTION_FILE
        path.write_bytes(pickle.dumps(_Evil(str(marker))))
        with pytest.raises(ValueError, match=r"its SHA-256 begins with \w{8}, not 6726825d"):
            load_feature_extractor("inception", CPU, path)
        assert not marker.exists()

    def test_a_missing_file_is_named_with_where_to_get_it(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"absent\.pth; download https://.*6726825d\.pth"):
            check_inception_file(tmp_path / "absent.pth")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        with pytest.raises(ValueError, match=r"checkpoints/weights-inception.*--inception_path"):
            load_feature_extractor("inception", CPU)

    def test_gives_the_pooled_features_and_logits_without_bias(self, tmp_path, monkeypatch):
        # Random weights under the checked name: what comes out must be wired as FID expects it.
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = tmp_path / features.INCEPTION_FILE
        monkeypatch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
            lambda *args, **kwargs: pytest.fail("must not download"),
        )
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
            patch.setattr(torch, "load", lambda *args, **kwargs: {})
            network = FeatureExtractorInceptionV3("x", ["2048"], str(path))
        torch.save(network.state_dict(), path)
        monkeypatch.setattr(features, "_INCEPTION_SHA256", features.sha256_of_file(path))
        extractor = load_feature_extractor("inception", CPU, path)
        images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
        result = extractor(images)
        assert result.features.shape == (2, extractor.num_features)
        assert extractor.num_classes is None
        expected = result.features @ network.fc.weight.T
        torch.testing.assert_close(result.logits, expected)


class TestClassifier:
    def test_logits_are_the_head_of_the_features(self, run_folder):
        extractor = load_feature_extractor(str(run_folder / "classifier"), CPU)
        state = load_state_dict_file(run_folder / "classifier")
        result = extractor(torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8))
        assert result.features.shape == (4, extractor.num_features)
        expected = result.features @ state["fc.weight"].T + state["fc.bias"]
        torch.testing.assert_close(result.logits, expected)

    def test_images_are_resized_and_normalised(self):
        class Probe(torch.nn.Module):
            def forward_features(self, x):
                self.seen = x
                return x

            def forward_head(self, x, pre_logits=False):
                return x.mean((2, 3))

        classifier = Classifier(
            ClassifierConfig(
                architecture="resnet10t",
                num_classes=3,
                image_size=8,
                mean=(0.0, 0.5, 1.0),
                std=(1.0, 0.5, 2.0),
            )
        )
        classifier.network = Probe()
        classifier(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
        assert classifier.network.seen.shape == (1, 3, 8, 8)
        channels = classifier.network.seen.mean((0, 2, 3))
        np.testing.assert_allclose(channels, [1.0, 1.0, 0.0], atol=1e-6)

    def test_equal_weights_have_equal_fingerprints(self, run_folder, tmp_path):
        fingerprint = load_feature_extractor(str(run_folder / "classifier"), CPU).fingerprint
        again = load_feature_extractor(str(run_folder / "classifier"), CPU).fingerprint
        config = ClassifierConfig(architecture="resnet10t", num_classes=3, image_size=16)
        Classifier(config).save(tmp_path)
        other = load_feature_extractor(str(tmp_path), CPU).fingerprint
        assert fingerprint == again != other

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("mean", [0.4, 0.5, 0.5]),
            ("std", [1.0, 0.5, 0.5]),
            ("image_size", 24),
            ("model_args", {"channels": [4, 4, 8, 8], "stem_width": 4, "act_layer": "gelu"}),
        ],
    )
    def test_the_same_weights_otherwise_configured_have_another(
        self, run_folder, tmp_path, name, value
    ):
        """They give other features, and whoever goes on in a folder would mix the two."""
        folder = run_folder / "classifier"
        shutil.copytree(folder, tmp_path / "other")
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | {name: value}))
        first, other = (
            load_feature_extractor(str(path), CPU) for path in (folder, tmp_path / "other")
        )
        images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
        assert not torch.equal(first(images).features, other(images).features)
        assert first.fingerprint != other.fingerprint

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"architecture": "resnet_of_nowhere"}, "resnet_of_nowhere"),
            ({"model_args": {"no_such_argument": 1}}, "no_such_argument"),
            ({"num_classes": 1}, "two or more classes"),
            ({"std": (0.0, 1.0, 1.0)}, "std is positive"),
        ],
    )
    def test_impossible_configurations_are_refused(self, changes, message):
        values = {"architecture": "resnet10t", "num_classes": 3, "image_size": 16, **changes}
        with pytest.raises(ValueError, match=message):
            Classifier(ClassifierConfig(**values))

    def test_a_folder_without_its_parts_is_refused(self, run_folder, tmp_path):
        with pytest.raises(ValueError, match="unknown feature extractor 'nowhere'"):
            load_feature_extractor("nowhere", CPU)
        with pytest.raises(ValueError, match="no weight file"):
            load_feature_extractor(str(tmp_path), CPU)
        weights = (run_folder / "classifier" / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match=r"no config\.json"):
            load_feature_extractor(str(tmp_path), CPU)
