"""Write the quickstart's report: one HTML page that needs no network, and ``results.json``."""

import html
import json
import math
import os
import platform
import resource
import shlex
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpd import cli
from lpd.data.images import index_images, read_image
from lpd.data.transforms import image_to_pixels, normalize_
from lpd.evaluation.generated.chunks import read_codes
from lpd.evaluation.generated.report import read_results
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.evaluation.plan_loss.report import LOSSES_NAME
from lpd.files import read_json, write_json
from lpd.generation import ImageGenerator
from lpd.likelihood import Estimate
from lpd.orders.files import load_orders
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import LOCALITY_NAME, OrderConfig, find_order
from lpd.orders.request import PlanSource
from lpd.pretrained import load_model
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.order_figures.drawing import count_of, pass_maps
from scripts.order_study.claims import Difference, difference_of_estimate, sentence
from scripts.quickstart import figures
from scripts.quickstart.run import (
    COMPARED_ORDERS,
    EVALUATION_NAME,
    FIGURES_NAME,
    GUIDANCE,
    GUIDANCES,
    ORDER_MIX,
    OTHER_ORDERS,
    PLAN_LOSSES_NAME,
    SEEDS,
    SHOWN_ORDERS,
    SHOWN_STEPS,
)
from scripts.quickstart.times import SETUP_NAME, StageTime, read_times
from scripts.sweep_figures.points import LATENCY, PASSES, SECONDS, Point, read_points

