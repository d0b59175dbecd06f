"""scripts/check_parity.py: passes on the vectors, and notices when they are off."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
FILES = [DATA / f"{name}_parity.safetensors" for name in ("lpd", "vq", "crop")]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    def run(*files: Path) -> object:
        monkeypatch.setattr(sys, "argv", ["check_parity.py", *map(str, files)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "scripts" / "check_parity.py"), run_name="__main__")
        return exit_.value.code

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_all_vectors_agree(
    check: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(*FILES) == 0
    text = capsys.readouterr().out
    assert "FAIL" not in text
    for what in ("dense logits", "flex logits", "loss", "grad pos_embed", "greedy tokens", "codes"):
        assert what in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("lpd", "uneven.logits", 2e-4),
        ("lpd", "one_shot.loss", 1e-4),
        ("lpd", "uneven.grad.mask_token", 1e-2),
        ("lpd", "uneven.cfg4.5.linear.head_logits", 2e-4),
        ("lpd", "uneven.cfg2.0.constant.guided_logits", float("nan")),
        ("lpd", "uneven.cfg4.5.linear.greedy_tokens", 1),
        ("vq", "reconstruction", 1e-3),
        ("vq", "indices", 1),
        ("crop", "crop_3_32", 1),
    ],
)
def test_a_change_is_noticed(
    check: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    key: str,
    change: float,
) -> None:
    with safe_open(DATA / f"{name}_parity.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    flat = tensors[key].reshape(-1)
    flat[0] = flat[0] + change if isinstance(change, float) else flat[0] ^ 1
    path = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    assert check(path) == 1
    assert "FAIL" in capsys.readouterr().out


def rewrite(name: str, path: Path, **changes: object) -> dict[str, torch.Tensor]:
    with safe_open(DATA / f"{name}_parity.safetensors", "pt") as file:
        meta = {**json.loads(file.metadata()["meta"]), **changes}
        tensors = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata={"meta": json.dumps(meta)})
    return tensors


def test_nothing_to_compare_is_no_success(check: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    rewrite("lpd", path, group_sizes={}, cases=[])
    assert check(path) == 2


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_any_integer_type_and_no_other_shape(check: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    tensors = rewrite("vq", path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors["indices"] = tensors["indices"].int()
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    assert check(path) == 0
    tensors["reconstruction"] = tensors["reconstruction"][:1].clone()
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    assert check(path) == 1


@pytest.mark.parametrize("meta", [None, {"unknown": 1}, {"group_sizes": {}, "depth": 1}])
def test_other_files_are_named(
    check: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    meta: dict[str, object] | None,
) -> None:
    path = tmp_path / "other.safetensors"
    metadata = None if meta is None else {"meta": json.dumps(meta)}
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    assert check(path) == 2
    assert "other.safetensors" in capsys.readouterr().err
