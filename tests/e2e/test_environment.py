"""environment_setup.sh and the scripts that call it, with a stand-in for Python: no downloads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Notes its arguments. As `-m venv --clear DIR` it makes DIR anew, with a pip; `-m pip` works where
# there is one, but finds no CPU build of torch.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$*" in
*"-m venv --clear "*)
    rm -rf "${@: -1}"
    mkdir -p "${@: -1}/bin"
    cp "$0" "${@: -1}/bin/python"
    touch "${@: -1}/pip" ;;
*"-m pip "*"+cpu"*) echo "no such build" >&2; exit 1 ;;
*"-m pip "*) [ -e "$(dirname "$0")/../pip" ] ;;
*"import torch;"*) exit 1 ;;
esac
"""


class Checkout:
    """The files that set up an environment, and the stand-in for Python."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "scripts").mkdir(parents=True)
        for name in (
            "environment_setup.sh",
            "scripts/environment.sh",
            "scripts/python.sh",
            "scripts/test.sh",
            "pyproject.toml",
        ):
            shutil.copy(ROOT / name, path / name)
        self.python = self.make_python(path / "system")
        self.notes = path / "notes"

    def make_python(self, prefix: Path) -> Path:
        python = prefix / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)
        return python

    def run(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.notes.write_text("")
        inherited = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "")}
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail; {command}"],
            cwd=self.path,
            env={**inherited, "PYTHON": str(self.python), "NOTES": str(self.notes), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def chosen(self, **variables: str) -> Path:
        """The Python that scripts/environment.sh chooses."""
        result = self.run('source scripts/environment.sh; echo "$python"', **variables)
        assert result.returncode == 0, result.stderr
        return Path(result.stdout.strip())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def test_set_up_once(checkout: Checkout) -> None:
    result = checkout.run("bash environment_setup.sh")
    assert result.returncode == 0, result.stderr
    assert "ready; source .venv/bin/activate" in result.stderr
    assert "-m venv --clear" in checkout.notes.read_text()
    again = checkout.run("bash environment_setup.sh")
    assert "up to date" in again.stderr
    assert "install" not in checkout.notes.read_text()


def test_an_environment_without_pip_is_made_again(checkout: Checkout) -> None:
    checkout.make_python(checkout.path / ".venv")
    (checkout.path / ".venv" / "left over").write_text("")
    result = checkout.run("bash environment_setup.sh")
    assert result.returncode == 0, result.stderr
    assert not (checkout.path / ".venv" / "left over").exists()
    assert (checkout.path / ".venv" / ".lpd-environment").exists()


def test_why_there_is_no_cpu_build_is_seen(checkout: Checkout) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("with a GPU the CPU build is not tried")
    result = checkout.run("bash environment_setup.sh")
    assert result.stderr.index("no such build") < result.stderr.index("takes the default build")
    assert "install --quiet torch==" in checkout.notes.read_text()


def test_bad_arguments_are_one_line(checkout: Checkout) -> None:
    for arguments in ("a b", "--into x", "--in", "''", "--in nowhere"):
        result = checkout.run(f"bash environment_setup.sh {arguments}")
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
    assert not checkout.notes.read_text()


def test_the_active_environment_is_taken(checkout: Checkout, tmp_path: Path) -> None:
    venv = checkout.path / ".venv"
    other = tmp_path / "other environment"
    checkout.make_python(other)
    (other / "pip").touch()
    # One that environment_setup.sh has not made is not ours to install into.
    assert checkout.chosen(VIRTUAL_ENV=str(other)) == venv / "bin" / "python"
    assert checkout.chosen(CONDA_PREFIX=str(other)) == venv / "bin" / "python"
    (other / ".lpd-environment").write_text("an earlier version")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        assert checkout.chosen(**{variable: str(other)}) == other / "bin" / "python"
    # It was brought up to date the first time.
    stamps = [(path / ".lpd-environment").read_text() for path in (other, venv)]
    assert stamps[0] == stamps[1]
    assert checkout.chosen() == venv / "bin" / "python"
    active = {"VIRTUAL_ENV": str(venv), "CONDA_PREFIX": str(other)}
    assert checkout.chosen(**active) == venv / "bin" / "python"


def test_a_failed_set_up_ends_the_script(checkout: Checkout) -> None:
    result = checkout.run("source scripts/environment.sh; echo went on", PYTHON="false")
    assert result.returncode == 2
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "went on" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "of_pytest"),
    [("", ""), ("-x tests/unit", " -x tests/unit"), ("--quick -x", " -m not slow -x")],
)
def test_the_inner_loop_leaves_out_slow_tests(
    checkout: Checkout, arguments: str, of_pytest: str
) -> None:
    # That variable, by which the tests' own threads are limited, is not the number of cores.
    result = checkout.run(f"bash scripts/test.sh {arguments}", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    workers = f"-n {min(8, len(os.sched_getaffinity(0)))} --dist loadfile --no-loadscope-reorder"
    assert checkout.notes.read_text().splitlines()[-1] == f"-m pytest {workers}{of_pytest}"
