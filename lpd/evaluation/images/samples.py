"""Measure the images of any model: what ``main_eval.py --samples`` runs."""

from lpd import cli
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.batches import FeatureBatch
from lpd.evaluation.features.digests import array_digest
from lpd.evaluation.features.extractors import (
    FeatureExtractor,
    load_classifier,
    load_feature_extractor,
    with_classifier,
)
from lpd.evaluation.features.names import INCEPTION
from lpd.evaluation.images.modes import SamplesConfig
from lpd.evaluation.images.parts import (
    DIGESTS,
    PartFolder,
    concatenated,
    look_at_features,
    make_parts,
)
from lpd.evaluation.images.references import (
    NO_REFERENCE,
    ReferenceSource,
    load_reference,
    open_reference,
)
from lpd.evaluation.images.results import (
    PUBLISHED_IMAGES,
    Results,
    find_duplicates,
    measured_once,
)
from lpd.evaluation.images.sources import SampleSource, open_samples
from lpd.evaluation.measures import metrics, tables
from lpd.evaluation.measures.metrics import Number, all_numbers
from lpd.evaluation.measures.records import RESULTS_NAME, write_class_accuracy
from lpd.evaluation.measures.reference import Reference
from lpd.provenance import Origin

_COLUMNS = (
    Number(key="images", heading="images", format="{}"),
    *all_numbers(),
    Number(key="duplicates", heading="duplicates", format="{}"),
)


def run_samples(config: SamplesConfig, world: World) -> Results:
    """Measure the images, or what is left of them, and report the numbers.

    Returns:
        What ``results.json`` holds, on every process.

    Raises:
        InputError: the images, the reference and the extractor do not go together, or the output
            folder belongs to others; before any work. Or an image is not as it should be.
    """
    options = config.measuring
    with world.together():
        extractor = load_feature_extractor(
            options.feature_extractor, world.device, options.inception_path
        )
        classifier = load_classifier(config.classifier, world.device)
        seen_by = with_classifier(extractor, classifier)
        source = open_samples(config, seen_by)
        reference = None
        if config.reference is not None:
            reference = open_reference(config.reference, source.size, extractor)
    origin: Origin = world.broadcast(_origin(source, extractor, classifier, reference))
    with world.together():
        if origin.values["samples"] != source.fingerprint:
            raise InputError(
                f"{config.samples} of rank {world.rank} does not hold what that of rank 0 does; "
                "give images on a file system that all machines share"
            )

    def measure(parts: PartFolder) -> Results | None:
        compared_with = Reference()
        if reference is not None:
            compared_with = load_reference(
                reference,
                extractor,
                config.output_dir / "reference.npz",
                world,
                num_workers=options.num_workers,
            )
        make_parts(
            parts,
            source.images,
            world,
            look_at_features(seen_by),
            what=f"samples {config.samples}",
            num_workers=options.num_workers,
        )
        if not world.is_main:
            return None
        return _results(config, world, source, seen_by, compared_with, parts)

    results = measured_once(config.output_dir, origin, source.num_images, world, measure)
    if world.is_main:
        for warning in results["warnings"]:
            cli.warn(warning)
        print(tables.table([{**results, **results["metrics"]}], _COLUMNS))
        print(f"numbers: {config.output_dir / RESULTS_NAME}")
    return results


def _origin(
    source: SampleSource,
    extractor: FeatureExtractor,
    classifier: FeatureExtractor | None,
    reference: ReferenceSource | None,
) -> Origin:
    return Origin(
        values={
            "samples": source.fingerprint,
            "labels": None if source.labels is None else array_digest(source.labels),
            "feature_extractor": extractor.fingerprint,
            "classifier": None if classifier is None else classifier.fingerprint,
            "reference": None if reference is None else reference.fingerprint,
            "img_size": source.size,
            "num_images": source.num_images,
        },
        defaults={"classifier": None},
    )


def _results(
    config: SamplesConfig,
    world: World,
    source: SampleSource,
    extractor: FeatureExtractor,
    reference: Reference,
    parts: PartFolder,
) -> Results:
    """The numbers of images that have been seen.

    Raises:
        InputError: the images have changed meanwhile.
    """
    if open_samples(config, extractor).fingerprint != source.fingerprint:
        raise InputError(
            f"{config.samples} changed while it was measured: wait until all images are written, "
            "and give another --output_dir"
        )
    seen = concatenated(parts.read())
    measured = FeatureBatch.from_arrays(seen)
    assert measured is not None
    samples = metrics.Samples.of(measured, source.labels, device=world.device)
    write_class_accuracy(config.output_dir, samples)
    duplicates = find_duplicates(seen[DIGESTS])
    return {
        "images": source.num_images,
        "size": source.size,
        "pixels": array_digest(seen[DIGESTS]),
        "duplicates": duplicates.count,
        "passed_over": source.passed_over,
        "metrics": dict(metrics.compute_metrics(samples, reference)),
        "warnings": [
            *source.warnings,
            *duplicates.warnings(source.num_images, source.name),
            *_not_comparable(config, source.num_images),
        ],
    }


def _not_comparable(config: SamplesConfig, num_images: int) -> list[str]:
    if config.reference is None:
        return [NO_REFERENCE]
    if config.measuring.feature_extractor == INCEPTION and num_images < PUBLISHED_IMAGES:
        warning = (
            f"FID of {num_images} images is larger than that of more from the same model: it does "
            f"not compare with published numbers, which are of {PUBLISHED_IMAGES}"
        )
        return [warning]
    return []
