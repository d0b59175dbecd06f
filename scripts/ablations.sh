#!/usr/bin/env bash
# Compare ways to decode with one published model, LPD-L at 256 pixels, as the paper's ablations do.
#
#   bash scripts/ablations.sh orders|thresholds|passes [FLAGS...]
#
# orders: raster, random, Halton's and the locality-aware order; thresholds: every proximity threshold
# with every repulsion threshold; passes: from one code at a time, 256, to 8. Several --seed tell mean
# and standard error. Paths are those of scripts/eval; FLAGS, main_eval.py's, win over all. Nothing is
# compared with the paper.
set -euo pipefail

case ${1:-} in
orders) sweep=(--order raster random halton lpd) ;;
thresholds) sweep=(--proximity_threshold 0.5 1 1.5 2 --repulsion_threshold 0 1 2 3 4) ;;
passes) sweep=(--generation_steps 256 128 64 32 24 20 16 12 8) ;;
*)
    echo "ablations.sh: error: usage: ablations.sh orders|thresholds|passes [FLAGS...]" >&2
    exit 2
    ;;
esac
name=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export OUTPUT=${OUTPUT:-$root/runs/ablations/$name}
# A file of orders is of one setting; here they are made as needed.
exec bash "$root/scripts/eval/lpd_l_res256_steps20.sh" \
    --published_row None --lpd_order_file None "${sweep[@]}" "$@"
