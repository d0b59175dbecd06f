"""Weight files: what is read, what is refused, what is written."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lpd.models.lpd import LPD
from lpd.pretrained import config_of_preset
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import load_state_dict_file, load_strictly, save_pretrained

DATA = Path(__file__).parents[1] / "data"
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapping", [None, "model", "state_dict"])
def test_wrappings_come_off(tmp_path: Path, suffix: str, prefix: str, wrapping: str | None) -> None:
    path = tmp_path / f"weights{suffix}"
    state: Any = {prefix + key: value for key, value in STATE.items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        args = argparse.Namespace(lr=1e-4, model="lpd_l")
        torch.save(state if wrapping is None else {wrapping: state, "args": args}, path)
    loaded = load_state_dict_file(path)
    assert loaded.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(loaded[key], value)


class Exploit:
    """What an attacker's pickle does: run a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, suffix: str) -> None:
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "it-ran"
    torch.save({"model": STATE, "extra": Exploit(marker)}, path)
    with pytest.raises(ValueError, match=rf"evil\{suffix} is refused"):
        load_state_dict_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50, None])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"damaged{suffix}"
    if content is None:
        (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(STATE, path)
        content = path.read_bytes()[:-20]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged\{suffix}"):
        load_state_dict_file(path)


def test_other_content_and_other_kinds(tmp_path: Path) -> None:
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth does not hold a state dict"):
        load_state_dict_file(tmp_path / "list.pth")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"\.safetensors, \.pth and \.pt, not '\.bin'"):
        load_state_dict_file(tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"no weight file at .*model\.safetensors"):
        load_state_dict_file(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "missing: bias"),
        ({"head": torch.ones(1)}, "not expected: head"),
        ({"weight": torch.ones(3, 2)}, r"weight is \[3, 2\], expected \[2, 3\]"),
    ],
)
def test_strict_loading_names_the_key(change: dict[str, Any], message: str) -> None:
    state = {key: value for key, value in {**STATE, **change}.items() if value is not None}
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(ValueError, match=rf"somewhere does not fit this Linear .*{message}"):
        load_strictly(module, state, "somewhere")
    assert torch.equal(module.weight, before)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize("name", ["lpd_l_256", "lpd_xl_256", "lpd_xxl_256", "llamagen_vq16"])
def test_published_keys_load_strictly(tmp_path: Path, name: str) -> None:
    """Every published key with its shape, from a file of the published form."""
    shapes = json.loads((DATA / f"{name}_keys.json").read_text())
    # Expanded zeros: a checkpoint of gigabytes in a few kilobytes of memory and disk.
    zero = torch.zeros(1, dtype=torch.float16)
    state = {key: zero.expand(shape) for key, shape in shapes.items()}
    path = tmp_path / f"{name}.pth"
    torch.save({"model": state, "args": argparse.Namespace()}, path)
    assert path.stat().st_size < 2_000_000
    loaded = load_state_dict_file(path)
    with torch.device("meta"):
        module: torch.nn.Module = (
            VQGAN(VQGANConfig())
            if name == "llamagen_vq16"
            else LPD(config_of_preset(name.removesuffix("_256")))
        )
    loaded.pop("quantize.codebook_used", None)
    load_strictly(module, loaded, name)
    for key in list(loaded)[:: max(1, len(loaded) // 5)]:
        without = {k: v for k, v in loaded.items() if k != key}
        with pytest.raises(ValueError, match=f"missing: {key}"):
            load_strictly(module, without, name)
        with pytest.raises(ValueError, match=f"not expected: {key}.more"):
            load_strictly(module, {**loaded, f"{key}.more": zero}, name)
        with pytest.raises(ValueError, match=rf"shapes: {key} is \[1\]"):
            load_strictly(module, {**loaded, key: zero}, name)


def test_written_folders_hold_weights_and_configuration(tmp_path: Path) -> None:
    config = VQGANConfig(ch=8, ch_mult=(1,), z_channels=4, codebook_size=5, norm_groups=2)
    module = VQGAN(config)
    save_pretrained(tmp_path, module, config)
    loaded = load_state_dict_file(tmp_path)
    for key, value in module.state_dict().items():
        assert torch.equal(loaded[key], value)
    assert json.loads((tmp_path / "config.json").read_text())["ch_mult"] == [1]
