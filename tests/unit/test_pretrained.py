"""Models from disk and from the hub, and other resolutions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpd.models.lpd import LPD, PRESETS, LPDConfig
from lpd.pretrained import PretrainedLPD, config_of_preset, fit_pos_embed, load_model
from lpd.weights import save_pretrained

CPU = torch.device("cpu")


def test_round_trip(tiny_model: LPD, tmp_path: Path) -> None:
    save_pretrained(tmp_path, tiny_model, tiny_model.config)
    loaded = load_model(tmp_path, torch.device("cpu"), img_size=16)
    assert loaded.config == tiny_model.config
    for key, value in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


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

    def test_missing_keys_are_errors(self, model: PretrainedLPD, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        other = PretrainedLPD(config_of_preset("lpd_tiny"))
        (tmp_path / "config.json").unlink()
        save_pretrained(tmp_path, model, other.config)
        with pytest.raises(ValueError, match="does not fit"):
            PretrainedLPD.from_pretrained(tmp_path)

    def test_hub_id_with_a_published_file(
        self, model: PretrainedLPD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(PRESETS, "t", (2, 32, 2))
        config = config_of_preset("t", img_size=256)
        published = LPD(config)
        published.init_weights()
        torch.save({"model": published.state_dict()}, tmp_path / "lpd_t_256.pth")
        asked: list[str] = []

        def stand_in(repository: str, **_: Any) -> str:
            asked.append(repository)
            return str(tmp_path)

        monkeypatch.setattr("lpd.pretrained.snapshot_download", stand_in)
        loaded = PretrainedLPD.from_pretrained("mit-han-lab/lpd_t_256", preset="t")
        assert asked == ["mit-han-lab/lpd_t_256"]
        assert torch.equal(loaded.head.weight, published.head.weight)

    @pytest.mark.parametrize("name", ["/nonexistent/folder", "a/b/c", "nobody/nothing"])
    def test_neither_folder_nor_repository(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ValueError, match=rf"{name} is neither a folder nor a repository"):
            PretrainedLPD.from_pretrained(name)

    def test_several_files_are_ambiguous(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"2 \.pth files"):
            PretrainedLPD.from_pretrained(tmp_path)
