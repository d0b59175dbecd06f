"""Tell how well the images of a model of texts show what their prompts say: by what a benchmark's
own scorer has written, or by a CLIP.

python scripts/prompt_scores.py --benchmark geneval --results results.jsonl --output_dir OUT
python scripts/prompt_scores.py --benchmark dpg --results dpg-bench_results.txt \
    --questions dpg_bench.csv --output_dir OUT
python scripts/prompt_scores.py --clip CLIP --images IMAGES --output_dir OUT

IMAGES is what scripts/prompt_images.py has written, of any layout. How images compare with those of
a data set (FID) is main_eval.py's to tell, of images in the plain layout:

python main_eval.py --samples IMAGES/images --reference REFERENCE --output_dir OUT
"""

import pkgutil

from lpd import cli
from lpd.evaluation.prompts.config import ClipScoreConfig, PromptScoresConfig

MODES = (
    cli.Mode(
        config=PromptScoresConfig,
        description="Read what a benchmark's own scorer has written.",
        run="lpd.evaluation.prompts.scores:run_scores",
    ),
    cli.Mode(
        flag="clip",
        config=ClipScoreConfig,
        description="Compare images with their prompts by a CLIP.",
        run="lpd.evaluation.prompts.clip_score:run_clip_score",
    ),
)


def main() -> None:
    """The command."""
    mode, config = cli.parse_mode(MODES)
    with cli.command():
        # After the flags: this imports torch, which takes seconds.
        pkgutil.resolve_name(mode.run)(config)


if __name__ == "__main__":
    main()
