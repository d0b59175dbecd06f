#!/usr/bin/env bash
# Kill caching, training and the making of orders at random moments, half of them inside saves, start
# them again by the same command, and compare what they make with what they make undisturbed. Exit
# code 1 where anything differs. Takes some twenty minutes on two cores.
#
#   bash scripts/fault_drill.sh [--programs caching training orders training_x2] [--kills N] [--seed N]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
exec "$python" scripts/fault_drill/run.py "$@"
