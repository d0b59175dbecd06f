#!/usr/bin/env bash
# LPD from text to image, from end to end on a CPU: scenes of scanned handwritten digits with
# captions, a VQ tokenizer, a cache of codes and of a text encoder's features, a trained transformer,
# images of prompts in several orders and numbers of passes, scores and a report. Run it again to go
# on where it stopped; what is complete is skipped.
#
#   bash scripts/quickstart_text.sh [--output_dir DIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

started=$(date +%s.%N)
source scripts/environment.sh
setup_seconds=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
exec "$python" scripts/quickstart_text/run.py --setup_seconds "$setup_seconds" "$@"
