#!/usr/bin/env bash
# Measure the paper's table: fetch what is missing, make orders, evaluate row after row, and print and
# write the numbers beside the paper's. Run it again to go on where it stopped.
#
#   bash scripts/reproduce.sh [--rows lpd_l_256_20 ...] [--num_images 50000] [--seed 0 1 2] [FLAGS...]
#
# FLAGS are main_eval.py's. NPROC_PER_NODE says on how many GPUs; by default on all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
source scripts/environment.sh
exec "$python" scripts/reproduce/run.py "$@"
