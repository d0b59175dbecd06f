#!/usr/bin/env bash
# Train LPD-L at 512 pixels as published: 4 nodes of 8 GPUs.
#
#   bash scripts/train/lpd_l_512.sh [FLAGS...]
#
# Paths come from the environment: CACHED_PATH (the code cache), PRETRAINED (the 256-pixel model) and
# OUTPUT. NNODES and NPROC_PER_NODE run it elsewhere: the learning rate follows the global batch. Flags
# win over all.
#
# Every process needs about 40 GiB of its GPU by estimate (lpd/training/memory.py; --dry_run prints it).
# With less: --grad_checkpointing, with --checkpoint_every 2 of every second block, and --chunked_loss.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../paths.sh"

need "${CACHED_PATH:=}" CACHED_PATH cached_path "make a code cache with scripts/cache/imagenet_512.sh"
need "${PRETRAINED:=runs/train/lpd_l_256/model}" PRETRAINED pretrained_ckpt "train lpd_l_256 first, or python scripts/download_weights.py lpd_l_256 and PRETRAINED=weights/lpd_l_256.pth"

exec bash scripts/launch.sh main_train.py 4 8 \
    --model lpd_l --img_size 512 --cached_path "$CACHED_PATH" --batch_size 16 \
    --pretrained_ckpt "$PRETRAINED" \
    --epochs 50 --warmup_epochs 1 --lr_schedule cosine \
    --blr 1e-4 --min_lr 1e-5 --weight_decay 0.02 --grad_clip 3.0 --proj_dropout 0.1 \
    --label_drop_prob 0.1 --bf16 --output_dir "${OUTPUT:-runs/train/lpd_l_512}" "$@"
