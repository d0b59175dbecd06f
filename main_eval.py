"""Generate images with a trained model and measure them.

python main_eval.py --pretrained_ckpt MODEL --vqgan_path TOKENIZER --output_dir OUT --cfg 4.8
torchrun --nproc_per_node=8 main_eval.py ...
"""

from lpd import cli
from lpd.evaluation.setting import EvalConfig


def main() -> None:
    """The command."""
    config = cli.parse(EvalConfig, "Generate images with a trained model and measure them.")
    with cli.command():
        # After the flags: these import torch, which takes seconds.
        from lpd.distributed import join_world
        from lpd.evaluation.sweep import run_evaluation

        with join_world(config.device) as world:
            run_evaluation(config, world)


if __name__ == "__main__":
    main()
