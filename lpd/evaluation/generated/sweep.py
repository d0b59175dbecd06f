"""Evaluate a model: a sweep over ways to decode, in one run of any world size."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lpd import cli
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.features.extractors import (
    FeatureExtractor,
    load_classifier,
    load_feature_extractor,
    with_classifier,
)
from lpd.evaluation.generated import comparison, report
from lpd.evaluation.generated.chunks import (
    Chunk,
    check_chunk,
    chunk_path,
    find_chunks,
    missing_ranges,
    share_out,
)
from lpd.evaluation.generated.computing import compute_result, samples_of
from lpd.evaluation.generated.cores import sharing_cores
from lpd.evaluation.generated.folder import open_folder, output_origin
from lpd.evaluation.generated.kinds import check_conditioning
from lpd.evaluation.generated.making import ChunkMaker, Task
from lpd.evaluation.generated.report import SettingResult
from lpd.evaluation.generated.setting import EvalConfig, Setting
from lpd.evaluation.generated.speed import flip_rate, measure_speed
from lpd.evaluation.images import pictures
from lpd.evaluation.images.references import (
    NO_REFERENCE,
    ReferenceSource,
    load_reference,
    open_reference,
)
from lpd.evaluation.images.statistics_file import write_statistics
from lpd.evaluation.measures.records import SETTINGS_NAME, write_class_accuracy
from lpd.evaluation.measures.reference import Reference
from lpd.files import write_json
from lpd.generation import ImageGenerator
from lpd.machine import environment
from lpd.pretrained import load_model
from lpd.progress import progress
from lpd.provenance import Origin, digest
from lpd.tokenizer.vq_tokenizer import VQTokenizer

REFERENCE_NAME = "reference.npz"
STATISTICS_NAME = "statistics.npz"
_GRID_COLUMNS = 10
_GRID_ROWS = 8
_FLIP_IMAGES = 16


def run_evaluation(config: EvalConfig, world: World) -> list[SettingResult]:
    """Run the sweep, or what is left of it, and report it.

    Model, tokenizer, extractor and reference are loaded once. Settings whose numbers are there
    are not computed again.

    Returns:
        The results of all settings in the output folder, on every process.

    Raises:
        InputError: the inputs do not go together, or the output folder belongs to another
            configuration; before any work.
    """
    with world.together():
        check_conditioning(config)
        model = load_model(
            config.pretrained_ckpt, world.device, preset=config.model, img_size=config.img_size
        )
        settings = [
            Setting(source=source, sampling=sampling, seed=seed)
            for source in config.decoding.sources(model.config.grid)
            for sampling in config.sampling.configs()
            for seed in dict.fromkeys(config.seed)
        ]
        tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, world.device)
        generator = ImageGenerator(
            model,
            tokenizer,
            batch_size=min(config.eval_bsz, config.chunk_size, config.num_images),
            bf16=config.bf16,
            backend=config.execution.backend,
            cuda_graphs=config.execution.cuda_graphs,
            rounding=config.pixel_rounding,
            same_bits=True,
        )
        _check_num_images(config, settings, generator, world)
        extractor = load_feature_extractor(
            config.feature_extractor, world.device, config.inception_path
        )
        classifier = load_classifier(config.classifier, world.device, generator.num_classes)
        source = None
        if config.reference is not None:
            source = open_reference(config.reference, config.img_size, extractor)
        found = None
        if world.is_main:
            found = output_origin(config, model.config, tokenizer, extractor, classifier, source)
    origin: Origin = world.broadcast(found)
    with world.together():
        base = open_folder(config, origin)
    evaluation = _Evaluation(
        config, world, generator, extractor, classifier, settings, origin, base
    )
    reference = evaluation.load_reference(source)
    record = {**origin.plain(), **base}
    if world.is_main:
        write_json(config.output_dir / SETTINGS_NAME, record)
    evaluation.generate_missing()
    evaluation.compute_missing(reference)
    evaluation.export()
    results: list[SettingResult] = []
    with world.together():
        if world.is_main:
            results = report.write_results(config.output_dir, record, base)
            print(report.table(results))
            if config.published_row is not None:
                comparison.tell(
                    config.published_row, config.output_dir, results, record, config.reference
                )
            print(f"numbers and pictures: {config.output_dir}")
    return world.broadcast(results)


def _check_num_images(
    config: EvalConfig, settings: list[Setting], generator: ImageGenerator, world: World
) -> None:
    """Check that there are orders for all images, and images for all classes.

    Raises:
        InputError: an order file has fewer orders than there are images.
    """
    num_images, num_classes = config.num_images, generator.num_classes
    for order_file in (setting.source.order_file for setting in settings):
        if order_file is not None and len(order_file.orders) < num_images:
            raise InputError(
                f"{order_file.path} holds {len(order_file.orders)} orders, fewer than the "
                f"{num_images} images that are asked for: make more with orders/run_lpd_order.py, "
                "or leave the file out"
            )
    if num_images % num_classes and world.is_main:
        cli.warn(
            f"num_images {num_images} is no multiple of the {num_classes} classes: some classes "
            "have more images than others, and the numbers compare only with such"
        )


class _Evaluation:
    """The stages of a run; every process calls each of them."""

    def __init__(
        self,
        config: EvalConfig,
        world: World,
        generator: ImageGenerator,
        extractor: FeatureExtractor,
        classifier: FeatureExtractor | None,
        settings: list[Setting],
        origin: Origin,
        base: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.world = world
        self.generator = generator
        self.extractor = extractor
        self.base = base
        # By name: two ways to say the same are one setting.
        self.settings = {setting.name(base): setting for setting in settings}
        seen_by = with_classifier(extractor, classifier)
        self.tells_classes = seen_by.num_classes == generator.num_classes
        self.maker = ChunkMaker(generator, seen_by)
        self._origin = origin
        # Rank 0 looks, so that all agree while others may already write.
        completed: dict[str, SettingResult] = {}
        with world.together():
            if world.is_main:
                completed = self._completed()
        self.results: dict[str, SettingResult] = world.broadcast(completed)

    def _completed(self) -> dict[str, SettingResult]:
        found = {s: report.read_result(self._folder(s), self.base) for s in self.settings}
        return {name: result for name, result in found.items() if result is not None}

    def _folder(self, name: str) -> Path:
        return self.config.output_dir / name

    def _chunks(self, name: str) -> dict[range, Path]:
        return find_chunks(
            self._folder(name) / "chunks", self.config.num_images, self.base["chunk_size"]
        )

    def _identity(self, name: str) -> str:
        """Of all that a setting's images and their features depend on. What is not given is left
        out, so that an option that is younger than a chunk changes nothing without it."""
        left_out = {"reference", "num_images"}
        shared = {
            name: value
            for name, value in self._origin.plain().items()
            if name not in left_out and value is not None
        }
        return digest({**shared, **self.settings[name].identity})

    def load_reference(self, source: ReferenceSource | None) -> Reference:
        """Compute the reference, where a setting still needs it."""
        if self.settings.keys() <= self.results.keys():
            return Reference()
        if source is None:
            if self.world.is_main:
                print(NO_REFERENCE)
            return Reference()
        return load_reference(
            source,
            self.extractor,
            self.config.output_dir / REFERENCE_NAME,
            self.world,
            num_workers=self.config.num_workers,
        )

    def generate_missing(self) -> None:
        """Make the images that are needed and in no chunk, and compute the features that chunks
        have lost and that are needed; all processes share the work.

        Raises:
            InputError: a chunk is of other settings, or numbers are not finite; on all processes.
        """
        with self.world.together():
            tasks, lacking = self._missing() if self.world.is_main else ([], [])
        tasks, lacking = self.world.broadcast((tasks, lacking))
        own = [lacking[place] for place in self.world.shard(len(lacking))]
        with self.world.together():
            self.maker.make_share(tasks[self.world.rank], self.world)
            for path in progress(
                own, desc="features", unit="chunk", disable=not (self.world.is_main and own)
            ):
                self.maker.measure_again(path)

    def _missing(self) -> tuple[list[list[Task]], list[Path]]:
        """The chunks that each process is to make, and the files that lack their features.

        Raises:
            InputError: a chunk is of other settings.
        """
        config = self.config
        exported = config.save_images or config.save_npz
        ranges: list[tuple[str, range]] = []
        lacking = []
        for name in self.settings:
            wants_features = config.keep_features or name not in self.results
            wants_images = exported or name not in self.results
            if not (wants_features or wants_images):
                continue
            chunks, identity = self._chunks(name), self._identity(name)
            for path in chunks.values():
                has_features = check_chunk(path, identity)
                if wants_features and not has_features:
                    lacking.append(path)
            if wants_images:
                gaps = missing_ranges(chunks, config.num_images)
                ranges += [(name, gap) for gap in gaps]
        shares = share_out(ranges, self.world.size, config.chunk_size)
        tasks = [
            [
                Task(
                    setting=self.settings[name],
                    image_indices=images,
                    path=chunk_path(self._folder(name) / "chunks", images),
                    name=name,
                    identity=self._identity(name),
                )
                for name, images in share
            ]
            for share in shares
        ]
        return tasks, lacking

    def compute_missing(self, reference: Reference) -> None:
        """Compute the numbers that are not there from all processes' chunks; settings are shared
        out. Speed is measured by rank 0 alone, while the others wait.

        Raises:
            InputError: a chunk is damaged, or its numbers give none; on all processes.
        """
        missing = [name for name in self.settings if name not in self.results]
        share = [missing[place] for place in self.world.shard(len(missing))]
        num_busy = min(len(missing), self.world.size)
        with self.world.together(), sharing_cores(self.world, num_busy):
            for name in progress(
                share, desc="metrics", unit="setting", disable=not (self.world.is_main and share)
            ):
                self._compute(name, reference)
        with self.world.together():
            if self.config.measure_speed and self.world.is_main:
                self._measure_speed()

    def _compute(self, name: str, reference: Reference) -> None:
        setting, folder, files = self.settings[name], self._folder(name), self._chunks(name)
        chunks = [Chunk.load(path) for path in files.values()]
        self._write_grid(name, chunks)
        samples = samples_of(chunks, tells_classes=self.tells_classes, device=self.world.device)
        # The samples have them too: of 50,000 images, a gigabyte.
        chunks = [chunk.without_features() for chunk in chunks]
        result = replace(
            compute_result(setting, chunks, samples, reference),
            environment={
                **environment(self.world.device),
                "processes": self.world.size,
                "backend": self.generator.backend,
                "cuda_graphs": self.generator.graphs is not None,
            },
        )
        write_class_accuracy(folder, samples)
        if len(samples) > 1:
            write_statistics(
                folder / STATISTICS_NAME,
                Reference(statistics=samples.statistics, spatial=samples.spatial_statistics),
            )
        if not self.config.keep_features:
            for path, chunk in zip(files.values(), chunks, strict=True):
                chunk.save(path)
        # Last: who finds it takes the setting for complete.
        report.write_result(folder, result)

    def _measure_speed(self) -> None:
        for name, setting in progress(self.settings.items(), desc="speed", unit="setting"):
            result = report.read_result(self._folder(name), self.base)
            assert result is not None
            asked = self.config.throughput_bsz
            if asked is not None:
                asked = min(asked, self.generator.batch_size)
            if result.latency_seconds is None or asked not in {None, result.throughput_batch_size}:
                speed = measure_speed(
                    self.generator,
                    setting.source,
                    sampling=setting.sampling,
                    seed=setting.seed,
                    batch_size=self.config.throughput_bsz,
                )
                first = next(iter(self._chunks(name).values()))
                codes = Chunk.load(first).codes[:_FLIP_IMAGES]
                flips = flip_rate(
                    self.generator,
                    setting.source,
                    codes,
                    sampling=setting.sampling,
                    seed=setting.seed,
                )
                device = environment(self.world.device)["device"]
                timed = replace(
                    result.with_speed(speed, device), flip_rate=flips, flip_images=len(codes)
                )
                report.write_result(self._folder(name), timed)

    def _write_grid(self, name: str, chunks: list[Chunk]) -> None:
        columns = min(_GRID_COLUMNS, self.generator.num_classes, self.config.num_images)
        codes = np.concatenate([chunk.codes for chunk in chunks])[: columns * _GRID_ROWS]
        images = self.generator.decode(codes)
        pictures.write_grid(self._folder(name) / report.GRID_NAME, images, columns)

    def export(self) -> None:
        """Write PNG files, each process those of its chunks, and sample archives."""
        with self.world.together():
            for name in self.settings:
                self._export(name)

    def _export(self, name: str) -> None:
        if self.config.save_images:
            chunks = list(self._chunks(name).items())
            for index in progress(
                self.world.shard(len(chunks)),
                desc=f"{name}: PNG files",
                unit="chunk",
                disable=not self.world.is_main,
            ):
                self._save_images(name, *chunks[index])
        path = self._folder(name) / report.SAMPLES_NAME
        if self.config.save_npz and self.world.is_main and not path.exists():
            labels = np.arange(self.config.num_images) % self.generator.num_classes
            pictures.write_samples(path, self._decoded(name), labels)

    def _save_images(self, name: str, indices: range, chunk: Path) -> None:
        paths = [report.image_path(self._folder(name), index) for index in indices]
        if not all(path.exists() for path in paths):
            images = self.generator.decode(Chunk.load(chunk).codes)
            for path, image in zip(paths, images, strict=True):
                pictures.write_png(path, image)

    def _decoded(self, name: str) -> Iterator[pictures.Images]:
        for path in progress(
            list(self._chunks(name).values()), desc=f"{name}: samples", unit="chunk"
        ):
            yield self.generator.decode(Chunk.load(path).codes)
