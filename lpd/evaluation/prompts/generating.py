"""Images of prompts, by any number of processes, that go on from what is there.

A prompt's files are made together, by one process. Image j of prompt i has index i n + j in the
run, n images of each prompt, and depends on its prompt, the options, the seed and that index alone.
"""

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from lpd.distributed import World, alone_in
from lpd.errors import InputError
from lpd.evaluation.measures.records import SETTINGS_NAME
from lpd.evaluation.prompts.config import PromptImagesConfig
from lpd.evaluation.prompts.layouts import Place
from lpd.evaluation.prompts.manifest import IMAGES_FOLDER, PromptImage, write_manifest
from lpd.evaluation.prompts.prompt_files import Prompt
from lpd.files import write_json
from lpd.options import flatten
from lpd.progress import progress
from lpd.provenance import Origin, missing


class Result(Protocol):
    """What a call of a pipeline gives."""

    @property
    def images(self) -> list[Image.Image]:
        """An image of each prompt."""


class PromptPipeline(Protocol):
    """What makes images of prompts: :class:`lpd.text_pipeline.LPDTextPipeline`."""

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str | None,
        seed: int,
        image_indices: npt.NDArray[np.int64],
        **options: Any,
    ) -> Result:
        """An image of each prompt.

        Args:
            prompts: what they are to show.
            negative_prompt: what guidance leads away from.
            seed: the run's seed.
            image_indices: (n,) their indices in the run.
            options: those of :class:`lpd.pipeline_options.PipelineOptions`.
        """


def make_images(
    config: PromptImagesConfig,
    prompts: Sequence[Prompt],
    pipeline: PromptPipeline,
    img_size: int,
    origin: Origin,
    world: World,
) -> int:
    """Make the images that are not there, then ``prompts.jsonl``; all processes call this together.

    Args:
        config: what is asked for.
        prompts: what to show, the same on all processes.
        pipeline: what makes images, of one size.
        img_size: their side in pixels.
        origin: everything that they depend on, the same on all processes.
        world: the run's processes.

    Returns:
        How many images were made, by all processes.

    Raises:
        InputError: the folder belongs to others or to another origin, the system refuses to write
            there, or an image is none; on all processes.
    """
    layout, count, folder = config.layout_entry, config.count, config.output_dir
    images_folder = folder / IMAGES_FOLDER
    with alone_in(folder, "a program that makes images of prompts", world):
        todo: list[int] = []
        with world.together():
            if world.is_main:
                _open_folder(folder, origin)
                todo = [
                    row
                    for row, prompt in enumerate(prompts)
                    if missing(images_folder / file for file in layout.files(prompt, count))
                ]
        todo = world.broadcast(todo)
        own = [prompts[todo[place]] for place in world.shard(len(todo))]
        with contextlib.closing(_made(config, own, pipeline, is_shown=world.is_main)) as made:
            for part in world.rounds(todo):
                with world.together():
                    for row in part:
                        layout.write(images_folder, prompts[row], next(made))
        with world.together():
            if world.is_main:
                write_manifest(
                    folder,
                    (
                        PromptImage(
                            place=Place(file=Path(IMAGES_FOLDER, place.file), box=place.box),
                            prompt=prompt.text,
                        )
                        for prompt in prompts
                        for place in layout.places(prompt, count, img_size)
                    ),
                )
    return len(todo) * count


def _open_folder(folder: Path, origin: Origin) -> None:
    """Check that the folder is this run's, and write down what it is made of.

    Raises:
        InputError: it is another's.
    """
    record, images = folder / SETTINGS_NAME, folder / IMAGES_FOLDER
    remedy = "give another --output_dir"
    if not origin.check_file(record, remedy=remedy) and images.is_dir() and any(images.iterdir()):
        raise InputError(
            f"{images} holds files, but there is no {record}, so nobody knows what made them; "
            f"remove them, or {remedy}"
        )
    write_json(record, origin.plain())


def _made(
    config: PromptImagesConfig,
    prompts: Sequence[Prompt],
    pipeline: PromptPipeline,
    *,
    is_shown: bool,
) -> Generator[list[Image.Image], None, None]:
    """The images of one prompt after the other, made ``eval_bsz`` at a time."""
    count, options = config.count, flatten(config.options)
    wanted = [(prompt, number) for prompt in prompts for number in range(count)]
    waiting: list[Image.Image] = []
    with progress(
        total=len(wanted), desc="images", unit="image", disable=not (is_shown and wanted)
    ) as bar:
        for start in range(0, len(wanted), config.eval_bsz):
            batch = wanted[start : start + config.eval_bsz]
            result = pipeline(
                [prompt.text for prompt, _ in batch],
                negative_prompt=config.negative_prompt,
                seed=config.seed,
                image_indices=np.array(
                    [prompt.index * count + number for prompt, number in batch], dtype=np.int64
                ),
                **options,
            )
            waiting += result.images
            bar.update(len(batch))
            while len(waiting) >= count:
                yield waiting[:count]
                del waiting[:count]
