#!/usr/bin/env bash
# LPD-L at 512 pixels in 48 passes, as published.
#
#   bash scripts/eval/lpd_l_res512_steps48.sh [FLAGS...]
#
# Paths come from the environment: CKPT (the model), VQGAN (the tokenizer), REFERENCE (ADM's
# statistics), ORDERS (pre-generated orders; made as needed without) and OUTPUT. Flags win over all.
# At the end the numbers stand beside the paper's; --measure_speed has those of speed there too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../paths.sh"

need "${CKPT:=weights/lpd_l_512.pth}" CKPT pretrained_ckpt "python scripts/download_weights.py lpd_l_512"
need "${VQGAN:=tokenizers/vq_ds16_c2i.pt}" VQGAN vqgan_path "python scripts/download_weights.py tokenizer"
need "${REFERENCE:=weights/VIRTUAL_imagenet512.npz}" REFERENCE reference "python scripts/download_weights.py reference_512"
orders "orders/lpd_orders_generated/res512_steps48_repulsion4"

exec bash scripts/launch.sh main_eval.py 1 8 \
    --model lpd_l --img_size 512 --pretrained_ckpt "$CKPT" --vqgan_path "$VQGAN" \
    --generation_steps 48 --order lpd --repulsion_threshold 4 "${order_flags[@]}" \
    --cfg 7.3 --cfg_schedule linear --num_images 50000 --eval_bsz 64 --bf16 \
    --published_row lpd_l_512_48 --throughput_bsz 64 \
    --reference "$REFERENCE" --output_dir "${OUTPUT:-runs/eval/lpd_l_res512_steps48}" "$@"
