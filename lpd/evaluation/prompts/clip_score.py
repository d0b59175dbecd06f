"""How well images show what their prompts say, by a CLIP: what ``scripts/prompt_scores.py --clip``
runs.

The CLIP score of an image is 100 max(cos, 0), cos being that between its vector and its prompt's.
Numbers of one CLIP compare with none of another.

n images, D dimensions of the CLIP's space.
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lpd import cli
from lpd.data.images import LoadedImage, read_image
from lpd.distributed import World, join_world
from lpd.errors import InputError
from lpd.evaluation.images.parts import PartFolder, Pending, concatenated, make_parts
from lpd.evaluation.images.results import Results, measured_once
from lpd.evaluation.measures import tables
from lpd.evaluation.measures.metrics import Number
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.evaluation.prompts.accuracy import mean_of_images
from lpd.evaluation.prompts.clip import Clip
from lpd.evaluation.prompts.config import ClipScoreConfig
from lpd.evaluation.prompts.manifest import PromptImage, read_manifest
from lpd.files import printable
from lpd.provenance import Origin

_VECTORS = "vectors"
_COLUMNS = (
    Number(key="clip_score", heading="CLIP score", format="{:.3f}"),
    Number(key="images", heading="images", format="{}"),
    Number(key="prompts", heading="prompts", format="{}"),
)


class _ClipImages(Dataset[LoadedImage]):
    """Images as a CLIP sees them: (3, S, S) float32."""

    def __init__(self, folder: Path, images: Sequence[PromptImage], clip: Clip) -> None:
        self._folder = folder
        self._images = images
        # No model goes to the processes that read images.
        self._clip = dataclasses.replace(clip, model=None)
        self._blank = torch.zeros_like(clip.pixels(Image.new("RGB", (1, 1))))

    def __getitem__(self, row: int) -> LoadedImage:
        place = self._images[row].place
        try:
            image = read_image(self._folder / place.file)
            if place.box is not None:
                if place.box[2] > image.width or place.box[3] > image.height:
                    raise InputError(
                        f"{printable(place.file)} has {image.width} x {image.height} pixels, and "
                        f"no part {place.box}"
                    )
                image = image.crop(place.box)
            return LoadedImage(self._clip.pixels(image), "")
        except InputError as error:
            return LoadedImage(self._blank, str(error))


def run_clip_score(config: ClipScoreConfig) -> Results:
    """Measure the images, or what is left of them, and show the number.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: there is no CLIP or no image, one cannot be read, or the output folder belongs
            to others.
    """
    with join_world(config.device) as world:
        return measure_clip_score(config, world)


def measure_clip_score(config: ClipScoreConfig, world: World) -> Results:
    """As :func:`run_clip_score`, by the processes of a run; they call this together."""
    with world.together():
        clip = Clip.from_folder(config.clip, world.device)
        images = read_manifest(config.images)
    origin: Origin = world.broadcast(
        Origin(
            values={
                "clip": clip.fingerprint,
                "images": _state_of_images(config.images, images),
                "transformers": importlib.metadata.version("transformers"),
            }
        )
    )

    def look(pixels: Tensor) -> Pending:
        vectors = clip.embed_images(pixels)
        return lambda: {_VECTORS: vectors.cpu().numpy()}

    def measure(parts: PartFolder) -> Results | None:
        make_parts(
            parts,
            _ClipImages(config.images, images, clip),
            world,
            look,
            what=f"images {config.images}",
            num_workers=config.num_workers,
        )
        if not world.is_main:
            return None
        return _results(clip, images, concatenated(parts.read())[_VECTORS])

    results = measured_once(config.output_dir, origin, len(images), world, measure)
    if world.is_main:
        for warning in results["warnings"]:
            cli.warn(warning)
        print(tables.table([{**results, **results["metrics"]}], _COLUMNS))
        print(f"numbers: {config.output_dir / RESULTS_NAME}")
    return results


def _results(
    clip: Clip, images: Sequence[PromptImage], vectors: npt.NDArray[np.float32]
) -> Results:
    """The numbers of images by their (n, D) vectors."""
    prompts = [image.prompt for image in images]
    texts = list(dict.fromkeys(prompts))
    row_of = {text: row for row, text in enumerate(texts)}
    wanted = clip.embed_texts(texts)[[row_of[prompt] for prompt in prompts]]  # (n, D)
    cosines = (vectors.astype(np.float64) * wanted).sum(1)  # (n,)
    if not np.isfinite(cosines).all():
        raise InputError("the CLIP's vectors are not finite (NaN or infinity): its weights are bad")
    mean = mean_of_images((100 * np.maximum(cosines, 0)).tolist(), prompts)
    numbers = mean.plain("clip_score")
    warnings = []
    num_cut = clip.num_cut(texts)
    if num_cut:
        warnings.append(
            f"{num_cut} of {len(texts)} prompts have more than the CLIP's {clip.max_tokens} "
            "tokens, and are read up to there"
        )
    return {
        "images": numbers.pop("images"),
        "prompts": numbers.pop("prompts"),
        "prompts_cut": num_cut,
        "metrics": numbers,
        "warnings": warnings,
    }


def _state_of_images(folder: Path, images: Sequence[PromptImage]) -> str:
    """A SHA-256 of the images' places, their prompts, and their files' sizes and times."""
    listing = hashlib.sha256()
    for image in images:
        state = (folder / image.place.file).stat()
        line = f"{image.place} {image.prompt!r} {state.st_size} {state.st_mtime_ns}\n"
        listing.update(line.encode(errors="surrogateescape"))
    return listing.hexdigest()
