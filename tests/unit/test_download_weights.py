"""scripts/download_weights.py against a stand-in of the hub's client."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from scripts import download_weights
from scripts.download_weights import DownloadConfig


@pytest.fixture(autouse=True)
def _hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that holds each file's own name as its content; downloads go to ``tmp_path``."""

    def download(_repository: str, file: str, *, local_dir: Path) -> None:
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_text(file)

    def metadata(url: str) -> SimpleNamespace:
        return SimpleNamespace(etag=hashlib.sha256(url.rsplit("/", 1)[1].encode()).hexdigest())

    monkeypatch.setattr(download_weights, "ROOT", tmp_path)
    monkeypatch.setattr(download_weights, "hf_hub_download", download)
    monkeypatch.setattr(download_weights, "get_hf_file_metadata", metadata)


def test_files_go_where_the_scripts_expect_them(tmp_path: Path) -> None:
    download_weights.run(DownloadConfig(names=("tokenizer", "lpd_l_256")))
    assert (tmp_path / "tokenizers" / "vq_ds16_c2i.pt").is_file()
    assert (tmp_path / "weights" / "lpd_l_256.pth").is_file()
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {"lpd_l_256.pth", "SHA256SUMS"}


def test_checksums_are_recorded_once_per_file(tmp_path: Path) -> None:
    for _ in range(2):
        download_weights.run(DownloadConfig(all=True))
    lines = (tmp_path / "weights" / "SHA256SUMS").read_text().splitlines()
    files = [f"lpd_{name}.pth" for name in ("l_256", "xl_256", "xxl_256", "l_512", "xl_512")]
    expected = {f"{hashlib.sha256(file.encode()).hexdigest()}  {file}" for file in files}
    assert len(lines) == 5
    assert set(lines) == expected


def test_a_damaged_download_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        download_weights, "get_hf_file_metadata", lambda _: SimpleNamespace(etag="0" * 64)
    )
    with pytest.raises(ValueError, match="arrived damaged"):
        download_weights.run(DownloadConfig(names=("lpd_l_256",)))
    assert not (tmp_path / "weights" / "lpd_l_256.pth").exists()


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real client, and an address where nobody listens.
    monkeypatch.setattr(download_weights, "hf_hub_download", huggingface_hub.hf_hub_download)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's tries
    with pytest.raises(ValueError, match=r"cannot fetch lpd_l_256\.pth of mit-han-lab/lpd_l_256"):
        download_weights.run(DownloadConfig(names=("lpd_l_256",)))


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown weights lpd_m: choose from tokenizer, lpd_l_256"):
        DownloadConfig(names=("lpd_m",))
    with pytest.raises(ValueError, match="name what to fetch"):
        DownloadConfig()
