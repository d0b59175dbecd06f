#!/usr/bin/env bash
# Set up everything LPD needs.
#
#   bash environment_setup.sh            a virtual environment in .venv
#   bash environment_setup.sh NAME       a conda environment called NAME
#   bash environment_setup.sh --in DIR   the environment in DIR, which one of the above has made
#
# It may be run again at any time, and then does only what is missing. PYTHON names the Python of
# the virtual environment (3.11 or newer; python3 by default).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# A pair that belongs together; change both or none.
TORCH=2.13.0
TORCHVISION=0.28.0

say() { echo "environment_setup: $*" >&2; }
fail() {
    say "$*"
    exit 2
}

case $#:${1:-} in
0:)
    prefix=$PWD/.venv
    python=$prefix/bin/python
    activate="source .venv/bin/activate"
    # What an interrupted or failed set-up leaves may have a Python and no pip.
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "Python 3.11 or newer is needed; name one with PYTHON=..."
        "${PYTHON:-python3}" -m venv --clear "$prefix"
    fi
    ;;
2:--in)
    prefix=$2
    python=$prefix/bin/python
    activate="it is in $prefix"
    [ -x "$python" ] || fail "there is no environment in $prefix; make one without --in"
    ;;
1:[!-]*)
    command -v conda >/dev/null || fail "conda is not on PATH; without NAME a .venv is made instead"
    conda run -n "$1" true 2>/dev/null || conda create -y -n "$1" python=3.11
    prefix=$(conda run -n "$1" python -c 'import sys; print(sys.prefix)')
    python=$prefix/bin/python
    activate="conda activate $1"
    ;;
*) fail "usage: bash environment_setup.sh [NAME | --in DIR]" ;;
esac

# What was installed into this environment, by the content of the files that say what to install.
stamp=$prefix/.lpd-environment
wanted="$PWD $(cat pyproject.toml environment_setup.sh | sha256sum)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    say "up to date; $activate"
    exit 0
fi

pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# torch first: the packages that need it then take it as it is. Without an NVIDIA driver the CPU
# build is taken wherever pip is set up to find one; the default build brings gigabytes of CUDA.
if ! "$python" -c "import torch; assert torch.__version__.split('+')[0] == '$TORCH'" 2>/dev/null; then
    if command -v nvidia-smi >/dev/null; then
        pip install --quiet "torch==$TORCH"
    elif ! pip install --quiet "torch==$TORCH+cpu"; then
        say "pip finds no CPU build of torch $TORCH (its words are above) and takes the default build,"
        say "which may be large; to avoid that, point PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels"
        pip install --quiet "torch==$TORCH"
    fi
fi
pip install --quiet "torchvision==$TORCHVISION" --editable ".[demo,dev,quickstart,text,video]"
# gradio asks for an older Pillow, though it runs with this one (tests/e2e/test_demo.py); and the
# older one's resampling rounds some pixels of a crop in the other direction.
pip install --quiet --no-deps "pillow>=13"

"$python" -c "import lpd, torchvision, timm, torch_fidelity"
echo "$wanted" >"$stamp"
say "ready; $activate"
