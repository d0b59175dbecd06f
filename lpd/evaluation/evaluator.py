"""Evaluate a model: a sweep over orders and numbers of passes, in one run of any world size."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation import metrics, report
from lpd.evaluation.config import EvalConfig
from lpd.evaluation.features import FeatureExtractor, load_feature_extractor
from lpd.evaluation.generate import (
    Chunk,
    ImageGenerator,
    Setting,
    Task,
    chunk_tasks,
)
from lpd.evaluation.reference import Reference, ReferenceSource, load_reference, open_reference
from lpd.evaluation.report import SettingResult
from lpd.evaluation.speed import measure_speed
from lpd.files import read_json, sha256_of_file, write_json
from lpd.generation import cast_linears
from lpd.orders.files import load_orders
from lpd.orders.group_sizes import GroupSizes, make_group_sizes, parse_group_sizes
from lpd.orders.plan import Grid
from lpd.orders.registry import OrderConfig, own_group_sizes
from lpd.pretrained import load_model
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import weights_file

SETTINGS_NAME = "settings.json"
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
    if config.bf16:
        cast_linears(model, torch.bfloat16)
    settings = make_settings(config, model.config.grid)
    tokenizer = VQTokenizer.from_pretrained(config.vqgan_path, world.device)
    tokenizer.check_fits(
        vocab_size=model.config.vocab_size,
        stride=model.config.stride,
        sha256=model.config.tokenizer_sha256,
    )
    extractor = load_feature_extractor(
        config.feature_extractor, world.device, config.inception_path
    )
    source = None
    if config.reference is not None:
        source = open_reference(config.reference, config.img_size, extractor)
    shared = world.broadcast(
        shared_settings(config, tokenizer, extractor, source) if world.is_main else None
    )
    check_output_dir(config.output_dir, shared)
    batch_size = min(config.eval_bsz, config.chunk_size, config.num_images)
    generator = ImageGenerator(
        model,
        tokenizer,
        extractor,
        sampling=config.sampling(),
        seed=config.seed,
        batch_size=batch_size,
        bf16=config.bf16,
    )
    evaluation = _Evaluation(config, world, generator, extractor, settings)
    reference = evaluation.load_reference(source)
    if world.is_main:
        write_json(config.output_dir / SETTINGS_NAME, shared)
    evaluation.generate_missing()
    evaluation.compute_missing(reference)
    evaluation.export()
    results: list[SettingResult] = []
    if world.is_main:
        results = report.write_results(config.output_dir, shared)
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
        settings: list[Setting],
    ) -> None:
        self.config = config
        self.world = world
        self.generator = generator
        self.extractor = extractor
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
                print("no --reference was given: FID, precision and recall are left empty")
            return Reference()
        return load_reference(
            source,
            self.extractor,
            self.config.output_dir / "reference.npz",
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
        make_chunks(self.generator, missing, self.world)
        self.world.barrier()

    def compute_missing(self, reference: Reference) -> None:
        """Compute the numbers that are not there from all processes' chunks; settings are shared
        out. Speed is measured by rank 0 alone, while the others wait."""
        missing = [s for s in self.settings if s.name not in self.results]
        share = [missing[place] for place in self.world.shard(len(missing))]
        for setting in tqdm(
            share, desc="metrics", unit="setting", disable=not (self.world.is_main and share)
        ):
            chunks = [Chunk.load(task.path) for task in self._tasks(setting)]
            self._write_grid(setting, chunks[0])
            same_classes = self.extractor.num_classes == self.generator.num_classes
            result = compute_result(setting, chunks, reference, logits_are_classes=same_classes)
            report.write_result(self._folder(setting), result)
        self.world.barrier()
        if self.config.measure_speed and self.world.is_main:
            self._measure_speed()
        self.world.barrier()

    def _measure_speed(self) -> None:
        results = {
            setting.name: report.read_result(self._folder(setting)) for setting in self.settings
        }
        for setting in tqdm(self.settings, desc="speed", unit="setting"):
            result = results[setting.name]
            assert result is not None
            if result.latency_seconds is None:
                speed = measure_speed(self.generator, setting)
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
                for index in tqdm(
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
        for task in tqdm(self._tasks(setting), desc=f"{setting.name}: samples", unit="chunk"):
            yield self.generator.decode(Chunk.load(task.path).codes)


def make_chunks(generator: ImageGenerator, tasks: list[Task], world: World) -> None:
    """Make and write this process's share of chunks, with a progress bar on rank 0."""
    share = [tasks[index] for index in world.shard(len(tasks))]
    processes = f" (process 1 of {world.size})" if world.size > 1 else ""
    with tqdm(
        total=sum(len(task.image_indices) for task in share),
        desc=f"generating{processes}",
        unit="image",
        disable=not world.is_main or not share,
    ) as progress:
        for task in share:
            progress.set_postfix_str(task.setting.name, refresh=False)
            generator.make_chunk(task, progress.update).save(task.path)