TEMPLATE = Path(__file__).with_name("report_template.html")
HONESTY = (
    "This is the real system at toy size: every stage is the code that runs on ImageNet, but the "
    "images have {num_codes} codes instead of 256, the transformer has {parameters:.2f} million "
    "parameters instead of 337 million, and training takes minutes. FID and inception score use a "
    "small classifier trained on these digits, so they compare the rows of this page with each "
    "other and with nothing else. Generated digits are measured with {seeds} seeds of {num_images} "
    "images each, and numbers are their means ± one standard error; the model is that of one "
    "training, and another would differ by more than these errors. "
    "The published gain of the locality-aware order is measured on ImageNet, with groups of up to "
    "20 of 256 codes; on {grid} codes there is little room to keep the cells of a pass apart, and "
    "the orders may come out close. Seconds per image on a CPU follow the number of codes more "
    "than the number of passes, in large batches above all; on a GPU passes cost more than codes, "
    "and few passes pay off."
)
RULE = (
    "Differences are taken seed by seed. Below two standard errors they are noise; they are "
    "claimed, as lower or higher, beyond {needed:.1f}, for a spread of {seeds} seeds is known "
    "badly (95%, by Student's distribution, and each for itself: of twenty that are nothing, one "
    "is claimed)."
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
        evaluation = folder / EVALUATION_NAME
        self.settings = read_json(evaluation / RESULTS_NAME)["settings"]
        self._results = read_results(evaluation)
        points = read_points([evaluation])
        usual = [point for point in points if point.values["cfg"] == GUIDANCE]
        by_order = {
            order: [each for each in usual if each.values["order"] == order]
            for order in (*COMPARED_ORDERS, *OTHER_ORDERS)
        }
        self.compared = [each for order in COMPARED_ORDERS for each in by_order[order]]
        self.others = [each for order in OTHER_ORDERS for each in by_order[order]]
        self.guided = [
            each
            for each in points
            if (each.values["order"], each.values[PASSES]) == (LOCALITY_NAME, SHOWN_STEPS)
        ]
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
        return self.generator.decode(
            read_codes(
                self.folder / EVALUATION_NAME / f"{order}_{SHOWN_STEPS}",
                num_images=self.settings["num_images"],
                old_size=self.settings["chunk_size"],
            )[:count]
        )

    def at(self, order: str, steps: int) -> Point:
        """An order in a number of passes."""
        (point,) = (
            each
            for each in self.compared
            if (each.values["order"], each.values[PASSES]) == (order, steps)
        )
        return point

    def compare(
        self, number: str, first: Mapping[str, Any], second: Mapping[str, Any]
    ) -> Difference:
        """How a number differs between two settings, seed by seed.

        Args:
            number: its key.
            first: the values that single out the one, of
                :attr:`lpd.evaluation.generated.report.SettingResult.setting`.
            second: those of the other.
        """
        numbers = [
            np.array(
                [
                    each.metrics[number]
                    for each in sorted(self._results, key=lambda each: each.seed or 0)
                    if values.items() <= each.setting.items()
                ],
                dtype=np.float64,
            )
            for values in (first, second)
        ]
        return difference_of_estimate(Estimate.of(numbers[0] - numbers[1]), len(SEEDS))

    def passes(self) -> dict[str, npt.NDArray[np.int64]]:
        """Per order (n, N) the pass of each cell, of the images of the shown setting."""
        shown = self.at(LOCALITY_NAME, SHOWN_STEPS).values
        images = np.arange(shown["num_images"])
        locality = LocalityConfig(
            proximity_threshold=self.settings["proximity_threshold"],
            repulsion_threshold=self.settings["repulsion_threshold"],
        )
        # The evaluation has made the same orders as it needed them.
        file = load_orders(self.folder / f"orders_lpd_{SHOWN_STEPS}.npz")
        passes = {}
        for order in SHOWN_ORDERS:
            source = PlanSource(
                order=OrderConfig(kind=order, locality=locality),
                grid=self.model.grid,
                group_sizes=shown["group_sizes"],
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


def quality_table(points: Sequence[Point]) -> str:
    """A row per setting: means and their standard errors."""
    columns = {
        "FID": ("fid", 1.0, 2),
        "inception score": ("inception_score", 1.0, 2),
        "class accuracy": ("class_accuracy", 1.0, 3),
        "ms per image": (SECONDS, 1e3, 1),
        "ms for one alone": (LATENCY, 1e3, 0),
    }
    rows = [
        [
            find_order(point.values["order"]).label,
            str(point.values[PASSES]),
            *(
                with_error(point.numbers[key], scale, digits)
                for key, scale, digits in columns.values()
            ),
        ]
        for point in points
    ]
    return table(["order", "passes", *columns], rows)


def with_error(estimate: Estimate, scale: float = 1.0, digits: int = 2) -> str:
    """A mean ± its standard error, where there is one."""
    text = f"{scale * estimate.value:.{digits}f}"
    if not math.isfinite(estimate.error):
        return text
    return f"{text} ± {scale * estimate.error:.{digits}f}"


def make_pictures(quickstart: Quickstart) -> dict[str, bytes]:
    """All pictures of the report: PNG files by name, and the animation, a GIF."""
    grid, num_classes = quickstart.model.grid, quickstart.model.num_classes
    passes, real = quickstart.passes(), quickstart.real(2)
    sweep = quickstart.folder / FIGURES_NAME
    generated = {order: quickstart.generated(order, 4 * num_classes) for order in SHOWN_ORDERS}
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
        **{name: (sweep / f"{name}.png").read_bytes() for name in ("passes", "guidance", "speed")},
        "plan_losses": figures.figure_bytes(figures.plan_losses(quickstart.plan_losses)),
        "losses": figures.figure_bytes(figures.loss_curves(curves, held_out)),
    }


def quality_claims(quickstart: Quickstart) -> list[str]:
    """What may be said of the FID of orders and numbers of passes: a sentence each."""
    steps = sorted({point.values[PASSES] for point in quickstart.compared}, reverse=True)

    def fid(first: tuple[str, int], second: tuple[str, int], cfg: float = GUIDANCE) -> Difference:
        ways = [{"order": order, PASSES: each} for order, each in (first, second)]
        return quickstart.compare("fid", {**ways[0], "cfg": cfg}, {**ways[1], "cfg": GUIDANCE})

    orders = [
        sentence(
            f"In locality-aware order, compared with {find_order(other).label} order, FID is",
            [f"in {count_of(each)}" for each in steps],
            [fid((LOCALITY_NAME, each), (other, each)) for each in steps],
        )
        for other in COMPARED_ORDERS
        if other != LOCALITY_NAME
    ]
    fewer = sentence(
        f"In fewer than {steps[0]} passes of the locality-aware order, FID is",
        [f"in {each}" for each in steps[1:]],
        [fid((LOCALITY_NAME, each), (LOCALITY_NAME, steps[0])) for each in steps[1:]],
    )
    return [*orders, fewer]


def guidance_claim(quickstart: Quickstart) -> str:
    """What may be said of the FID of other scales of guidance."""
    shown = {"order": LOCALITY_NAME, PASSES: SHOWN_STEPS}
    others = [cfg for cfg in GUIDANCES if cfg != GUIDANCE]
    return sentence(
        f"Compared with guidance {GUIDANCE:g}, FID is",
        ["without guidance" if cfg == 1 else f"with {cfg:g}" for cfg in others],
        [
            quickstart.compare("fid", {**shown, "cfg": cfg}, {**shown, "cfg": GUIDANCE})
            for cfg in others
        ],
    )


def loss_claims(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """What may be said of the losses of orders, digit by digit: a sentence for each but the
    first."""
    first, *others = dict.fromkeys(plan["order"] for plan in plans)
    sentences = []
    for other in others:
        own = [plan for plan in plans if plan["order"] == other]
        own.sort(key=lambda plan: -plan["generation_steps"])
        sentences.append(
            sentence(
                f"In {find_order(other).label} order, compared with {find_order(first).label} "
                "order, the loss is",
                [f"in {count_of(plan['generation_steps'])}" for plan in own],
                [
                    difference_of_estimate(
                        Estimate(
                            value=plan["more_than_first"], error=plan["more_than_first_error"]
                        ),
                        plan["images"],
                    )
                    for plan in own
                ],
                unit="nats",
                digits=1,
            )
        )
    return sentences


def more_than_first(plan: Mapping[str, Any]) -> Estimate:
    """How many more nats a plan costs than that of the first order."""
    return Estimate(value=plan["more_than_first"], error=plan["more_than_first_error"])


def page_texts(quickstart: Quickstart) -> dict[str, str]:
    """The words of the page that depend on what was measured."""
    grid = f"{quickstart.model.grid[0]} x {quickstart.model.grid[1]}"
    num_codes = quickstart.model.num_positions
    shown = quickstart.at(LOCALITY_NAME, SHOWN_STEPS)
    accuracy = shown.numbers["class_accuracy"]
    rule = difference_of_estimate(accuracy, len(SEEDS))
    return {
        "summary": (
            f"Real digits were turned into {grid} codes by a VQ tokenizer trained on them; a "
            "transformer learned to predict any set of codes from any other; and new digits were "
            f"decoded several codes at a time. In {SHOWN_STEPS} passes of the locality-aware order "
            f"instead of {num_codes}, a classifier trained on real digits recognises "
            f"{with_error(accuracy, 100, 1)}% of the generated ones as what they were meant to be "
            f"({quickstart.classifier['accuracy']:.1%} of held-out real ones)."
        ),
        "honesty": HONESTY.format(
            num_codes=num_codes,
            parameters=quickstart.num_parameters / 1e6,
            num_images=shown.values["num_images"],
            seeds=shown.seeds,
            grid=grid,
        ),
        "num_codes": str(num_codes),
        "grid": grid,
        "animation_rows": ", ".join(find_order(order).label for order in SHOWN_ORDERS),
        "shown_steps": str(SHOWN_STEPS),
        "guidance_scale": f"{GUIDANCE:g}",
        "seeds": str(shown.seeds),
        "quality_table": quality_table(quickstart.compared),
        "other_orders_table": quality_table(quickstart.others),
        "quality_claims": paragraphs(quality_claims(quickstart)),
        "guidance_claim": paragraphs([guidance_claim(quickstart)]),
        "loss_claims": paragraphs(loss_claims(quickstart.plan_losses)),
        "rule": html.escape(RULE.format(seeds=rule.trainings, needed=rule.needed)),
        "plan_losses_caption": (
            f"{quickstart.plan_losses[0]['images']} held-out digits; bars are two standard errors "
            "over the digits. Right: the same digits in two orders, so that what makes some digits "
            "dearer than others drops out. The errors say nothing of how another training would "
            f"come out. The model was trained on the orders {ORDER_MIX}."
        ),
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


def paragraphs(sentences: Sequence[str]) -> str:
    """Sentences as paragraphs of a page."""
    return "\n".join(f"<p>{html.escape(each)}</p>" for each in sentences)


def by_order(points: Sequence[Point]) -> dict[str, dict[str, dict[str, float | None]]]:
    """By order and number of passes the means, and by ``NAME_error`` their standard errors."""
    orders: dict[str, dict[str, dict[str, float | None]]] = {}
    for point in points:
        numbers = orders.setdefault(point.values["order"], {})
        numbers[str(point.values[PASSES])] = numbers_of(point)
    return orders


def numbers_of(point: Point) -> dict[str, float | None]:
    """The means, and by ``NAME_error`` their standard errors."""
    numbers: dict[str, float | None] = {}
    for name, each in point.numbers.items():
        numbers[name] = each.value
        numbers[f"{name}_error"] = each.error if math.isfinite(each.error) else None
    return numbers


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
            "seeds": len(SEEDS),
            "orders": by_order([*quickstart.compared, *quickstart.others]),
            "guidance": {f"{p.values['cfg']:g}": numbers_of(p) for p in quickstart.guided},
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
