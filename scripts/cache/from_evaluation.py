"""Make a code cache of the images that an evaluation has generated.

python scripts/cache/from_evaluation.py --evaluation OUT/lpd_20 --cached_path CODES

OUT is the output folder of main_eval.py, and lpd_20 one of the settings in it. So the plan loss of
generated images can be measured as that of real ones, such as what a model thinks of the codes that
--refine has changed:

python main_eval.py --plan_loss --pretrained_ckpt MODEL --cached_path CODES --output_dir LOSSES

Codes and labels are those of the evaluation, in its order. There are none of mirrored images: the
cache is for measuring, not for training with flips.
"""

from dataclasses import dataclass
from pathlib import Path

from lpd import cli


@dataclass(frozen=True, kw_only=True)
class FromEvaluationConfig:
    """Which images, and where their codes go."""

    evaluation: Path
    """A setting's folder in the output of main_eval.py."""
    cached_path: Path
    """Folder for the cache; an interrupted run goes on."""


def main() -> None:
    """Run the program."""
    config = cli.parse(FromEvaluationConfig, "Make a code cache of generated images.")
    with cli.command():
        # After the flags: these import torch, which takes seconds.
        from lpd.evaluation.generated.code_cache import read_generated, write_code_cache

        generated = read_generated(config.evaluation)
        write_code_cache(generated, config.cached_path)
        print(f"{len(generated.codes)} images' codes: {config.cached_path}")


if __name__ == "__main__":
    main()
