#!/usr/bin/env bash
# LPD-L at 256 pixels in 32 passes, as published.
#
#   bash scripts/eval/lpd_l_res256_steps32.sh [FLAGS...]
#
# Paths come from the environment: CKPT (the model), VQGAN (the tokenizer), REFERENCE (ADM's
# statistics), ORDERS (pre-generated orders; made as needed without) and OUTPUT. Flags win over all.
# At the end the numbers stand beside the paper's; --measure_speed has those of speed there too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../paths.sh"

need "${CKPT:=weights/lpd_l_256.pth}" CKPT pretrained_ckpt "python scripts/download_weights.py lpd_l_256"
need "${VQGAN:=tokenizers/vq_ds16_c2i.pt}" VQGAN vqgan_path "python scripts/download_weights.py tokenizer"
need "${REFERENCE:=weights/VIRTUAL_imagenet256_labeled.npz}" REFERENCE reference "python scripts/download_weights.py reference_256"
orders "orders/lpd_orders_generated/res256_steps32_repulsion2"

exec bash scripts/launch.sh main_eval.py 1 8 \
    --model lpd_l --img_size 256 --pretrained_ckpt "$CKPT" --vqgan_path "$VQGAN" \
    --generation_steps 32 --order lpd --repulsion_threshold 2 "${order_flags[@]}" \
    --cfg 5.4 --cfg_schedule linear --num_images 50000 --eval_bsz 256 --bf16 \
    --published_row lpd_l_256_32 --throughput_bsz 64 \
    --reference "$REFERENCE" --output_dir "${OUTPUT:-runs/eval/lpd_l_res256_steps32}" "$@"
