"""Write the quickstart's report: one HTML page that needs no network, and ``results.json``."""

import html
import json
import os
import platform
import resource
import shlex
import string
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpd import cli
from lpd.data.images import index_images, read_image
from lpd.data.transforms import image_to_pixels, normalize_
from lpd.evaluation.chunks import read_codes
from lpd.evaluation.plan_loss_report import LOSSES_NAME
from lpd.evaluation.report import RESULTS_NAME, read_results
from lpd.files import read_json, write_json
from lpd.generation import ImageGenerator
from lpd.orders.files import load_orders
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import LOCALITY_NAME, OrderConfig, find_order
from lpd.orders.request import PlanSource
from lpd.pretrained import load_model
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.order_figures.drawing import pass_maps
from scripts.quickstart import figures
from scripts.quickstart.run import (
    COMPARED_ORDERS,
    ORDER_MIX,
    OTHER_ORDERS,
    PLAN_LOSSES_NAME,
    SHOWN_STEPS,
)
from scripts.quickstart.times import SETUP_NAME, StageTime, read_times

TEMPLATE = Path(__file__).with_name("report_template.html")
METRICS = {
    "fid": "FID (lower is better)",
    "inception_score": "inception score (10 at most)",
    "class_accuracy": "class accuracy",
}
HONESTY = (
    "This is the real system at toy size: every stage is the code that runs on ImageNet, but the "
    "images have {num_codes} codes instead of 256, the transformer has {parameters:.2f} million "
    "parameters instead of 337 million, and training takes minutes. FID and inception score use a "
    "small classifier trained on these digits, so they compare the rows of this page with each "
    "other and with nothing else; with {num_images} images per row, small differences are noise. "
    "The published gain of the locality-aware order is measured on ImageNet, with groups of up to "
    "20 of 256 codes; on {grid} codes there is little room to keep the cells of a pass apart, and "
    "the orders may come out close. Seconds per image on a CPU follow the number of codes more "
    "than the number of passes; on a GPU passes cost more than codes, and few passes pay off."
)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the quickstart's report."""

    output_dir: Path = Path("outputs/quickstart")
    """The quickstart's folder."""


class Quickstart:
    """What the quickstart left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        device = torch.device("cpu")
        tokenizer = VQTokenizer.from_pretrained(folder / "tokenizer", device)
        model = load_model(folder / "lpd" / "model", device)
        self.generator = ImageGenerator(model, tokenizer)
        self.model = model.config
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        evaluations = ("evaluation", f"evaluation_{SHOWN_STEPS}", "evaluation_other_orders")
        self.settings = read_json(folder / evaluations[0] / RESULTS_NAME)["settings"]
        numbers: dict[str, dict[str, Any]] = {}
        for name in evaluations:
            for result in read_results(folder / name):
                by_steps = numbers.setdefault(result.order, {})
                by_steps[str(result.generation_steps)] = result.flat()
        self.orders = {order: numbers[order] for order in COMPARED_ORDERS}
        self.other_orders = {order: numbers[order] for order in OTHER_ORDERS}
        self.classifier = read_json(folder / "classifier" / "accuracy.json")
        self.tokenizer_training = read_json(folder / "tokenizer" / "training.json")
        self.plan_losses = read_json(folder / PLAN_LOSSES_NAME / LOSSES_NAME)["plans"]
        for each in self.plan_losses:  # of which its own folder tells
            del each["by_pass"]
        self._log = [
            json.loads(line) for line in (folder / "lpd" / "log.jsonl").read_text().splitlines()
        ]

    def losses(self, name: str) -> tuple[list[float], list[float]]:
        """The steps at which the transformer's training tells a number, and the numbers."""
        entries = [entry for entry in self._log if name in entry]
        return [entry["step"] for entry in entries], [entry[name] for entry in entries]

    def real(self, per_class: int) -> list[figures.Pixels]:
        """Rows of held-out digits, one of each class: per_class x (C, 3, S, S)."""
        index = index_images(self.folder / "digits" / "val")
        files = [
            np.flatnonzero(index.labels == label)[:per_class]
            for label in range(len(index.class_names))
        ]
        return [
            np.stack(
                [image_to_pixels(read_image(index.root / index.files[i])).numpy() for i in row]
            )
            for row in zip(*files, strict=True)
        ]

    def reconstructed(self, rows: list[figures.Pixels]) -> list[figures.Pixels]:
        """The same rows after the tokenizer."""
        encode, decode = self.generator.tokenizer.encode, self.generator.decode
        return [decode(encode(normalize_(torch.from_numpy(row).float())).numpy()) for row in rows]

    def generated(self, order: str, count: int) -> figures.Pixels:
        """The first images of the shown setting: (count, 3, S, S); image i is of class i mod C."""
        evaluation = self.folder / f"evaluation_{SHOWN_STEPS}"
        return self.generator.decode(
            read_codes(
                evaluation / f"{order}_{SHOWN_STEPS}",
                num_images=self.settings["num_images"],
                old_size=self.settings["chunk_size"],
            )[:count]
        )

    def passes(self) -> dict[str, npt.NDArray[np.int64]]:
        """Per order (n, N) the pass of each cell, of the images of the shown setting."""
        shown = self.orders[LOCALITY_NAME][str(SHOWN_STEPS)]
        sizes = tuple(shown["group_sizes"])
        images = np.arange(shown["num_images"])
        locality = LocalityConfig(
            proximity_threshold=self.settings["proximity_threshold"],
            repulsion_threshold=self.settings["repulsion_threshold"],
        )
        file = load_orders(self.folder / f"orders_lpd_{SHOWN_STEPS}.npz")
        passes = {}
        for order in COMPARED_ORDERS:
            source = PlanSource(
                order=OrderConfig(kind=order, locality=locality),
                grid=self.model.grid,
                group_sizes=sizes,
                order_file=file if order == LOCALITY_NAME else None,
            )
            passes[order] = source.plan(self.settings["seed"], images).pass_of_cell
        return passes


