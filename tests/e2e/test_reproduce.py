"""scripts/reproduce.sh from end to end, on a CPU, with stand-ins: a hub, models scaled down to what
computes in seconds, statistics of a small classifier."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from lpd.errors import InputError
from lpd.evaluation.features.extractors import Classifier
from lpd.evaluation.images.statistics_file import write_statistics
from lpd.evaluation.measures.reference import Reference
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.models.lpd import LPD, LPDConfig
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import save_pretrained
from scripts.reproduce import run as reproduce
from scripts.reproduce.run import ReproduceConfig

ROOT = Path(__file__).parents[2]
ROWS = ("lpd_l_256_20", "lpd_xl_256_20")
SET_UP_BY = ("pyproject.toml", "environment_setup.sh")
FLAGS = (
    *("--num_images", "12", "--seed", "0", "1", "--eval_bsz", "6", "--num_workers", "0"),
    *("--model", "None", "--no_bf16", "--device", "cpu"),
)


@pytest.fixture
def folder(tmp_path: Path, make_classifier: Callable[[], Classifier]) -> Path:
    """weights/ with lpd_xl_256/, the configuration of what the hub has and statistics; tokenizer/,
    classifier/, hub/lpd_l_256.pth."""
    config = LPDConfig(
        depth=1,
        dim=32,
        num_heads=2,
        img_size=256,
        stride=16,
        vocab_size=24,
        num_classes=3,
        proj_dropout=0.0,
    )
    torch.manual_seed(0)
    model = LPD(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_pretrained(tmp_path / "weights" / "lpd_xl_256", model, config)
    (tmp_path / "hub").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "hub" / "lpd_l_256.pth")
    told = (tmp_path / "weights" / "lpd_xl_256" / "config.json").read_bytes()
    (tmp_path / "weights" / "config.json").write_bytes(told)
    vqgan = VQGANConfig(
        ch=8,
        ch_mult=(1, 1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=8,
        codebook_size=24,
        codebook_embed_dim=4,
        norm_groups=4,
    )
    save_pretrained(tmp_path / "tokenizer", VQGAN(vqgan), vqgan)
    classifier = make_classifier().eval()
    classifier.save(tmp_path / "classifier")
    with torch.inference_mode():
        features = classifier(torch.randint(256, (32, 3, 16, 16), dtype=torch.uint8)).features
    write_statistics(
        tmp_path / "weights" / "VIRTUAL_imagenet256_labeled.npz",
        Reference(statistics=gaussian_statistics(features.numpy())),
    )
    return tmp_path


@pytest.fixture
def hub(folder: Path, serve_hub: Callable[[Mapping[str, Path]], str]) -> str:
    """The address of a hub that has one model."""
    return serve_hub({"mit-han-lab/lpd_l_256": folder / "hub"})


def environment(folder: Path) -> Path:
    """An environment that counts as set up, with this Python."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    made_of = b"".join((ROOT / name).read_bytes() for name in SET_UP_BY)
    stamp = f"{ROOT} {hashlib.sha256(made_of).hexdigest()}  -\n"
    (folder / "environment" / ".lpd-environment").write_text(stamp)
    return folder / "environment"


