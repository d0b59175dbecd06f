"""scripts/download_weights.py against a stand-in of the hub's client, and a server of files."""

import dataclasses
import hashlib
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from scripts import download_weights
from scripts.download_weights import PUBLISHED, DownloadConfig


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


@dataclasses.dataclass
class Server:
    """Serves one file at any address, and what it was asked for."""

    content: bytes
    url: str = ""
    ranges: list[str | None] = dataclasses.field(default_factory=list)
    takes_ranges: bool = True
    breaks_off_after: int | None = None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of an archive that stands in for ADM's statistics."""
    content = io.BytesIO()
    np.savez(content, mu=np.zeros(1000), sigma=np.eye(1000))
    state = Server(content.getvalue())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.ranges.append(asked)
            size = len(state.content)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            start = start if state.takes_ranges else 0
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206 if state.takes_ranges else 200)
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            self.wfile.write(state.content[start : state.breaks_off_after])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}/x.npz"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        reference = dataclasses.replace(PUBLISHED["reference_256"], source=state.url)
        monkeypatch.setitem(PUBLISHED, "reference_256", reference)
        monkeypatch.setitem(PUBLISHED, "reference_512", reference)
        yield state
        listening.shutdown()


def fetch_statistics(tmp_path: Path) -> Path:
    download_weights.run(DownloadConfig(names=("reference_256",)))
    return tmp_path / "weights" / "VIRTUAL_imagenet256_labeled.npz"


def test_statistics_arrive_whole_with_their_hash_beside_them(
    server: Server, tmp_path: Path
) -> None:
    path = fetch_statistics(tmp_path)
    assert path.read_bytes() == server.content
    sums = (path.parent / "SHA256SUMS").read_text()
    assert sums == f"{hashlib.sha256(server.content).hexdigest()}  {path.name}\n"
    assert {each.name for each in path.parent.iterdir()} == {path.name, "SHA256SUMS"}


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_what_broke_off_goes_on(server: Server, tmp_path: Path, takes_ranges: bool) -> None:
    server.takes_ranges, server.breaks_off_after = takes_ranges, 1000
    with pytest.raises(ValueError, match=r"broke off after 1000 of \d+ bytes; the same command"):
        fetch_statistics(tmp_path)
    assert not (tmp_path / "weights" / "VIRTUAL_imagenet256_labeled.npz").exists()
    server.breaks_off_after = None
    assert fetch_statistics(tmp_path).read_bytes() == server.content
    assert server.ranges == ["bytes=0-", "bytes=1000-"]


def test_what_had_arrived_and_was_not_renamed_is_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    part = tmp_path / "weights" / ".VIRTUAL_imagenet256_labeled.npz.part"
    part.parent.mkdir()
    part.write_bytes(server.content)
    assert fetch_statistics(tmp_path).read_bytes() == server.content
    assert not part.exists()


@pytest.mark.parametrize("damage", ["flipped", "longer"])
def test_damaged_statistics_are_removed(server: Server, tmp_path: Path, damage: str) -> None:
    part = tmp_path / "weights" / ".VIRTUAL_imagenet256_labeled.npz.part"
    part.parent.mkdir()
    half = bytearray(server.content[: len(server.content) // 2])
    half[len(half) // 2] ^= 1
    part.write_bytes(half if damage == "flipped" else server.content + b"x")
    with pytest.raises(ValueError, match="arrived damaged"):
        fetch_statistics(tmp_path)
    assert not part.exists()
    assert fetch_statistics(tmp_path).read_bytes() == server.content


def test_an_address_that_is_not_there_is_one_clear_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = dataclasses.replace(PUBLISHED["reference_256"], source="http://127.0.0.1:9/x.npz")
    monkeypatch.setitem(PUBLISHED, "reference_256", nowhere)
    with pytest.raises(ValueError, match=r"cannot fetch VIRTUAL.* of http.*put the file at"):
        fetch_statistics(tmp_path)


def test_orders_go_where_evaluations_look_for_them(tmp_path: Path) -> None:
    download_weights.run(DownloadConfig(names=("orders_res512_steps48_repulsion4",)))
    folder = tmp_path / "orders" / "lpd_orders_generated"
    assert (folder / "res512_steps48_repulsion4.json").is_file()


def test_files_go_where_the_scripts_expect_them(tmp_path: Path) -> None:
    download_weights.run(DownloadConfig(names=("tokenizer", "tokenizer_t2i", "lpd_l_256")))
    assert (tmp_path / "tokenizers" / "vq_ds16_c2i.pt").is_file()
    assert (tmp_path / "tokenizers" / "vq_ds16_t2i.pt").is_file()
    assert (tmp_path / "weights" / "lpd_l_256.pth").is_file()
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {"lpd_l_256.pth", "SHA256SUMS"}


def test_checksums_are_recorded_once_per_file(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        download_weights.run(DownloadConfig(all=True))
    lines = (tmp_path / "weights" / "SHA256SUMS").read_text().splitlines()
    files = [f"lpd_{name}.pth" for name in ("l_256", "xl_256", "xxl_256", "l_512", "xl_512")]
    expected = {f"{hashlib.sha256(file.encode()).hexdigest()}  {file}" for file in files}
    statistics = "VIRTUAL_imagenet256_labeled.npz"  # both sizes by one name here
    assert len(lines) == 6
    assert {*lines} == {*expected, f"{hashlib.sha256(server.content).hexdigest()}  {statistics}"}
    assert not (tmp_path / "orders").exists()  # by their names alone


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