def table(header: list[str], rows: list[list[str]]) -> str:
    """An HTML table; the first column is text."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def stage_times(folder: Path, started: float) -> dict[str, StageTime]:
    """What the stages took; the report itself, under way, has taken the time until now."""
    times = read_times(folder)
    if "report" in times and not times["report"].complete:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        times["report"] = replace(
            times["report"],
            seconds=times["report"].seconds + time.perf_counter() - started,
            peak_memory_mib=max(times["report"].peak_memory_mib, memory),
        )
    return times


def command_lines(times: dict[str, StageTime]) -> str:
    """What a user would type for the same; the environment is entered once it is there."""
    lines = []
    for name, each in times.items():
        lines.append(shlex.join(each.command))
        if name == SETUP_NAME:
            lines.append("source .venv/bin/activate")
    return "\n".join(lines)


def quality_table(orders: dict[str, dict[str, Any]]) -> str:
    """A row per order and number of passes."""
    header = ["order", "passes", "FID", "inception score", "class accuracy", "ms per image"]
    rows = [
        [
            find_order(order).label,
            steps,
            f"{numbers['fid']:.2f}",
            f"{numbers['inception_score']:.2f}",
            f"{numbers['class_accuracy']:.3f}",
            f"{numbers['seconds_per_image'] * 1e3:.1f}",
        ]
        for order, by_steps in orders.items()
        for steps, numbers in sorted(by_steps.items(), key=lambda item: -int(item[0]))
    ]
    return table(header, rows)


def make_pictures(quickstart: Quickstart) -> dict[str, bytes]:
    """All pictures of the report: PNG files by name, and the animation, a GIF."""
    grid, num_classes = quickstart.model.grid, quickstart.model.num_classes
    passes, real = quickstart.passes(), quickstart.real(2)
    generated = {order: quickstart.generated(order, 4 * num_classes) for order in COMPARED_ORDERS}
    blocks = {
        "real": real,
        "reconstructed": quickstart.reconstructed(real),
        "generated": np.split(generated[LOCALITY_NAME], 4),
    }
    frames = figures.decoding_frames(
        {order: images[:num_classes] for order, images in generated.items()},
        {order: each[:num_classes] for order, each in passes.items()},
        grid,
    )
    losses = quickstart.tokenizer_training["losses"]
    curves = {
        "tokenizer": (range(1, len(losses) + 1), losses, "reconstruction MSE"),
        "LPD transformer": (*quickstart.losses("loss"), "cross-entropy"),
    }
    held_out = {"LPD transformer": quickstart.losses("val_loss")}
    return {
        "animation": figures.animation_bytes(frames),
        "samples": figures.figure_bytes(figures.samples_by_class(blocks)),
        "maps": figures.figure_bytes(pass_maps(passes, grid)),
        "quality": figures.figure_bytes(
            figures.quality_curves(quickstart.orders, quickstart.other_orders, METRICS)
        ),
        "plan_losses": figures.figure_bytes(figures.plan_losses(quickstart.plan_losses)),
        "losses": figures.figure_bytes(figures.loss_curves(curves, held_out)),
    }


def page_texts(quickstart: Quickstart) -> dict[str, str]:
    """The words of the page that depend on what was measured."""
    grid = f"{quickstart.model.grid[0]} x {quickstart.model.grid[1]}"
    num_codes = quickstart.model.num_positions
    shown = quickstart.orders[LOCALITY_NAME][str(SHOWN_STEPS)]
    return {
        "summary": (
            f"Real digits were turned into {grid} codes by a VQ tokenizer trained on them; a "
            "transformer learned to predict any set of codes from any other; and new digits were "
            f"decoded several codes at a time. In {SHOWN_STEPS} passes of the locality-aware order "
            f"instead of {num_codes}, a classifier trained on real digits recognises "
            f"{shown['class_accuracy']:.1%} of the generated ones as what they were meant to be "
            f"({quickstart.classifier['accuracy']:.1%} of held-out real ones)."
        ),
        "honesty": HONESTY.format(
            num_codes=num_codes,
            parameters=quickstart.num_parameters / 1e6,
            num_images=shown["num_images"],
            grid=grid,
        ),
        "num_codes": str(num_codes),
        "grid": grid,
        "animation_rows": ", ".join(find_order(order).label for order in COMPARED_ORDERS),
        "shown_steps": str(SHOWN_STEPS),
        "quality_caption": (
            f"{shown['num_images']} images per point, classifier-free guidance "
            f"{quickstart.settings['cfg']}. {num_codes} passes decode one code at a time."
        ),
        "quality_table": quality_table(quickstart.orders),
        "plan_losses_caption": (
            f"{quickstart.plan_losses[0]['images']} held-out digits. Right: the same digits in two "
            "orders, with two standard errors over the digits; they say nothing of how another "
            f"training would come out. The model was trained on the orders {ORDER_MIX}."
        ),
        "other_orders_table": quality_table(quickstart.other_orders),
        "training_caption": (
            f"Tokenizer: held-out PSNR {quickstart.tokenizer_training['psnr']:.1f} dB, "
            f"{quickstart.tokenizer_training['codebook_usage']:.0%} of the codes in use. "
            "Transformer: nats per code; held-out digits are seen in random orders alone."
        ),
        "machine": html.escape(
            f"{os.cpu_count()} CPU cores, {platform.machine()}, Python "
            f"{platform.python_version()}, torch {torch.__version__}. Memory is that of a stage's "
            "largest process."
        ),
    }


def write_report(config: ReportConfig) -> None:
    """Make all pictures and write the page and the numbers."""
    started = time.perf_counter()
    quickstart = Quickstart(config.output_dir)
    pictures = make_pictures(quickstart)
    times = stage_times(config.output_dir, started)
    values = {
        **page_texts(quickstart),
        **{
            name: figures.data_uri(content, "gif" if name == "animation" else "png")
            for name, content in pictures.items()
        },
        "stage_table": table(
            ["stage", "seconds", "peak memory, MiB"],
            [[name, f"{each.seconds:.1f}", each.memory_text] for name, each in times.items()],
        ),
        "commands": html.escape(command_lines(times)),
    }
    page = string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
    figures.write_bytes(config.output_dir / "samples.png", pictures["samples"])
    figures.write_bytes(config.output_dir / "decoding.gif", pictures["animation"])
    figures.write_bytes(config.output_dir / "orders.png", pictures["maps"])
    figures.write_bytes(config.output_dir / "report.html", page.encode())
    write_json(
        config.output_dir / RESULTS_NAME,
        {
            "settings": quickstart.settings,
            "orders": {**quickstart.orders, **quickstart.other_orders},
            "plan_losses": quickstart.plan_losses,
            "classifier_accuracy_on_real_digits": quickstart.classifier["accuracy"],
            "tokenizer_psnr": quickstart.tokenizer_training["psnr"],
            "tokenizer_codebook_usage": quickstart.tokenizer_training["codebook_usage"],
            "seconds": {name: each.seconds for name, each in times.items()},
            "peak_memory_mib": {name: each.peak_memory_mib for name, each in times.items()},
        },
    )
    print(f"report: {config.output_dir / 'report.html'}")


if __name__ == "__main__":
    run_config = cli.parse(ReportConfig, "Write the quickstart's report.")
    with cli.command():
        write_report(run_config)
