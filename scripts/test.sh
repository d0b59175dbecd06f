#!/usr/bin/env bash
# Set up what the tests need and run them.
#
#   bash scripts/test.sh [--quick] [PYTEST ARGUMENTS...]
#
# --quick is the inner loop, a third of the time: it leaves out the tests marked slow, those that
# start whole programs, train for long, or otherwise take a second or more. Without it all run.
#
# The files of tests are shared among a process for each core, at most 8; -n 0 runs all in one, as a
# debugger needs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
if [ "${1:-}" = --quick ]; then
    shift
    set -- -m "not slow" "$@"
fi
# nproc takes that variable for the number of cores.
cores=$(env -u OMP_NUM_THREADS nproc)
# What the tests compute is small: threads of its own would only keep the other processes waiting.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# In the order of their names: the longest files come first, and no process is left with one alone.
exec "$python" -m pytest -n $((cores < 8 ? cores : 8)) --dist loadfile --no-loadscope-reorder "$@"
