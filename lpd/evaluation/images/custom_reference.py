"""Statistics of a data set of one's own, in a file as ADM publishes them: what
``main_eval.py --make_reference`` runs.

The file holds ``mu`` and ``sigma``, for Inception ``mu_s`` and ``sigma_s`` too, the features that
KID and recall need, and ``about``: of which images it is, how they were prepared, and what looked
at them. Whatever it is compared with is checked against that.
"""

from pathlib import Path
from typing import Any

from lpd import cli
from lpd.data.transforms import PREPARATION
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.digests import array_digest
from lpd.evaluation.features.extractors import load_feature_extractor
from lpd.evaluation.images.modes import MakeReferenceConfig
from lpd.evaluation.images.references import (
    MeasuredReference,
    ReferenceSource,
    measure_reference,
    open_reference,
)
from lpd.evaluation.images.results import find_duplicates
from lpd.evaluation.images.statistics_file import read_statistics, write_statistics
from lpd.machine import environment
from lpd.provenance import Origin


def run_make_reference(config: MakeReferenceConfig, world: World) -> None:
    """Make the file, or what is left of it; one that is there already stays as it is.

    Raises:
        InputError: there are no images, one cannot be read, or the file is of others.
    """
    data, file = config.make_reference
    options = config.measuring
    with world.together():
        extractor = load_feature_extractor(
            options.feature_extractor, world.device, options.inception_path
        )
        source = open_reference(data, config.img_size, extractor)
        if source.images is None:
            raise InputError(f"{data} holds statistics, and no images to make them of")
    origin = Origin(
        values={
            "img_size": config.img_size,
            "images": source.fingerprint,
            "extractor": extractor.fingerprint,
        }
    )
    with world.together():
        is_there = world.is_main and _is_made(file, origin)
    if world.broadcast(is_there):
        if world.is_main:
            print(f"the reference {file} is complete: {source.num_images} images")
        return

    def keep(measured: MeasuredReference) -> None:
        about = {**origin.plain(), **_about(source, measured, environment(world.device))}
        write_statistics(file, measured.reference, about=about)
        duplicates = find_duplicates(measured.digests)
        for warning in duplicates.warnings(source.num_images, lambda row: f"image {row}"):
            cli.warn(warning)
        print(f"{source.num_images} images: {file}")

    measure_reference(source, extractor, file, world, keep, num_workers=options.num_workers)


def _about(
    source: ReferenceSource, measured: MeasuredReference, found: dict[str, Any]
) -> dict[str, Any]:
    return {
        "num_images": source.num_images,
        "preparation": PREPARATION,
        "pixels": array_digest(measured.digests),
        "duplicates": find_duplicates(measured.digests).count,
        "versions": found["versions"],
        "device": found["device"],
    }


def _is_made(file: Path, origin: Origin) -> bool:
    """Whether the file is there, of this origin.

    Raises:
        InputError: it is of another.
    """
    if not file.is_file():
        return False
    recorded = read_statistics(file).about
    known = {name: value for name, value in recorded.items() if name in origin.values}
    origin.check(known, place=file, remedy="give another name, or remove it")
    return True
