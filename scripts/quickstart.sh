#!/usr/bin/env bash
# LPD from end to end on real images, on a CPU, in minutes: scanned handwritten digits, a
# VQ tokenizer, a latent cache, decoding orders, a trained transformer, sampling, an evaluation and
# a report. Run it again to go on where it stopped; what is complete is skipped.
#
#   bash scripts/quickstart.sh [--output_dir DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

started=$(date +%s.%N)
source scripts/environment.sh
setup_seconds=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
exec "$python" scripts/quickstart/run.py --setup_seconds "$setup_seconds" "$@"
