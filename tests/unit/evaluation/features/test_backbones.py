"""timm's networks as extractors: their own preparation, features before the head, safe weights."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform

from lpd.errors import InputError
from lpd.evaluation.features.backbones import load_backbone
from lpd.evaluation.features.extractors import (
    load_classifier,
    load_feature_extractor,
)

CPU = torch.device("cpu")
NAME = "test_vit"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model(NAME).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    return load_feature_extractor(f"timm:{NAME}={weights}", CPU)


def images_of(count, side):
    # Smooth, as pictures are: of noise, every pixel of a resized one hangs on rounding.
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return fine.clamp(0, 1).mul(255).to(torch.uint8)


@pytest.mark.parametrize("side", [160, 96, 256])
def test_features_are_those_of_timms_own_preparation(extractor, network, side):
    images = images_of(3, side)
    config = timm.data.resolve_model_data_config(network)
    assert (config["input_size"], config["interpolation"]) == ((3, 160, 160), "bicubic")
    prepare = create_transform(**config | {"crop_pct": 1.0})
    prepared = torch.stack(
        [prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    )
    with torch.no_grad():
        tokens = network.forward_features(prepared)
        expected = network.forward_head(tokens, pre_logits=True)
        logits = network(prepared)
    found = extractor(images)
    torch.testing.assert_close(found.features, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.logits, logits, rtol=1e-2, atol=1e-2)
    assert found.features.std() > 0.1
    assert found.spatial is None
    assert (extractor.num_features, extractor.num_classes) == (expected.shape[1], 1000)


def test_a_network_without_a_head_has_no_logits_and_no_classes(tmp_path, monkeypatch):
    headless = timm.create_model(NAME, num_classes=0)
    safetensors.torch.save_file(headless.state_dict(), tmp_path / "w.safetensors")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, num_classes=0))
    found = load_feature_extractor(f"timm:{NAME}={tmp_path / 'w.safetensors'}", CPU)
    assert found.num_classes is None
    assert found(images_of(2, 32)).logits.shape == (2, 0)


def test_the_fingerprint_is_of_weights_network_and_preparation(
    extractor, network, weights, tmp_path, monkeypatch
):
    again = load_backbone(f"timm:{NAME}={weights}")
    assert again.fingerprint() == extractor.fingerprint
    torch.save(network.state_dict(), tmp_path / "weights.pth")  # the same in another file
    assert (
        load_backbone(f"timm:{NAME}={tmp_path / 'weights.pth'}").fingerprint()
        == extractor.fingerprint
    )
    state = network.state_dict()
    state["norm.bias"] = state["norm.bias"] + 1e-3
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    other = load_backbone(f"timm:{NAME}={tmp_path / 'other.safetensors'}")
    assert other.fingerprint() != extractor.fingerprint
    resolve = timm.data.resolve_model_data_config
    monkeypatch.setattr(
        "lpd.evaluation.features.backbones.resolve_model_data_config",
        lambda network: {**resolve(network), "mean": (0.4, 0.5, 0.5)},
    )
    assert load_backbone(f"timm:{NAME}={weights}").fingerprint() != extractor.fingerprint


def test_weights_are_timms_own_where_no_file_is_named(monkeypatch, network):
    asked = []

    def hub(name, **_kwargs):
        asked.append(name)
        return network.state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    found = load_backbone(f"timm:{NAME}")
    assert asked == ["timm/test_vit.r160_in1k"]
    torch.testing.assert_close(found.network.state_dict(), dict(network.state_dict()))

    def nowhere(*_args, **_kwargs):
        raise OSError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", nowhere)
    with pytest.raises(InputError, match=rf"no connection; name a file .* timm:{NAME}=FILE"):
        load_backbone(f"timm:{NAME}")


class TestRefused:
    @pytest.mark.parametrize("name", ["timm:nothing_like_it", "timm:", "timm:hf-hub:some/body"])
    def test_what_timm_does_not_know(self, name):
        with pytest.raises(InputError, match="timm has no model"):
            load_feature_extractor(name, CPU)

    def test_weights_of_another_network(self, weights):
        with pytest.raises(InputError, match="does not hold the weights of timm's test_resnet"):
            load_feature_extractor(f"timm:test_resnet={weights}", CPU)

    def test_code_in_weights(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        (tmp_path / "weights.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(InputError, match="refused"):
            load_feature_extractor(f"timm:{NAME}={tmp_path / 'weights.pth'}", CPU)
        assert not (tmp_path / "ran").exists()

    def test_a_preparation_that_is_not_known(self, weights, monkeypatch):
        resolve = timm.data.resolve_model_data_config
        for change in ({"interpolation": "random"}, {"input_size": (1, 28, 28)}):
            monkeypatch.setattr(
                "lpd.evaluation.features.backbones.resolve_model_data_config",
                lambda network, change=change: {**resolve(network), **change},
            )
            with pytest.raises(InputError, match="test_vit takes images of"):
                load_backbone(f"timm:{NAME}={weights}")

    def test_a_classifier_of_other_classes(self, weights):
        name = f"timm:{NAME}={weights}"
        assert load_classifier(name, CPU, 1000).num_classes == 1000
        with pytest.raises(InputError, match="tells 1000 classes, but the model makes 3"):
            load_classifier(name, CPU, 3)


def test_every_image_is_its_own(extractor):
    images = images_of(5, 64)
    whole = extractor(images).features
    assert len(np.unique(whole.numpy().round(3), axis=0)) == 5
    alone = torch.cat([extractor(image[None]).features for image in images])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)
