"""Evaluate a model: a sweep over orders and numbers of passes, in one run of any world size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpd.distributed import World
from lpd.evaluation import metrics, report
from lpd.evaluation.chunks import Chunk, ChunkMaker, Task, chunk_tasks
from lpd.evaluation.cores import sharing_cores
from lpd.evaluation.features import (
    FeatureExtractor,
    load_classifier,
    load_feature_extractor,
    with_classifier,
)
from lpd.evaluation.reference import Reference, ReferenceSource, load_reference, open_reference
from lpd.evaluation.report import SettingResult
from lpd.evaluation.setting import EvalConfig, Setting
from lpd.evaluation.speed import measure_speed
from lpd.files import sha256_of_file, write_json
from lpd.generation import ImageGenerator
from lpd.options import defaults, flatten
from lpd.pretrained import load_model
from lpd.progress import progress
from lpd.provenance import Origin
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import weights_file

SETTINGS_NAME = "settings.json"
REFERENCE_NAME = "reference.npz"
_GRID_COLUMNS = 10
_GRID_ROWS = 8


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
    model = load_model(
        config.pretrained_ckpt, world.device, preset=config.model, img_size=config.img_size
    )
    settings = [Setting(source=source) for source in config.decoding.sources(model.config.grid)]
    tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, world.device)
    generator = ImageGenerator(
        model,
        tokenizer,
        batch_size=min(config.eval_bsz, config.chunk_size, config.num_images),
        bf16=config.bf16,
        backend=config.execution.backend,
        cuda_graphs=config.execution.cuda_graphs,
    )
    extractor = load_feature_extractor(
        config.feature_extractor, world.device, config.inception_path
    )
    classifier = None
    if config.classifier is not None:
        classifier = load_classifier(config.classifier, world.device, generator.num_classes)
    source = None
    if config.reference is not None:
        source = open_reference(config.reference, config.img_size, extractor)
    origin: Origin = world.broadcast(
        output_origin(config, tokenizer, extractor, classifier, source) if world.is_main else None
    )
    record = config.output_dir / SETTINGS_NAME
    origin.check_file(record, remedy="give another --output_dir")
    evaluation = _Evaluation(config, world, generator, extractor, classifier, settings)
    reference = evaluation.load_reference(source)
    if world.is_main:
        write_json(record, origin.plain())
    evaluation.generate_missing()
    evaluation.compute_missing(reference)
    evaluation.export()
    results: list[SettingResult] = []
    if world.is_main:
        results = report.write_results(config.output_dir, origin.plain())
        print(report.table(results))
        print(f"numbers and pictures: {config.output_dir}")
    return world.broadcast(results)


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
    ) -> None:
        self.config = config
        self.world = world
        self.generator = generator
        self.extractor = extractor
        self.classifier = classifier
        self.settings = settings
        # Rank 0 looks, so that all agree while others may already write.
        self.results: dict[str, SettingResult] = world.broadcast(self._completed())

    def _completed(self) -> dict[str, SettingResult]:
        found = {s.name: report.read_result(self._folder(s)) for s in self.settings}
        return {name: result for name, result in found.items() if result is not None}

    def _folder(self, setting: Setting) -> Path:
        return self.config.output_dir / setting.name

    def _tasks(self, setting: Setting) -> list[Task]:
        return chunk_tasks(
            setting,
            self._folder(setting) / "chunks",
            self.config.num_images,
            self.config.chunk_size,
        )

    def load_reference(self, source: ReferenceSource | None) -> Reference:
        """Compute the reference, where a setting still needs it."""
        if all(setting.name in self.results for setting in self.settings):
            return Reference()
        if source is None:
            if self.world.is_main:
                print("no --reference was given: FID, KID, precision and recall are left empty")
            return Reference()
        return load_reference(
            source,
            self.extractor,
            self.config.output_dir / REFERENCE_NAME,
            self.world,
            batch_size=self.config.eval_bsz,
            num_workers=self.config.num_workers,
        )

    def generate_missing(self) -> None:
        """Make the chunks that are needed and not there, each process its share."""
        everything = self.config.save_images or self.config.save_npz
        needed = [s for s in self.settings if everything or s.name not in self.results]
        missing: list[Task] = self.world.broadcast(
            [task for setting in needed for task in self._tasks(setting) if not task.path.exists()]
            if self.world.is_main
            else None
        )
        extractor = self.extractor
        if self.classifier is not None:
            extractor = with_classifier(extractor, self.classifier)
        maker = ChunkMaker(
            self.generator, extractor, sampling=self.config.sampling, seed=self.config.seed
        )
        maker.make_share(missing, self.world)
        self.world.barrier()

    def compute_missing(self, reference: Reference) -> None:
        """Compute the numbers that are not there from all processes' chunks; settings are shared
        out. Speed is measured by rank 0 alone, while the others wait."""
        missing = [s for s in self.settings if s.name not in self.results]
        share = [missing[place] for place in self.world.shard(len(missing))]
        with sharing_cores(self.world, min(len(missing), self.world.size)):
            for setting in progress(
                share, desc="metrics", unit="setting", disable=not (self.world.is_main and share)
            ):
                self._compute(setting, reference)
        self.world.barrier()
        if self.config.measure_speed and self.world.is_main:
            self._measure_speed()
        self.world.barrier()

    def _compute(self, setting: Setting, reference: Reference) -> None:
        chunks = [Chunk.load(task.path) for task in self._tasks(setting)]
        self._write_grid(setting, chunks[0])
        samples = samples_of(
            chunks,
            logits_are_classes=self.extractor.num_classes == self.generator.num_classes,
            device=self.world.device,
        )
        accuracy = samples.class_accuracy()
        if accuracy is not None:
            write_json(self._folder(setting) / report.CLASSES_NAME, accuracy.plain())
        report.write_result(
            self._folder(setting), compute_result(setting, chunks, samples, reference)
        )

    def _measure_speed(self) -> None:
        results = {
            setting.name: report.read_result(self._folder(setting)) for setting in self.settings
        }
        for setting in progress(self.settings, desc="speed", unit="setting"):
            result = results[setting.name]
            assert result is not None
            if result.latency_seconds is None:
                speed = measure_speed(
                    self.generator,
                    setting.source,
                    sampling=self.config.sampling,
                    seed=self.config.seed,
                )
                report.write_result(self._folder(setting), result.with_speed(speed))

    def _write_grid(self, setting: Setting, first: Chunk) -> None:
        columns = min(_GRID_COLUMNS, self.generator.num_classes, len(first))
        images = self.generator.decode(first.codes[: columns * _GRID_ROWS])
        report.write_grid(self._folder(setting) / report.GRID_NAME, images, columns)

    def export(self) -> None:
        """Write PNG files, each process those of its chunks, and sample archives."""
        for setting in self.settings:
            if self.config.save_images:
                tasks = self._tasks(setting)
                for index in progress(
                    self.world.shard(len(tasks)),
                    desc=f"{setting.name}: PNG files",
                    unit="chunk",
                    disable=not self.world.is_main,
                ):
                    self._save_images(tasks[index])
            path = self._folder(setting) / report.SAMPLES_NAME
            if self.config.save_npz and self.world.is_main and not path.exists():
                report.write_samples(path, self._decoded(setting), self.config.num_images)
        self.world.barrier()

    def _save_images(self, task: Task) -> None:
        folder = self._folder(task.setting)
        paths = [report.image_path(folder, index) for index in task.image_indices]
        if not all(path.exists() for path in paths):
            images = self.generator.decode(Chunk.load(task.path).codes)
            for path, image in zip(paths, images, strict=True):
                report.write_png(path, image)

    def _decoded(self, setting: Setting) -> Iterator[report.Images]:
        for task in progress(self._tasks(setting), desc=f"{setting.name}: samples", unit="chunk"):
            yield self.generator.decode(Chunk.load(task.path).codes)


def samples_of(
    chunks: list[Chunk], *, logits_are_classes: bool, device: torch.device
) -> metrics.Samples:
    """What metrics are computed of, from all chunks of a setting in the order of their images.

    Args:
        chunks: all of them.
        logits_are_classes: whether the extractor's logits stand for the run's classes.
        device: where much is computed.
    """

    def together(name: str) -> Any:
        parts = [getattr(chunk, name) for chunk in chunks]
        return None if any(part is None for part in parts) else np.concatenate(parts)

    logits, class_logits = together("logits"), together("class_logits")
    if class_logits is None and logits_are_classes:
        class_logits = logits
    return metrics.Samples(
        features=together("features"),
        logits=logits,
        labels=together("labels"),
        spatial=together("spatial"),
        class_logits=class_logits,
        device=device,
    )


def compute_result(
    setting: Setting, chunks: list[Chunk], samples: metrics.Samples, reference: Reference
) -> SettingResult:
    """Compute a setting's numbers.

    Args:
        setting: what was generated.
        chunks: all of it.
        samples: what metrics are computed of.
        reference: what it is compared with.
    """
    return SettingResult(
        order=setting.order,
        generation_steps=len(setting.source.group_sizes),
        group_sizes=setting.source.group_sizes,
        num_images=len(samples),
        metrics=metrics.compute_metrics(samples, reference),
        seconds_per_image=sum(chunk.seconds for chunk in chunks) / len(samples),
        share_elsewhere=share_elsewhere(chunks),
    )


def share_elsewhere(chunks: list[Chunk]) -> float | None:
    """The share of the time of making chunks in which the device neither generated nor extracted
    features; None where a chunk does not say."""
    busy, wall = 0.0, 0.0
    for chunk in chunks:
        if chunk.extractor_seconds is None or chunk.wall_seconds is None:
            return None
        busy += chunk.seconds + chunk.extractor_seconds
        wall += chunk.wall_seconds
    return 1 - busy / wall


def output_origin(
    config: EvalConfig,
    tokenizer: VQTokenizer,
    extractor: FeatureExtractor,
    classifier: FeatureExtractor | None,
    source: ReferenceSource | None,
) -> Origin:
    """What all settings of an output folder share: everything their numbers depend on, beside the
    order and the number of passes."""
    decoding = config.decoding
    order_file = decoding.lpd_order_file
    return Origin(
        values={
            "pretrained_ckpt": sha256_of_file(weights_file(config.pretrained_ckpt)),
            "vqgan_path": tokenizer.sha256,
            "feature_extractor": extractor.fingerprint,
            "classifier": classifier.fingerprint if classifier else None,
            "reference": source.fingerprint if source else None,
            "img_size": config.img_size,
            "num_images": config.num_images,
            "chunk_size": config.chunk_size,
            "seed": config.seed,
            "bf16": config.bf16,
            **flatten(config.sampling),
            **flatten(decoding.locality),
            "lpd_order_file": sha256_of_file(order_file) if order_file else None,
            **flatten(decoding.sizes),
        },
        defaults=defaults(EvalConfig),
    )
