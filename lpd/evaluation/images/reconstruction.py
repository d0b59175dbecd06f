"""What a tokenizer loses: images compared with what comes back from their codes. It is the ceiling
of any model of its codes, and what ``main_eval.py --reconstruct`` runs.

n images, V codes, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd import cli
from lpd.data.images import ImageIndex, SquareImages, index_any_images
from lpd.data.transforms import normalize_
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.batches import Extraction, FeatureBatch
from lpd.evaluation.features.digests import array_digest
from lpd.evaluation.features.extractors import (
    FeatureExtractor,
    load_classifier,
    load_feature_extractor,
    with_classifier,
)
from lpd.evaluation.features.pending import HostCopy
from lpd.evaluation.images import quality
from lpd.evaluation.images.modes import ReconstructConfig
from lpd.evaluation.images.parts import (
    DIGESTS,
    Arrays,
    PartFolder,
    Pending,
    concatenated,
    make_parts,
)
from lpd.evaluation.images.pictures import write_grid
from lpd.evaluation.images.quality import Distances
from lpd.evaluation.images.references import list_digest
from lpd.evaluation.images.results import Results, find_duplicates, measured_once
from lpd.evaluation.images.sources import class_folder_labels
from lpd.evaluation.images.summary import FeatureSummary
from lpd.evaluation.measures import metrics, tables
from lpd.evaluation.measures.metrics import Number, all_numbers
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.files import printable
from lpd.provenance import Origin
from lpd.tokenizer.vq_tokenizer import VQTokenizer

GRID_NAME = "reconstructions.png"
# So many pixels go through the tokenizer at a time: 32 images of 256 pixels need some 4 GB. The
# number is fixed because the last digits of what comes out depend on it.
_PIXELS_AT_A_TIME = 2**21
_GRID_COLUMNS = 8
_ORIGINAL = "original_"  # before the names of what is known of the images' own features

QUALITY: tuple[Number, ...] = (
    Number(key="psnr", heading="PSNR", format="{:.2f}"),
    Number(key="ssim", heading="SSIM", format="{:.4f}"),
    Number(key="lpips", heading="LPIPS", format="{:.4f}"),
    Number(key="codes_used", heading="codes used", format="{:.2%}"),
    Number(key="perplexity", heading="perplexity", format="{:.1f}"),
)
"""What is told of reconstructions beside the metrics of their features."""
_COLUMNS = (
    Number(key="images", heading="images", format="{}"),
    *tables.renamed(all_numbers(), {"fid": "rFID"}),
    *QUALITY,
)


class Reconstructor:
    """Images to codes and back, as many at a time as is fixed for their size."""

    def __init__(self, tokenizer: VQTokenizer, img_size: int) -> None:
        """Raises:
        InputError: the size is no multiple of the tokenizer's stride.
        """
        tokenizer.num_positions(img_size)
        side = img_size // tokenizer.stride
        self.size = img_size
        """S"""
        self._tokenizer = tokenizer
        self._grid = (side, side)
        self._decode = tokenizer.pixel_decoder()
        self._images_at_a_time = max(1, _PIXELS_AT_A_TIME // img_size**2)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, N) int64 and reconstructions (B, 3, S, S) uint8 of (B, 3, S, S) uint8."""
        codes, images = [], []
        for some in pixels.split(self._images_at_a_time):
            codes.append(self._tokenizer.encode(normalize_(some.float())))
            images.append(self._decode(codes[-1], self._grid))
        return torch.cat(codes), torch.cat(images)