def read_work(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """What took time to make, and when it was written."""
    found = [*folder.rglob("*.npz"), *folder.rglob("metrics.json"), *folder.rglob("*.png")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def lines_of(text: str, row: str) -> list[list[str]]:
    """The lines of a row of two seeds in the tables of an output, as words."""
    found = [line.split() for line in text.splitlines()]
    return [words for words in found if len(words) > 10 and words[:2] == [row, "2"]]


@pytest.mark.slow
def test_the_table_is_measured_and_goes_on_where_a_row_failed(folder: Path, hub: str) -> None:
    command = [
        *("bash", "scripts/reproduce.sh", "--rows", *ROWS),
        *("--weights_dir", folder / "weights", "--output_dir", folder / "out"),
        *("--feature_extractor", folder / "classifier", *FLAGS),
    ]
    variables = {
        "VIRTUAL_ENV": environment(folder),
        "VQGAN": folder / "tokenizer",
        "HF_ENDPOINT": hub,
        "HF_HOME": folder / "hub home",
        "PYTHONPATH": ROOT,
        "OMP_NUM_THREADS": "1",
    }

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            capture_output=True,
            text=True,
            check=False,
        )

    weights = folder / "weights" / "lpd_xl_256" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    first = start()
    assert first.returncode == 2, first.stderr
    assert "model.safetensors is not a whole safetensors file" in first.stderr
    assert first.stderr.endswith("above: lpd_xl_256_20; the same command tries them again\n")
    fetched = (folder / "weights" / "lpd_l_256.pth").read_bytes()
    assert fetched == (folder / "hub" / "lpd_l_256.pth").read_bytes()
    assert hashlib.sha256(fetched).hexdigest() in first.stdout
    assert len(lines_of(first.stdout, ROWS[0])) == 2  # its evaluation's, and the whole table's
    assert "lpd_xl_256_20 failed: exit code 1" in first.stdout
    before = read_work(folder / "out")
    assert len(before) == 2 * 4 + 1  # of each seed chunk, statistics, numbers, pictures; orders

    weights.write_bytes(whole)
    second = start()
    assert second.returncode == 0, second.stderr
    after = read_work(folder / "out")
    assert {path: after[path] for path in before} == before
    assert len(after) == 2 * len(before) - 1

    # The table's numbers are those of the evaluations.
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["failures"] == {}
    for row, told in zip(ROWS, results["rows"], strict=True):
        evaluated = json.loads((folder / "out" / row / "results.json").read_text())["results"]
        assert told["row"] == row
        assert told["seeds"] == [each["seed"] for each in evaluated] == [0, 1]
        for number in told["numbers"]:
            values = [each[number["key"]] for each in evaluated]
            assert number["values"] == values
            assert number["measured"] == pytest.approx(sum(values) / 2)
            assert number["verdict"] == "unlike"
        assert "12 images instead of 50000" in told["unlike"]
        (line,) = lines_of(second.stdout, row)[-1:]
        fid, published = told["numbers"][0]["measured"], told["numbers"][0]["published"]
        assert line[:4] == [row, "2", "12", f"{fid:.3f}"]
        assert f"{published:.2f} {fid - published:+.3f} unlike" in " ".join(line)
    assert (folder / "out" / "results.csv").read_text().count("\nlpd_") == 2 * 4
    written = (folder / "out" / "results.md").read_text()
    assert [line.split()[1] for line in written.splitlines() if line.startswith("| lpd")] == [*ROWS]


@pytest.fixture
def run_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the program in this process, with nothing that could evaluate or fetch."""

    def nothing(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(reproduce, "run_program", nothing)
    monkeypatch.setattr(reproduce, "fetch", nothing)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, value in {
        "PATH": path,
        "PYTHONPATH": ROOT,
        "VQGAN": folder / "tokenizer",
        "TORCH_HOME": folder / "torch",
    }.items():
        monkeypatch.setenv(name, str(value))

    def run(*flags: object, rows: tuple[str, ...] = ROWS[1:]) -> None:
        config = ReproduceConfig(
            rows=rows, weights_dir=folder / "weights", output_dir=folder / "out"
        )
        reproduce.run(config, [*FLAGS, *map(str, flags)])

    return run


@pytest.mark.slow
def test_what_is_missing_is_told_before_any_work(
    folder: Path, run_here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no Inception weights at .*--inception_path"):
        run_here()
    classifier = ("--feature_extractor", folder / "classifier")
    with pytest.raises(InputError, match=r"no /nowhere.npz: check --reference, or .* REFERENCE"):
        run_here(*classifier, "--reference", "/nowhere.npz")
    with pytest.raises(InputError, match=r"lpd_xl_res256_steps20.sh does not take these flags"):
        run_here(*classifier, "--spam", 1)
    monkeypatch.setenv("CKPT", str(folder))
    with pytest.raises(InputError, match="CKPT goes for one model alone"):
        run_here(*classifier, rows=ROWS)
    assert not (folder / "out").exists()


def test_unknown_rows_are_told() -> None:
    with pytest.raises(InputError, match="no row 'lpd_m': choose from lpd_l_256_20"):
        ReproduceConfig(rows=("lpd_m",))
    with pytest.raises(InputError, match="rows needs at least one of"):
        ReproduceConfig(rows=())
