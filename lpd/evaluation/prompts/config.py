"""What is asked of the programs about prompts: the options.

Nothing here needs torch, so that flags are read in no time.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lpd.errors import InputError
from lpd.evaluation.prompts.benchmark_files import benchmark_help, find_benchmark
from lpd.evaluation.prompts.layouts import Layout, find_layout, layout_help
from lpd.evaluation.prompts.published import find_row
from lpd.options import Flat
from lpd.pipeline_options import PipelineOptions
from lpd.randomness import check_seed
from lpd.sampling.execution import ExecutionOptions

_LAYOUT = tyro.conf.arg(help=f"What --prompts is and what is written: {layout_help()}.")
_BENCHMARK = tyro.conf.arg(help=f"Whose --results they are: {benchmark_help()}.")
_MOST_PER_PROMPT = 10_000
_MOST_BATCH = 100_000


@dataclass(frozen=True, kw_only=True)
class PromptImagesConfig:
    """Make images of prompts, in the layout of a benchmark."""

    pretrained_ckpt: str
    """The model, one of texts: a folder, a weight file, or a repository of the hub."""
    prompts: Path
    """The prompts: a file or folder, by --layout."""
    output_dir: Path
    """Where images/ and prompts.jsonl go. The same command goes on from what is there."""
    layout: Annotated[str, _LAYOUT] = "plain"
    vqgan_path: str | None = None
    """The tokenizer. By default the one beside the model, or that of the published models."""
    text_encoder: str | None = None
    """The text encoder: a folder, or a repository of the hub. By default the one that the model
    names."""
    num_images_per_prompt: int | None = None
    """Images of each prompt; as many as the benchmark has by default, and 1 of plain prompts."""
    negative_prompt: str | None = None
    """What guidance leads away from, in place of no text."""
    options: Annotated[PipelineOptions, Flat] = field(default_factory=PipelineOptions)
    bf16: bool = False
    """Compute in bfloat16."""
    execution: Annotated[ExecutionOptions, Flat] = field(default_factory=ExecutionOptions)
    eval_bsz: int = 16
    """Images generated at a time, per process."""
    seed: int = 0
    """Image i depends on its prompt, the options, the seed and i alone."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""

    def __post_init__(self) -> None:
        count, layout = self.num_images_per_prompt, find_layout(self.layout)
        if count is not None:
            if not 1 <= count <= _MOST_PER_PROMPT:
                raise InputError(
                    f"num_images_per_prompt must be from 1 to {_MOST_PER_PROMPT}, got {count}"
                )
            layout.check_count(count)
        if not 1 <= self.eval_bsz <= _MOST_BATCH:
            raise InputError(f"eval_bsz must be from 1 to {_MOST_BATCH}, got {self.eval_bsz}")
        if self.negative_prompt is not None and self.options.sampling.cfg == 1:
            raise InputError(
                "negative_prompt has an effect only with guidance: give --cfg above 1, or leave "
                "--negative_prompt out"
            )
        check_seed(self.seed)

    @property
    def layout_entry(self) -> Layout:
        """The layout that is asked for."""
        return find_layout(self.layout)

    @property
    def count(self) -> int:
        """How many images of each prompt are asked for."""
        return self.num_images_per_prompt or self.layout_entry.usual_count


@dataclass(frozen=True, kw_only=True)
class PromptScoresConfig:
    """Read what a benchmark's own scorer has written."""

    benchmark: Annotated[str, _BENCHMARK]
    results: Path
    """The file that the scorer has written."""
    output_dir: Path
    """Where results.json goes."""
    questions: Path | None = None
    """DPG-Bench's dpg_bench.csv, for the scores of its categories over all images, with errors."""
    published_row: str | None = None
    """A published result, such as lpd_t2i_l_1024_64, which is told beside the score."""

    def __post_init__(self) -> None:
        benchmark = find_benchmark(self.benchmark)
        if self.questions is not None and not benchmark.has_questions:
            raise InputError(
                f"questions {self.questions} are not for {self.benchmark}, whose file tells its "
                "tasks: leave --questions out"
            )
        if self.published_row is not None:
            find_row(self.published_row, self.benchmark)


@dataclass(frozen=True, kw_only=True)
class ClipScoreConfig:
    """Compare images with their prompts by a CLIP."""

    clip: Path
    """The CLIP: a folder with model.safetensors, its configurations and its tokenizer's files."""
    images: Path
    """What scripts/prompt_images.py has written: a folder with prompts.jsonl."""
    output_dir: Path
    """Where numbers go. The same command goes on from what is there."""
    device: str | None = None
    """Such as cpu or cuda; the GPU where there is one by default."""
    num_workers: int = 4
    """Processes that read images, per process; 0 reads them in this one."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, got {self.num_workers}")