def run_reconstruction(config: ReconstructConfig, world: World) -> Results:
    """Reconstruct images, or what is left of them, and report how close they come.

    Returns:
        What ``results.json`` holds, on every process.

    Raises:
        InputError: the images and the tokenizer do not go together, or the output folder belongs
            to others; before any work. Or an image cannot be read.
    """
    options = config.measuring
    with world.together():
        extractor = load_feature_extractor(
            options.feature_extractor, world.device, options.inception_path
        )
        classifier = load_classifier(config.classifier, world.device)
        tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, world.device)
        reconstruct = Reconstructor(tokenizer, config.img_size)
        index = index_any_images(config.data_path)
        if len(index.files) < 2:
            raise InputError(f"{config.data_path} holds one image; numbers need two or more")
    lpips, about_lpips = quality.load_lpips(world.device)
    origin: Origin = world.broadcast(
        Origin(
            values={
                "vqgan_path": tokenizer.sha256,
                "images": list_digest(index),
                "feature_extractor": extractor.fingerprint,
                "classifier": classifier.fingerprint if classifier else None,
                "img_size": config.img_size,
                "num_images": len(index.files),
                "lpips": about_lpips,
            },
            defaults={"classifier": None},
        )
    )
    images = SquareImages(index, config.img_size)
    work = _Work(
        index=index,
        device=world.device,
        extractor=extractor,
        seen_by=with_classifier(extractor, classifier),
        reconstruct=reconstruct,
        lpips=lpips,
        summary=FeatureSummary(len(index.files)),
        num_codes=tokenizer.vocab_size,
    )

    def measure(parts: PartFolder) -> Results | None:
        make_parts(
            parts,
            images,
            world,
            work.look,
            what=f"reconstructing {config.data_path}",
            num_workers=options.num_workers,
            finish=work.finish,
        )
        if not world.is_main:
            return None
        rows = np.linspace(0, len(index.files) - 1, min(_GRID_COLUMNS, len(index.files)))
        originals = torch.stack([images[int(row)].pixels for row in rows]).to(world.device)
        grid = torch.cat([originals, reconstruct(originals)[1]]).cpu().numpy()
        write_grid(config.output_dir / GRID_NAME, grid, len(rows))
        return work.results(parts)

    results = measured_once(config.output_dir, origin, len(index.files), world, measure)
    if world.is_main:
        for warning in results["warnings"]:
            cli.warn(warning)
        print(tables.table([{**results, **results["metrics"]}], _COLUMNS))
        if results["lpips"] is None:
            print(f"LPIPS is left empty: {about_lpips}")
        print(f"numbers and pictures: {config.output_dir} ({RESULTS_NAME}, {GRID_NAME})")
    return results


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is done with every block of images, with every part of them, and with all."""

    index: ImageIndex
    device: torch.device
    extractor: FeatureExtractor
    """Of the images."""
    seen_by: FeatureExtractor
    """Of what comes back: the same, with a classifier beside it where there is one."""
    reconstruct: Reconstructor
    lpips: Distances | None
    summary: FeatureSummary
    num_codes: int
    """V"""

    def look(self, pixels: Tensor) -> Pending:
        """Ask the device for what is to be known of a block."""
        codes, images = self.reconstruct(pixels)
        original = Extraction(pixels, self.extractor)
        extraction = Extraction(images, self.seen_by)
        wanted = {
            "codes": codes,
            "mse": quality.mean_squared_error(pixels, images),
            "ssim": quality.structural_similarity(pixels, images),
            "lpips": self.lpips and self.lpips(pixels, images).double(),
        }
        asked = {name: value for name, value in wanted.items() if value is not None}
        copies = HostCopy(*asked.values())

        def read() -> dict[str, npt.NDArray[Any]]:
            return {
                **extraction.read().arrays(),
                **{_ORIGINAL + name: each for name, each in original.read().arrays().items()},
                **dict(zip(asked, copies.read(), strict=True)),
            }

        return read

    def finish(self, rows: range, arrays: Arrays) -> Arrays:
        """What a part keeps: how often each code occurs, and a summary of the images' own
        features, in place of either for each image."""
        rest = _per_image({name: each for name, each in arrays.items() if name != "codes"})
        counts = np.bincount(arrays["codes"].ravel(), minlength=self.num_codes)  # (V,)
        kept = self.summary.of(rows, _originals(arrays))
        return {**rest, "counts": counts, **{_ORIGINAL + name: each for name, each in kept.items()}}

    def results(self, parts: PartFolder) -> Results:
        """The numbers of all parts."""
        warnings: list[str] = []
        labels = class_folder_labels(self.index, self.seen_by.num_classes, warnings)
        reference = self.summary.total(_originals(part) for part in parts.read())
        counts = sum(part["counts"] for part in parts.read())
        assert isinstance(counts, np.ndarray)
        seen = concatenated(_per_image(part) for part in parts.read())
        measured = FeatureBatch.from_arrays(seen)
        assert measured is not None
        samples = metrics.Samples.of(measured, labels, device=self.device)
        duplicates = find_duplicates(seen[DIGESTS])
        warnings += duplicates.warnings(len(samples), lambda row: printable(self.index.files[row]))
        return {
            "images": len(samples),
            "size": self.reconstruct.size,
            "pixels": array_digest(seen[DIGESTS]),
            "duplicates": duplicates.count,
            "metrics": dict(metrics.compute_metrics(samples, reference)),
            **_closeness(seen),
            "codes_used": quality.share_used(counts),
            "perplexity": quality.perplexity(counts),
            "warnings": warnings,
        }


def _originals(part: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {
        name.removeprefix(_ORIGINAL): each
        for name, each in part.items()
        if name.startswith(_ORIGINAL)
    }


def _per_image(part: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {
        name: each
        for name, each in part.items()
        if name != "counts" and not name.startswith(_ORIGINAL)
    }


def _closeness(seen: Mapping[str, npt.NDArray[Any]]) -> dict[str, float | int | None]:
    """The numbers of pairs of images.

    ``psnr`` is the mean over the images, as the literature gives it. That of an image that comes
    back exactly is infinite: such images are counted, and left out of the mean.
    """
    mse = seen["mse"]
    differing = mse[mse > 0]
    return {
        "psnr": float(quality.psnr(differing).mean()) if len(differing) else None,
        "psnr_of_mean_mse": float(quality.psnr(mse.mean())) if len(differing) else None,
        "exact_images": len(mse) - len(differing),
        "mse": float(mse.mean()),
        "ssim": float(seen["ssim"].mean()) if "ssim" in seen else None,
        "lpips": float(seen["lpips"].mean()) if "lpips" in seen else None,
    }
