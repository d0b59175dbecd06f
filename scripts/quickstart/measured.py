"""What the quickstart left in its folder, for the report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpd.data.images import index_images, read_image
from lpd.data.transforms import image_to_pixels, normalize_
from lpd.evaluation.generated.chunks import read_codes
from lpd.evaluation.generated.report import read_results
from lpd.evaluation.measures.records import RESULTS_NAME
from lpd.evaluation.plan_loss.report import LOSSES_NAME
from lpd.files import read_json
from lpd.generation import ImageGenerator
from lpd.likelihood import Estimate
from lpd.orders.files import load_orders
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import LOCALITY_NAME, OrderConfig
from lpd.orders.request import PlanSource
from lpd.pretrained import load_model
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from scripts.order_study.claims import Difference, difference_of_estimate
from scripts.quickstart import figures
from scripts.quickstart.edit_digits import RESULT_NAME as EDITS_NAME
from scripts.quickstart.run import (
    COMPARED_ORDERS,
    EDITING_NAME,
    EVALUATION_NAME,
    GUIDANCE,
    OTHER_ORDERS,
    PLAN_LOSSES_NAME,
    SEEDS,
    SHOWN_ORDERS,
    SHOWN_STEPS,
)
from scripts.sweep_figures.points import PASSES, Point, read_points


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
        self.editing = read_json(folder / EDITING_NAME / EDITS_NAME)
        del self.editing["origin"]
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
