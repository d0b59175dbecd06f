"""What a text model's configuration says of its text encoder."""

import dataclasses
from typing import Any

import pytest

from lpd.errors import InputError
from lpd.models.lpd import LPDConfig
from lpd.models.text_encoder import check_encoder
from lpd.texts.identity import EncoderIdentity
from lpd.weights import config_from_dict, config_to_dict

OWN = EncoderIdentity(name="owner/encoder", sha256="a" * 64, layer=-2, width=6)


@pytest.fixture
def config(text_config: LPDConfig) -> LPDConfig:
    return dataclasses.replace(
        text_config, text_encoder=OWN.name, text_encoder_sha256=OWN.sha256, text_layer=OWN.layer
    )


def test_older_configurations_load_and_are_written_as_they_were(text_config: LPDConfig) -> None:
    written = config_to_dict(text_config)
    assert not {"text_encoder", "text_encoder_sha256", "text_layer"} & written.keys()
    loaded = config_from_dict(LPDConfig, written, "config.json")
    assert loaded == text_config
    assert (loaded.text_encoder, loaded.text_encoder_sha256, loaded.text_layer) == (None, None, -1)


def test_the_encoder_is_written_and_read_again(config: LPDConfig) -> None:
    written = config_to_dict(config)
    assert written["text_encoder"] == "owner/encoder"
    assert config_from_dict(LPDConfig, written, "config.json") == config


def test_numbers_depend_on_the_encoder_and_not_on_what_it_is_called(
    config: LPDConfig, tiny_config: LPDConfig
) -> None:
    assert dataclasses.replace(config, text_encoder="moved").shape() == config.shape()
    for field, value in (("text_encoder_sha256", "b" * 64), ("text_layer", -1)):
        assert dataclasses.replace(config, **{field: value}).shape() != config.shape()
    named = dataclasses.replace(tiny_config, text_encoder_sha256="b" * 64, text_layer=-3)
    assert named.shape() == tiny_config.shape()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("text_encoder", value) for value in ("", 3, True, "x" * 5000)),
        *(("text_encoder_sha256", value) for value in ("", "a" * 63, "A" * 64, "a" * 64 + "\n", 1)),
        *(("text_layer", value) for value in (True, 1.0, "-1", None, 1 << 40, float("nan"))),
    ],
)
def test_what_anybodys_file_says_is_bounded(
    field: str, value: Any, tiny_config: LPDConfig, text_config: LPDConfig
) -> None:
    for config in (tiny_config, text_config):
        with pytest.raises(InputError, match=field):
            dataclasses.replace(config, **{field: value})


def test_the_models_own_encoder_passes_wherever_it_is(config: LPDConfig) -> None:
    check_encoder(config, OWN)
    check_encoder(config, dataclasses.replace(OWN, name="/elsewhere"), max_length=5)
    unknown = dataclasses.replace(config, text_encoder_sha256=None, text_layer=-1)
    check_encoder(unknown, dataclasses.replace(OWN, sha256="b" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "b" * 64}, "SHA-256 a{64}, not b{64}"),
        ({"layer": -1}, "layer -2, not -1"),
        ({"width": 7, "layer": -3}, "layer -2, not -3; width 6, not 7"),
    ],
)
def test_another_encoder_is_refused(
    change: dict[str, Any], message: str, config: LPDConfig
) -> None:
    other = dataclasses.replace(OWN, name="owner/other", **change)
    with pytest.raises(InputError, match=f"owner/other is not .* owner/encoder .*{message}"):
        check_encoder(config, other)


def test_longer_texts_and_models_of_classes_are_refused(
    config: LPDConfig, tiny_config: LPDConfig
) -> None:
    with pytest.raises(InputError, match="6 tokens are more than the 5"):
        check_encoder(config, OWN, max_length=6)
    with pytest.raises(InputError, match="conditioned on class, not on text"):
        check_encoder(tiny_config, OWN)
