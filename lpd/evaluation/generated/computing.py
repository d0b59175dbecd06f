"""The numbers of a setting, from its chunks.

n images, N positions.
"""

import numpy as np
import torch

from lpd.evaluation.features.batches import FeatureBatch
from lpd.evaluation.features.digests import array_digest
from lpd.evaluation.generated.chunks import Chunk
from lpd.evaluation.generated.report import SettingResult
from lpd.evaluation.generated.setting import Setting
from lpd.evaluation.generated.timing import seconds_per_image, share_elsewhere, total
from lpd.evaluation.measures import metrics
from lpd.evaluation.measures.reference import Reference


def samples_of(
    chunks: list[Chunk], *, tells_classes: bool, device: torch.device
) -> metrics.Samples:
    """What metrics are computed of.

    Args:
        chunks: all of a setting, with features, in the order of their images.
        tells_classes: whether logits, the classifier's or the extractor's, stand for the run's
            classes.
        device: where much is computed.
    """
    labels = np.concatenate([chunk.labels for chunk in chunks])  # (n,)
    return metrics.Samples.of(
        FeatureBatch.concatenate([_measured(chunk) for chunk in chunks]),
        labels if tells_classes else None,
        device=device,
    )


def _measured(chunk: Chunk) -> FeatureBatch:
    assert chunk.measured is not None
    return chunk.measured


def compute_result(
    setting: Setting, chunks: list[Chunk], samples: metrics.Samples, reference: Reference
) -> SettingResult:
    """Compute a setting's numbers.

    Args:
        setting: what was generated.
        chunks: all of it; their features are not looked at.
        samples: what metrics are computed of.
        reference: what it is compared with.
    """
    codes = np.concatenate([chunk.codes for chunk in chunks])  # (n, N)
    counts = np.unique(np.concatenate([chunk.labels for chunk in chunks]), return_counts=True)[1]
    digests = [chunk.digests for chunk in chunks if chunk.digests is not None]
    times = [chunk.times for chunk in chunks]
    return SettingResult(
        **setting.values,
        total_passes=setting.total_passes,
        num_images=len(samples),
        metrics=metrics.compute_metrics(samples, reference),
        seconds_per_image=seconds_per_image(chunks),
        share_elsewhere=share_elsewhere(chunks),
        generator_seconds=total(time.generator for time in times),
        extractor_seconds=total(time.extractor for time in times),
        wall_seconds=total(time.wall for time in times),
        duplicates=len(codes) - len(np.unique(codes, axis=0)),
        images_per_class=(int(counts.min()), int(counts.max())),
        codes_sha256=array_digest(codes.astype("<u2")),
        pixels_sha256=(
            array_digest(np.concatenate(digests)) if len(digests) == len(chunks) else None
        ),
    )
