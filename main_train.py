"""Train an LPD transformer on cached codes, on one CPU or on many GPU nodes.

torchrun --nproc_per_node=8 main_train.py --model lpd_l --cached_path CACHE --output_dir OUT --bf16
"""

import sys

from lpd import cli
from lpd.training.config import TrainConfig

INTERRUPTED = 130


def run(config: TrainConfig) -> int:
    """Train to the end, or until told to stop. Returns the exit code."""
    # Not before the flags are read: torch takes seconds to import, and --help has no use for it.
    from lpd.distributed import alone_in, join_world
    from lpd.locks import remove_left_lock
    from lpd.training.setup import TrainingSetup
    from lpd.training.trainer import Trainer

    with join_world(config.device) as world:
        setup = TrainingSetup(config, world)
        if setup.is_complete():
            if world.is_main:
                remove_left_lock(config.output_dir)
                print(f"the training in {config.output_dir} is complete already")
            return 0
        trainer = Trainer(setup, warn=cli.warn)
        if world.is_main:
            print(trainer.summary())
        with alone_in(config.output_dir, "a training", world):
            complete = trainer.train()
        if complete:
            if world.is_main:
                print(f"trained: {setup.exported_model}{trainer.reservation()}")
            return 0
        if world.is_main:
            print(f"stopped after step {trainer.step}; the same command goes on from there")
        return INTERRUPTED


def main() -> None:
    """The command."""
    config = cli.parse(TrainConfig, "Train an LPD transformer on cached codes.")
    with cli.command():
        code = run(config)
    sys.exit(code)


if __name__ == "__main__":
    main()
