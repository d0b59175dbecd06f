"""torchvision beside a CPU-only torch, and what LPD's own import costs."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch

from lpd import compat


def in_a_new_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_torchvision_imports_after_lpd_and_its_transforms_work() -> None:
    in_a_new_python(
        "import lpd, torchvision, timm, torch_fidelity, torch\n"
        "assert torch.ops.torchvision.nms\n"
        "image = torch.arange(16.0).reshape(1, 4, 4)\n"
        "assert torchvision.transforms.CenterCrop(2)(image).tolist() == [[[5, 6], [9, 10]]]\n"
    )


def test_orders_need_neither_torch_nor_scipy() -> None:
    in_a_new_python(
        "import sys, lpd.orders.workers, lpd.orders.request, lpd.orders.files\n"
        "assert not {'torch', 'torchvision', 'scipy'} & set(sys.modules)\n"
    )


@pytest.mark.parametrize(("cuda", "has_ops"), [("13.0", False), (None, True)])
def test_nothing_is_declared_where_torchvision_can_do_it_itself(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, has_ops: bool
) -> None:
    extension = ModuleType("torchvision.extension")
    extension._has_ops = lambda: has_ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.extension", extension)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(compat, "_fragments", [])
    monkeypatch.setattr(torch.library, "Library", pytest.fail)
    compat._declare_operators()
    assert compat._fragments == []