def compute_result(
    setting: Setting, chunks: list[Chunk], reference: Reference, *, logits_are_classes: bool
) -> SettingResult:
    """Compute a setting's numbers from its chunks, which are in the order of their images.

    Args:
        setting: what was generated.
        chunks: all of it.
        reference: what it is compared with.
        logits_are_classes: whether the chunks' logits stand for the run's classes.
    """
    samples = metrics.Samples(
        features=np.concatenate([chunk.features for chunk in chunks]),  # (n, D)
        logits=np.concatenate([chunk.logits for chunk in chunks]),  # (n, C)
        labels=np.concatenate([chunk.labels for chunk in chunks]),  # (n,)
        logits_are_classes=logits_are_classes,
    )
    return SettingResult(
        order=setting.order.kind,
        generation_steps=len(setting.group_sizes),
        group_sizes=setting.group_sizes,
        num_images=len(samples),
        metrics=metrics.compute_metrics(samples, reference),
        seconds_per_image=sum(chunk.seconds for chunk in chunks) / len(samples),
    )


def make_settings(config: EvalConfig, grid: Grid) -> list[Setting]:
    """All settings of the sweep, order by order.

    Raises:
        InputError: group sizes, steps, orders or the order file do not fit the model's grid.
    """
    order_file = load_orders(config.lpd_order_file) if config.lpd_order_file else None
    settings = [
        Setting(
            order=OrderConfig(kind=kind, locality=config.locality()),
            group_sizes=group_sizes,
            order_file=order_file if kind == "lpd" else None,
        )
        for kind in dict.fromkeys(config.order)
        for group_sizes in make_schedules(config, kind, grid)
    ]
    for setting in settings:
        if setting.order_file is not None:  # a plan of no images still checks what fits what
            setting.order_file.plan(setting.group_sizes, np.empty(0, dtype=np.int64))
            setting.order_file.check_kind(setting.order.kind, config.locality())
    return settings


def make_schedules(config: EvalConfig, kind: str, grid: Grid) -> list[GroupSizes]:
    """The group sizes with which an order is evaluated: its own, or those asked for.

    Raises:
        InputError: group sizes, steps or the order do not fit the grid.
    """
    num_positions = grid[0] * grid[1]
    own_sizes = own_group_sizes(kind, grid)
    if own_sizes is not None:
        return [own_sizes]
    if config.group_sizes is not None:
        return [parse_group_sizes(config.group_sizes, num_positions)]
    return [
        make_group_sizes(num_positions, steps, config.group_size_schedule)
        for steps in dict.fromkeys(config.generation_steps)
    ]


def shared_settings(
    config: EvalConfig,
    tokenizer: VQTokenizer,
    extractor: FeatureExtractor,
    source: ReferenceSource | None,
) -> dict[str, Any]:
    """What all settings of an output folder share: everything their numbers depend on, beside the
    order and the number of passes."""
    order_file = config.lpd_order_file
    return {
        "pretrained_ckpt": sha256_of_file(weights_file(config.pretrained_ckpt)),
        "vqgan_path": tokenizer.sha256,
        "feature_extractor": extractor.fingerprint,
        "reference": source.fingerprint if source else None,
        "img_size": config.img_size,
        "num_images": config.num_images,
        "chunk_size": config.chunk_size,
        "seed": config.seed,
        "bf16": config.bf16,
        **dataclasses.asdict(config.sampling()),
        **dataclasses.asdict(config.locality()),
        "lpd_order_file": sha256_of_file(order_file) if order_file else None,
        "group_sizes": config.group_sizes,
        "group_size_schedule": config.group_size_schedule,
    }


def check_output_dir(output_dir: Path, shared: dict[str, Any]) -> None:
    """Raise InputError where the folder holds results of another configuration."""
    path = output_dir / SETTINGS_NAME
    if not path.is_file():
        return
    there = read_json(path)
    if not isinstance(there, dict):
        raise InputError(f"{path} does not hold settings; give another --output_dir")
    different = [
        f"{name} was {there.get(name)}, now {value}"
        for name, value in shared.items()
        if there.get(name) != value
    ]
    if different:
        raise InputError(
            f"{output_dir} holds results of another configuration ({'; '.join(different)}); "
            "give another --output_dir"
        )
