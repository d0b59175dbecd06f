"""Feature extractors: what they compute, and that nothing unknown is unpickled."""

import json
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lpd.evaluation.features import extractors
from lpd.evaluation.features.extractors import (
    Classifier,
    ClassifierConfig,
    Features,
    check_inception_file,
    in_equal_batches,
    load_feature_extractor,
    with_classifier,
)
from lpd.evaluation.features.float32 import full_float32
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
        path = tmp_path / extractors.INCEPTION_FILE
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

    @pytest.fixture
    def random_inception(self, tmp_path, monkeypatch):
        """An extractor with random weights under the checked name, and torch-fidelity's network
        with the same."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = tmp_path / extractors.INCEPTION_FILE
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
        monkeypatch.setattr(extractors, "_INCEPTION_SHA256", extractors.sha256_of_file(path))
        return load_feature_extractor("inception", CPU, path), network

    def test_gives_what_fid_is_and_sfid_expect(self, random_inception):
        extractor, network = random_inception
        images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
        result = extractor(images)
        assert result.features.shape == (2, extractor.num_features) == (2, 2048)
        assert extractor.num_classes is None
        torch.testing.assert_close(result.features, network(images)[0])
        torch.testing.assert_close(result.logits, result.features @ network.fc.weight.T)
        # The name that folders of earlier versions know it by.
        assert extractor.fingerprint == f"inception {extractors._INCEPTION_SHA256}"

        # TensorFlow's mixed_6/conv is the first branch of torch's Mixed_6d.
        reached = []
        with network.Mixed_6d.register_forward_pre_hook(
            lambda _layer, given: reached.append(*given)
        ):
            network(images)
        maps = network.Mixed_6d.branch1x1(reached[0]).numpy()
        assert maps.shape == (2, 192, 17, 17)
        channels_last = np.moveaxis(maps, 1, -1)[..., :7]
        assert result.spatial.shape == (2, extractor.num_spatial) == (2, 2023)
        np.testing.assert_allclose(
            result.spatial, channels_last.reshape(2, -1), rtol=1e-4, atol=1e-5
        )
        assert (result.spatial >= 0).all()


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


class TestBatches:
    """An image's features do not hang on the batch that it comes in."""

    @pytest.fixture
    def extractor(self, run_folder):
        return load_feature_extractor(str(run_folder / "classifier"), CPU)

    @pytest.fixture
    def images(self):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (13, 3, 16, 16), dtype=torch.uint8, generator=generator)

    @pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
    def test_on_a_cpu_but_for_the_rounding_of_other_kernels(self, extractor, images, batch_size):
        whole = extractor(images)
        parts = [extractor(part) for part in images.split(batch_size)]
        for name, expected in whole.arrays().items():
            found = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_nor_on_how_their_pixels_lie_in_memory(self, extractor, images):
        channels_last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(extractor(channels_last).features, extractor(images).features)

    @pytest.mark.parametrize("count", [1, 4, 5, 13])
    def test_equal_batches_show_the_network_one_size_alone(self, images, count):
        seen = []

        def network(batch):
            seen.append(batch.clone())
            flat = batch.flatten(1).float()
            return Features(features=flat[:, :7], logits=flat[:, 7:9], spatial=flat[:, 9:])

        found = in_equal_batches(network, images[:count], 4)
        assert {each.shape for each in seen} == {(4, 3, 16, 16)}
        assert torch.equal(torch.cat(seen)[:count], images[:count])
        assert not torch.cat(seen)[count:].any()
        whole = network(images[:count])
        assert found.arrays().keys() == whole.arrays().keys()
        for name, expected in whole.arrays().items():
            assert torch.equal(getattr(found, name), expected)


class TestFullFloat32:
    def test_is_within_the_extractor_alone(self, run_folder, monkeypatch):
        extractor = load_feature_extractor(str(run_folder / "classifier"), CPU)
        seen = []

        def looking(images):
            seen.append((torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision))
            seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
            raise InterruptedError

        conv = torch.backends.cudnn.conv
        monkeypatch.setattr(extractor, "_network", looking)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        try:
            with pytest.raises(InterruptedError):
                extractor(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
            assert seen == [("ieee", "ieee"), (False, True)]
            assert torch.get_float32_matmul_precision() == "high"
            assert conv.fp32_precision == "tf32"
            assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (
                (True, False)
            )
        finally:
            torch.set_float32_matmul_precision(before)


def test_threads_take_turns_in_full_float32():
    """Else the last of them would leave the settings that the first one made."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    has_begun, is_inside = threading.Event(), threading.Event()

    def second():
        has_begun.set()
        with full_float32():
            is_inside.set()

    try:
        with ThreadPoolExecutor(1) as thread:
            with full_float32():
                running = thread.submit(second)
                has_begun.wait()
                assert not is_inside.wait(0.1)
            running.result()
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_classifier_beside_the_extractor_sees_the_same_images(run_folder, make_classifier):
    extractor = load_feature_extractor(str(run_folder / "classifier"), CPU)
    torch.manual_seed(5)
    other = make_classifier().eval().requires_grad_(False)
    classifier = extractors._NetworkExtractor(other, CPU, fingerprint="other", num_classes=3)
    both = with_classifier(extractor, classifier)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    found, alone = both(images), extractor(images)
    for name, expected in alone.arrays().items():
        assert torch.equal(getattr(found, name), expected)
    assert torch.equal(found.class_logits, classifier(images).logits)
    assert not torch.allclose(found.class_logits, found.logits)
    assert both.num_classes == classifier.num_classes
    assert both.num_features == extractor.num_features
    assert both.fingerprint not in (extractor.fingerprint, classifier.fingerprint)
