"""Models from disk and from the hub, and other resolutions."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lpd.errors import InputError
from lpd.evaluation.generated.published import ROWS
from lpd.hub import MODELS
from lpd.models.lpd import LPD, PRESETS, LPDConfig
from lpd.pretrained import (
    PretrainedLPD,
    config_of_preset,
    fit_pos_embed,
    load_model,
    load_pretrained,
    load_tokenizer,
    sha256_of_local,
)
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGANConfig
from lpd.weights import save_pretrained

CPU = torch.device("cpu")


def test_round_trip(tiny_model: LPD, tmp_path: Path) -> None:
    save_pretrained(tmp_path, tiny_model, tiny_model.config)
    loaded = load_model(tmp_path, torch.device("cpu"), img_size=16)
    assert loaded.config == tiny_model.config
    for key, value in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_names_of_classes(tiny_model: LPD, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_model.config, class_names=("cat", "Ätna", "0"))
    save_pretrained(tmp_path, tiny_model, config)
    loaded = load_model(tmp_path, CPU).config
    assert loaded == config
    assert "cat" not in repr(loaded)  # of a thousand names a message shows none
    assert loaded.shape() == tiny_model.config.shape()
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"0"', "0"))
    with pytest.raises(InputError, match=r"config\.json is not a LPDConfig: class_names must"):
        load_model(tmp_path, CPU)


def test_other_image_size(tiny_model: LPD, tmp_path: Path) -> None:
    save_pretrained(tmp_path, tiny_model, tiny_model.config)
    with pytest.raises(ValueError, match="images of 16 pixels, but img_size is 32"):
        load_model(tmp_path, torch.device("cpu"), img_size=32)


def test_weights_of_another_shape(tiny_model: LPD, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save({"model": tiny_model.state_dict()}, path)
    with pytest.raises(ValueError, match=r"tiny\.pth does not fit this LPD \(missing: blocks\."):
        load_model(path, torch.device("cpu"), preset="lpd_tiny")


def test_needs_a_preset(tiny_model: LPD, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save(tiny_model.state_dict(), path)
    with pytest.raises(ValueError, match="--model"):
        load_model(path, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"unknown model 'lpd_m'.*lpd_l, lpd_xl, lpd_xxl"):
        load_model(path, torch.device("cpu"), preset="lpd_m")


def test_config_beside_the_weights_must_be_the_preset(tiny_model: LPD, tmp_path: Path) -> None:
    save_pretrained(tmp_path, tiny_model, tiny_model.config)
    with pytest.raises(ValueError, match="is not a lpd_l"):
        load_model(tmp_path, torch.device("cpu"), preset="lpd_l")


class TestPositionEmbeddings:
    config = LPDConfig(depth=1, dim=4, num_heads=1, img_size=32, stride=4, vocab_size=5)

    def test_a_state_that_fits_is_left_alone(self) -> None:
        pos_embed = torch.randn(1, 65, 4)
        assert fit_pos_embed({"pos_embed": pos_embed}, self.config)["pos_embed"] is pos_embed

    def test_the_class_stays_and_constants_stay(self) -> None:
        pos_embed = torch.full((1, 17, 4), 3.0)
        pos_embed[:, 0] = 7.0
        fitted = fit_pos_embed({"pos_embed": pos_embed}, self.config)["pos_embed"]
        assert (fitted[:, 0] == 7).all()
        torch.testing.assert_close(fitted[:, 1:], torch.full((1, 64, 4), 3.0))

    def test_against_a_cubic_convolution_written_out(self) -> None:
        generator = torch.Generator().manual_seed(0)
        pos_embed = torch.randn(1, 17, 4, generator=generator)
        fitted = fit_pos_embed({"pos_embed": pos_embed}, self.config)["pos_embed"][0, 1:, 0]

        def kernel(x: float, a: float = -0.75) -> float:
            x = abs(x)
            if x <= 1:
                return (a + 2) * x**3 - (a + 3) * x**2 + 1
            return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

        matrix = np.zeros((8, 4))
        for i in range(8):
            place = (i + 0.5) / 2 - 0.5
            for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                matrix[i, min(max(tap, 0), 3)] += kernel(place - tap)
        expected = matrix @ pos_embed[0, 1:, 0].double().numpy().reshape(4, 4) @ matrix.T
        np.testing.assert_allclose(fitted.reshape(8, 8).numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("state", [{}, {"pos_embed": torch.zeros(1, 18, 4)}])
    def test_other_weights_are_refused(self, state: dict[str, torch.Tensor]) -> None:
        with pytest.raises(ValueError, match="pos_embed"):
            fit_pos_embed(state, self.config)


class TestHub:
    @pytest.fixture
    def model(self, tiny_model: LPD) -> PretrainedLPD:
        model = PretrainedLPD(tiny_model.config)
        model.load_state_dict(tiny_model.state_dict())
        return model

    def test_folder_round_trip(self, model: PretrainedLPD, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        # The same folder format as everywhere else.
        for loaded in (PretrainedLPD.from_pretrained(tmp_path), load_model(tmp_path, CPU)):
            assert loaded.config == model.config
            for key, value in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[key], value), key
            assert not loaded.training

    def test_a_younger_field_is_not_written_for_nothing(
        self, model: PretrainedLPD, tiny_model: LPD, tmp_path: Path
    ) -> None:
        model.save_pretrained(tmp_path / "here")
        save_pretrained(tmp_path / "there", tiny_model, tiny_model.config)
        here, there = ((tmp_path / name / "config.json") for name in ("here", "there"))
        assert here.read_text() == there.read_text()

    def test_missing_keys_are_errors(self, model: PretrainedLPD, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        other = PretrainedLPD(config_of_preset("lpd_tiny"))
        (tmp_path / "config.json").unlink()
        save_pretrained(tmp_path, model, other.config)
        with pytest.raises(ValueError, match="does not fit"):
            PretrainedLPD.from_pretrained(tmp_path)

    def test_published_names_give_preset_and_size(
        self,
        tmp_path: Path,
        serve_hub: Callable[[Mapping[str, Path]], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(PRESETS, "lpd_xl", (1, 16, 2))
        published = LPD(config_of_preset("lpd_xl", img_size=512))
        published.init_weights()
        repository, file = "mit-han-lab/lpd_xl_512", tmp_path / "there" / "lpd_xl_512.pth"
        file.parent.mkdir()
        torch.save({"model": published.state_dict()}, file)
        (file.parent / "a.bin").write_bytes(b"what nobody asked for")
        hub = {
            "endpoint": serve_hub({repository: file.parent, "another/model": file.parent}),
            "cache_dir": tmp_path / "cache",
        }
        for loaded in (
            PretrainedLPD.from_pretrained(repository, **hub),
            load_pretrained(repository, CPU, **hub),
            load_pretrained(file, CPU),  # by the name of its file
            load_pretrained(file.parent, CPU, img_size=512),
        ):
            assert loaded.config == published.config
            assert torch.equal(loaded.head.weight, published.head.weight)
        assert not list((tmp_path / "cache").rglob("a.bin"))
        file = file.rename(file.with_name("model.pth"))
        with pytest.raises(InputError, match=r"no config.json beside it: name its preset"):
            load_pretrained("another/model", CPU, **hub)
        with pytest.raises(InputError, match=r"mit-han-lab/lpd_m is neither a folder nor"):
            load_pretrained("mit-han-lab/lpd_m", CPU, **hub)

    def test_tokenizers_by_name(
        self,
        tmp_path: Path,
        tokenizer_folder: Path,
        serve_hub: Callable[[Mapping[str, Path]], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        expected = VQTokenizer.from_pretrained(tokenizer_folder, CPU)

        # The published tokenizer has no configuration: its shape is the default.
        class Default(VQGANConfig):
            def __init__(self, **values: Any) -> None:
                super().__init__(**{**dataclasses.asdict(expected.config), **values})

        monkeypatch.setattr("lpd.tokenizer.vq_tokenizer.VQGANConfig", Default)
        (tmp_path / "LlamaGen").mkdir()
        torch.save(
            {"model": load_file(tokenizer_folder / "model.safetensors")},
            tmp_path / "LlamaGen" / "vq_ds16_c2i.pt",
        )
        (tmp_path / "texts").mkdir()
        torch.save(
            {"model": load_file(tokenizer_folder / "model.safetensors"), "steps": 7},
            tmp_path / "texts" / "vq_ds16_t2i.pt",
        )
        hub = {
            "endpoint": serve_hub(
                {
                    "FoundationVision/LlamaGen": tmp_path / "LlamaGen",
                    "peizesun/llamagen_t2i": tmp_path / "texts",
                    "my/own": tokenizer_folder,
                }
            ),
            "cache_dir": tmp_path / "cache",
        }
        of_texts = load_tokenizer("peizesun/llamagen_t2i", CPU, **hub)
        published = load_tokenizer(None, CPU, **hub)
        assert published.sha256 != of_texts.sha256
        again = load_tokenizer("FoundationVision/LlamaGen", CPU, **hub)
        published.save(tmp_path / "saved")
        saved = load_tokenizer(tmp_path / "saved", CPU)
        assert published.sha256 == again.sha256 == saved.sha256 != expected.sha256
        own = load_tokenizer("my/own", CPU, **hub)
        assert own.sha256 == expected.sha256
        for tokenizer in (published, again, saved, own, of_texts):
            assert torch.equal(tokenizer.codebook, expected.codebook)
        with pytest.raises(InputError, match="nobody/has is neither a folder nor a repository"):
            load_tokenizer("nobody/has", CPU, **hub)

    def test_a_tokenizer_whose_file_has_changed_is_not_saved(
        self, tmp_path: Path, tokenizer_folder: Path
    ) -> None:
        folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
        tokenizer = load_tokenizer(folder, CPU)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes() + b" ")
        with pytest.raises(InputError, match="has changed since the tokenizer was loaded"):
            tokenizer.save(tmp_path / "saved")
        assert not (tmp_path / "saved" / "model.safetensors").exists()

    def test_a_folder_is_of_one_tokenizer(self, tmp_path: Path, tokenizer_folder: Path) -> None:
        """Else another than the one that was saved would be loaded."""
        first = load_tokenizer(tokenizer_folder, CPU)
        state = load_file(tokenizer_folder / "model.safetensors")
        there = tmp_path / "there"
        there.mkdir()
        shutil.copy(tokenizer_folder / "config.json", there)
        torch.save({"model": {name: each + 1 for name, each in state.items()}}, there / "vq.pt")
        second = load_tokenizer(there, CPU)
        for one, other in ((first, second), (second, first)):
            saved = tmp_path / one.sha256
            one.save(saved)
            (saved / f".left.{'0' * 32}.pt").touch()  # by a process that was killed
            one.save(saved)
            with pytest.raises(InputError, match=r"another tokenizer, \w+\.\w+: delete them, or"):
                other.save(saved)
            assert load_tokenizer(saved, CPU).sha256 == one.sha256

    def test_what_a_model_is_known_by(self, tmp_path: Path) -> None:
        file = tmp_path / "model" / "lpd_l_256.pth"
        file.parent.mkdir()
        file.write_bytes(b"weights")
        expected = hashlib.sha256(b"weights").hexdigest()
        assert sha256_of_local(file) == sha256_of_local(str(file.parent)) == expected
        assert sha256_of_local("mit-han-lab/lpd_l_256") is None

    def test_a_hub_that_a_proxy_keeps_away_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object, **__: object) -> str:
            raise huggingface_hub.errors.HTTPError("403 Forbidden")

        monkeypatch.setattr("lpd.hub.snapshot_download", refused)
        monkeypatch.setattr("lpd.hub.hf_hub_download", refused)
        for load, name in ((load_pretrained, "my/model"), (load_tokenizer, None)):
            with pytest.raises(InputError, match="can be reached: 403 Forbidden; check the name"):
                load(name, CPU)

    @pytest.mark.parametrize("name", ["/nonexistent/folder", "a/b/c", "nobody/nothing"])
    def test_neither_folder_nor_repository(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"{name} is neither a folder nor a repository"):
            PretrainedLPD.from_pretrained(name, endpoint="http://127.0.0.1:9")

    def test_several_files_are_ambiguous(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"no model.safetensors and 2 \*\.pth files"):
            PretrainedLPD.from_pretrained(tmp_path)

    def test_the_models_of_the_papers_table_are_known(self) -> None:
        known = {Path(model.file).stem: (model.preset, model.img_size) for model in MODELS.values()}
        assert known == {row.model: (row.preset, row.img_size) for row in ROWS.values()}
