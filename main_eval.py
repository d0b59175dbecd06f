"""Measure a trained model: of images that it generates, or without any. And measure images of
others, make references for them, and tell what a tokenizer loses.

python main_eval.py --pretrained_ckpt MODEL --vqgan_path TOKENIZER --output_dir OUT --cfg 4.8
python main_eval.py --plan_loss --pretrained_ckpt MODEL --cached_path CODES --output_dir OUT
python main_eval.py --samples FOLDER_OR_NPZ --reference REFERENCE --output_dir OUT
python main_eval.py --make_reference IMAGES OUT.npz --img_size 256
python main_eval.py --reconstruct --vqgan_path TOKENIZER --data_path IMAGES --output_dir OUT
torchrun --nproc_per_node=8 main_eval.py ...
"""

import pkgutil

from lpd import cli
from lpd.evaluation.generated.setting import EvalConfig
from lpd.evaluation.images.modes import (
    MakeReferenceConfig,
    ReconstructConfig,
    SamplesConfig,
)
from lpd.evaluation.plan_loss.config import PlanLossConfig

MODES = (
    cli.Mode(
        config=EvalConfig,
        description="Generate images with a trained model and measure them.",
        run="lpd.evaluation.generated.sweep:run_evaluation",
    ),
    cli.Mode(
        flag="plan_loss",
        config=PlanLossConfig,
        description="Measure what plans of decoding cost on held-out codes, without sampling.",
        run="lpd.evaluation.plan_loss.measuring:run_plan_loss",
    ),
    cli.Mode(
        flag="samples",
        config=SamplesConfig,
        description="Measure the images of any model, in a folder or an .npz.",
        run="lpd.evaluation.images.samples:run_samples",
    ),
    cli.Mode(
        flag="make_reference",
        config=MakeReferenceConfig,
        description="Make statistics of a data set, to compare images with.",
        run="lpd.evaluation.images.custom_reference:run_make_reference",
    ),
    cli.Mode(
        flag="reconstruct",
        config=ReconstructConfig,
        description="Measure what a tokenizer loses of images: the ceiling of models of its codes.",
        run="lpd.evaluation.images.reconstruction:run_reconstruction",
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
