"""The output folder of a sweep: what it is of, so that nothing else is added to it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lpd.errors import InputError
from lpd.evaluation.features.extractors import FeatureExtractor
from lpd.evaluation.generated import report
from lpd.evaluation.generated.setting import BASE_NAMES, EvalConfig, base_of
from lpd.evaluation.images.references import ReferenceSource
from lpd.evaluation.measures.records import SETTINGS_NAME
from lpd.files import read_json, sha256_of_file
from lpd.models.lpd import LPDConfig
from lpd.options import defaults
from lpd.provenance import Origin
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import weights_file


def output_origin(
    config: EvalConfig,
    model: LPDConfig,
    tokenizer: VQTokenizer,
    extractor: FeatureExtractor,
    classifier: FeatureExtractor | None,
    source: ReferenceSource | None,
) -> Origin:
    """What all settings of an output folder share: everything their numbers depend on, beside what
    tells settings apart."""
    order_file = config.decoding.lpd_order_file
    # Records of before these were kept count as of what there is now: the weights are the same.
    shapes = {"model_config": model.shape(), "tokenizer_config": asdict(tokenizer.config)}
    return Origin(
        values={
            "pretrained_ckpt": sha256_of_file(weights_file(config.pretrained_ckpt)),
            "vqgan_path": tokenizer.sha256,
            "feature_extractor": extractor.fingerprint,
            "classifier": classifier.fingerprint if classifier else None,
            "reference": source.fingerprint if source else None,
            "img_size": config.img_size,
            "num_images": config.num_images,
            "bf16": config.bf16,
            "pixel_rounding": config.pixel_rounding,
            "lpd_order_file": sha256_of_file(order_file) if order_file else None,
            **shapes,
        },
        defaults={**defaults(EvalConfig), **shapes},
    )


def open_folder(config: EvalConfig, origin: Origin) -> dict[str, Any]:
    """The base of the output folder's settings.

    Raises:
        InputError: the folder is of another origin, or does not say what it is of.
    """
    record = config.output_dir / SETTINGS_NAME
    if not record.is_file():
        for pattern in (f"*/{report.METRICS_NAME}", "*/chunks/*.npz"):
            left = next(iter(config.output_dir.glob(pattern)), None)
            if left is not None:
                raise InputError(
                    f"{left} is there, but no {record}, so nobody knows what made it; remove it, "
                    "or give another --output_dir"
                )
        return base_of(config)
    recorded = read_json(record)
    shared = recorded
    if isinstance(recorded, Mapping):
        shared = {name: value for name, value in recorded.items() if name not in BASE_NAMES}
    origin.check(shared, place=config.output_dir, remedy="give another --output_dir")
    return base_of(config, recorded)
