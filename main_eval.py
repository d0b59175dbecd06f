"""Measure a trained model: of images that it generates, or without any.

python main_eval.py --pretrained_ckpt MODEL --vqgan_path TOKENIZER --output_dir OUT --cfg 4.8
python main_eval.py --plan_loss --pretrained_ckpt MODEL --cached_path CODES --output_dir OUT
torchrun --nproc_per_node=8 main_eval.py ...
"""

import pkgutil

from lpd import cli
from lpd.evaluation.plan_loss_config import PlanLossConfig
from lpd.evaluation.setting import EvalConfig

MODES = (
    cli.Mode(
        config=EvalConfig,
        description="Generate images with a trained model and measure them.",
        run="lpd.evaluation.sweep:run_evaluation",
    ),
    cli.Mode(
        flag="plan_loss",
        config=PlanLossConfig,
        description="Measure what plans of decoding cost on held-out codes, without sampling.",
        run="lpd.evaluation.plan_losses:run_plan_loss",
    ),
)
"""What the program does: each takes its configuration, which names a device, and the world."""


def main() -> None:
    """The command."""
    mode, config = cli.parse_mode(MODES)
    with cli.command():
        # After the flags: these import torch, which takes seconds.
        from lpd.distributed import join_world

        run = pkgutil.resolve_name(mode.run)
        with join_world(config.device) as world:
            run(config, world)


if __name__ == "__main__":
    main()
