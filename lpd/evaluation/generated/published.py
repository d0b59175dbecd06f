"""What the paper reports of its models (arXiv 2507.01957), and how it was measured.

The one place of these numbers: README's table, the scripts of ``scripts/eval`` and the comparison
with what is measured are held to it. Nothing here needs torch.
"""

from dataclasses import dataclass
from typing import Any

from lpd.errors import InputError
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import LOCALITY_NAME
from lpd.sampling.config import SamplingConfig

PAPER = "arXiv 2507.01957"
NUM_IMAGES = 50_000
NUM_CLASSES = 1000
DEVICE = "A100"
"""One of these, in bfloat16, gave latency and throughput."""
THROUGHPUT_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A row of the paper's table: a setting, and the numbers reported of it."""

    preset: str
    """Of the model."""
    img_size: int
    """Image side in pixels."""
    generation_steps: int
    """Number of passes."""
    cfg: float
    """Scale of classifier-free guidance, linear over the tokens."""
    repulsion_threshold: float
    """Of the locality-aware order."""
    fid: float
    """Of 50,000 images, 50 per class, against ADM's statistics."""
    inception_score: float
    """Of the same images."""
    latency_seconds: float
    """Time of one image alone."""
    images_per_second: float
    """At batch size 64."""

    @property
    def name(self) -> str:
        """Of the row, such as lpd_l_256_20."""
        return f"{self.model}_{self.generation_steps}"

    @property
    def model(self) -> str:
        """Of the weights, such as lpd_l_256."""
        return f"{self.preset}_{self.img_size}"

    @property
    def script(self) -> str:
        """The script of ``scripts/eval`` that evaluates it."""
        return f"{self.preset}_res{self.img_size}_steps{self.generation_steps}.sh"

    @property
    def orders(self) -> str:
        """The name of a file of its orders, without a suffix."""
        return (
            f"res{self.img_size}_steps{self.generation_steps}_repulsion{self.repulsion_threshold:g}"
        )

    @property
    def setting(self) -> dict[str, Any]:
        """What an evaluation of it is told apart by, by the names of a result."""
        sampling = SamplingConfig(cfg=self.cfg, cfg_schedule="linear")
        return {
            "order": LOCALITY_NAME,
            "generation_steps": self.generation_steps,
            "group_size_schedule": "cosine",
            "proximity_threshold": LocalityConfig.proximity_threshold,
            "repulsion_threshold": self.repulsion_threshold,
            **{name: value for name, value in sampling.settings.items() if value is not None},
        }


# Preset, pixels, passes, guidance, repulsion; FID, IS, seconds of one image, images per second.
_TABLE = (
    ("lpd_l", 256, 20, 4.8, 2.0, 2.40, 284.5, 0.28, 139.11),
    ("lpd_xl", 256, 20, 4.9, 2.0, 2.10, 326.7, 0.41, 75.20),
    ("lpd_xxl", 256, 20, 5.9, 3.0, 2.00, 337.6, 0.55, 45.07),
    ("lpd_l", 256, 32, 5.4, 2.0, 2.29, 282.7, 0.46, 110.34),
    ("lpd_xl", 256, 32, 5.0, 2.0, 1.92, 319.4, 0.66, 61.24),
    ("lpd_l", 512, 48, 7.3, 4.0, 2.54, 292.2, 0.69, 35.16),
    ("lpd_xl", 512, 48, 6.0, 4.0, 2.10, 326.0, 1.01, 18.18),
)
ROWS: dict[str, PublishedRow] = {
    row.name: row
    for row in (
        PublishedRow(
            preset=preset,
            img_size=img_size,
            generation_steps=steps,
            cfg=cfg,
            repulsion_threshold=repulsion,
            fid=fid,
            inception_score=score,
            latency_seconds=latency,
            images_per_second=throughput,
        )
        for preset, img_size, steps, cfg, repulsion, fid, score, latency, throughput in _TABLE
    )
}
"""By name, in the paper's order."""


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """A number that the paper reports of every row."""

    key: str
    """In a row and in a result."""
    heading: str
    """Of its column."""
    decimals: int
    """With how many it is reported."""


NUMBERS = (
    PublishedNumber(key="fid", heading="FID", decimals=2),
    PublishedNumber(key="inception_score", heading="IS", decimals=1),
    PublishedNumber(key="latency_seconds", heading="latency s", decimals=2),
    PublishedNumber(key="images_per_second", heading="images/s", decimals=2),
)


@dataclass(frozen=True, kw_only=True)
class PublishedStatistics:
    """Statistics of ImageNet that FID is measured against, as ADM publishes them."""

    file: str
    """Its name."""
    url: str
    """Where it is. No SHA-256 of it is known here: what a download gave is recorded beside it."""


_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
STATISTICS: dict[int, PublishedStatistics] = {
    img_size: PublishedStatistics(file=file, url=f"{_ADM}/{img_size}/{file}")
    for img_size, file in (
        (256, "VIRTUAL_imagenet256_labeled.npz"),
        (512, "VIRTUAL_imagenet512.npz"),
    )
}
"""By image side in pixels."""


def find_row(name: str) -> PublishedRow:
    """A row of the paper's table by its name.

    Raises:
        InputError: there is no such row.
    """
    if name not in ROWS:
        raise InputError(f"the paper's table has no row {name!r}: choose from {', '.join(ROWS)}")
    return ROWS[name]
