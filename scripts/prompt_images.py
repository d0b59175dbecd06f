"""Make images of prompts with a model of texts, in the layout that a benchmark's scorer reads.

python scripts/prompt_images.py --pretrained_ckpt MODEL --layout geneval \
    --prompts evaluation_metadata.jsonl --output_dir OUT --generation_steps 64 --cfg 7.5
python scripts/prompt_images.py --layout dpg --prompts dpg_bench/prompts ...
python scripts/prompt_images.py --layout plain --prompts captions.txt ...
bash scripts/launch.sh scripts/prompt_images.py 1 8 --pretrained_ckpt MODEL ...

The scorer is given OUT/images: GenEval's evaluate_images.py, or DPG-Bench's dist_eval.sh with the
images' side in pixels. OUT/prompts.jsonl, which is written when all images are there, tells which
file shows which prompt. The same command goes on from what is there.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpd import cli
from lpd.errors import InputError
from lpd.evaluation.prompts.config import PromptImagesConfig
from lpd.evaluation.prompts.prompt_files import Prompt

CUT = r".*prompts? (is|are) cut to \d+ tokens"
"""What a pipeline warns of, as a pattern."""

if TYPE_CHECKING:
    from lpd.distributed import World
    from lpd.text_pipeline import LPDTextPipeline


def run(config: PromptImagesConfig, world: "World") -> None:
    """Make the images, or what is left of them; all processes of the world call this together.

    Raises:
        InputError: the prompts, the models and the options do not go together, or the output
            folder belongs to others; before any work.
    """
    # After the flags: these import torch, which takes seconds.
    from lpd.evaluation.prompts.generating import make_images
    from lpd.evaluation.prompts.manifest import IMAGES_FOLDER
    from lpd.provenance import Origin

    prompts: list[Prompt] = []
    with world.together():
        if world.is_main:
            prompts = config.layout_entry.read(config.prompts)
    prompts = world.broadcast(prompts)
    values: dict[str, Any] = {}
    with world.together():
        pipeline = load_pipeline(config, world)
        if world.is_main:
            values = identity_of(config, prompts, pipeline)
            _tell_of_cuts(prompts, pipeline)
    origin = Origin(values=world.broadcast(values))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=CUT)  # of every batch: all were told of at once
        made = make_images(config, prompts, pipeline, pipeline.img_size, origin, world)
    if world.is_main:
        total = len(prompts) * config.count
        print(f"{made} images made, {total} in all: {config.output_dir / IMAGES_FOLDER}")


def load_pipeline(config: PromptImagesConfig, world: "World") -> "LPDTextPipeline":
    """The pipeline that is asked for, which shows no bar of its own."""
    from lpd.generation import ImageGenerator
    from lpd.text_pipeline import LPDTextPipeline

    how: dict[str, Any] = {
        "batch_size": config.eval_bsz,
        "backend": config.execution.backend,
        "cuda_graphs": config.execution.cuda_graphs,
    }
    pipeline = LPDTextPipeline.from_pretrained(
        config.pretrained_ckpt,
        config.vqgan_path,
        text_encoder=config.text_encoder,
        device=world.device,
        dtype="bfloat16" if config.bf16 else "float32",
        **how,
    )
    # Pixels are to be the same in any batch, which a pipeline for people does not wait for.
    pipeline.generator = ImageGenerator(
        pipeline.model, pipeline.tokenizer, bf16=config.bf16, same_bits=True, **how
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tell_of_cuts(prompts: Sequence[Prompt], pipeline: "LPDTextPipeline") -> None:
    encoder = pipeline.text_encoder
    num_cut = encoder.num_cut([prompt.text for prompt in prompts])
    if num_cut:
        cli.warn(
            f"{num_cut} of {len(prompts)} prompts have more than the {encoder.max_length} tokens "
            "that the model reads, and are cut there"
        )


def identity_of(
    config: PromptImagesConfig, prompts: Sequence[Prompt], pipeline: "LPDTextPipeline"
) -> dict[str, Any]:
    """Everything that the images depend on.

    Raises:
        InputError: an order file does not fit, or has too few orders.
    """
    from lpd.evaluation.generated.setting import Setting
    from lpd.files import sha256_of_file
    from lpd.pretrained import sha256_of_local
    from lpd.provenance import digest

    options, num_images = config.options, len(prompts) * config.count
    order_file = None if options.lpd_order_file is None else Path(options.lpd_order_file)
    source = options.decoding.source(pipeline.grid, lpd_order_file=order_file)
    if source.order_file is not None and len(source.order_file.orders) < num_images:
        raise InputError(
            f"{order_file} holds {len(source.order_file.orders)} orders, fewer than the "
            f"{num_images} images that are asked for: make more with orders/run_lpd_order.py, or "
            "leave the file out"
        )
    encoder = pipeline.text_encoder
    return {
        "pretrained_ckpt": sha256_of_local(config.pretrained_ckpt) or config.pretrained_ckpt,
        "vqgan_path": pipeline.tokenizer.sha256,
        "text_encoder": encoder.identity.sha256,
        "text_layer": encoder.identity.layer,
        "text_length": encoder.max_length,
        "model_config": pipeline.model.config.shape(),
        "tokenizer_config": dataclasses.asdict(pipeline.tokenizer.config),
        "layout": config.layout,
        "prompts": digest([(prompt.text, prompt.key, prompt.record) for prompt in prompts]),
        "num_images_per_prompt": config.count,
        "negative_prompt": config.negative_prompt,
        "bf16": config.bf16,
        "lpd_order_file": None if order_file is None else sha256_of_file(order_file),
        **Setting(source=source, sampling=options.sampling, seed=config.seed).identity,
    }


def main() -> None:
    """The command."""
    config = cli.parse(
        PromptImagesConfig, "Make images of prompts with a model of texts, as benchmarks read them."
    )
    with cli.command():
        from lpd.distributed import join_world

        with join_world(config.device) as world:
            run(config, world)


if __name__ == "__main__":
    main()
