#!/usr/bin/env bash
# Set up what the tests need and run them.
#
#   bash scripts/test.sh [--quick] [PYTEST ARGUMENTS...]
#
# --quick is the inner loop, under a minute on two cores: it leaves out the tests marked slow, those
# that start whole programs, train for long, or otherwise take a second or more. Without it all run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
if [ "${1:-}" = --quick ]; then
    shift
    set -- -m "not slow" "$@"
fi
exec "$python" -m pytest "$@"
