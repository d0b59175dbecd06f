"""What the quickstart left in its folder, for the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpd.data.transforms import normalize_
from lpd.files import read_json
from lpd.likelihood import Estimate
from lpd.orders.registry import LOCALITY_NAME
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.weights import WEIGHTS_NAME, load_state_dict_file
from scripts.quickstart_text.generate import (
    PROMPTS_NAME,
    Samples,
    Setting,
    read_prompts,
    read_samples,
)
from scripts.quickstart_text.make_scenes import ScenePart, read_scenes
from scripts.quickstart_text.run import (
    NUM_CODES,
    SAMPLES_NAME,
    SCENES_NAME,
    SCORER_NAME,
    SHOWN_STEPS,
    TOKENIZER_NAME,
    TRAINING_NAME,
)
from scripts.quickstart_text.scoring import Right, differences, is_right, shares
from scripts.quickstart_text.train_scorer import RESULT_NAME, agreement, load_scorer

Shares = dict[str, dict[str, Estimate]]

ONE_BY_ONE = Setting("raster", NUM_CODES)
"""One code at a time, from the upper left to the lower right."""
SHOWN = Setting(LOCALITY_NAME, SHOWN_STEPS)
"""A quarter of the passes, in locality-aware order."""


class QuickstartText:
    """What the quickstart left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples_settings: dict[str, Any] = read_json(folder / SAMPLES_NAME / PROMPTS_NAME)[
            "origin"
        ]
        self.prompts = read_prompts(folder / SAMPLES_NAME)
        self.settings = self._find_settings()
        self.samples = {
            setting: read_samples(folder / SAMPLES_NAME, setting) for setting in self.settings
        }
        self._scorer = load_scorer(folder / SCORER_NAME)
        self.scorer_on_real: dict[str, dict[str, float]] = read_json(
            folder / SCORER_NAME / RESULT_NAME
        )["scenes"]
        self.right = {setting: self._judge(each) for setting, each in self.samples.items()}
        self.shares = {setting: shares(self.prompts, each) for setting, each in self.right.items()}
        self.tokenizer_training: dict[str, Any] = read_json(
            folder / TOKENIZER_NAME / "training.json"
        )
        self._tokenizer = VQTokenizer.from_pretrained(folder / TOKENIZER_NAME, torch.device("cpu"))
        self.real = {part: read_scenes(folder / SCENES_NAME, part) for part in self.scorer_on_real}
        self.reconstructed = {
            part: self._reconstruct(each.pixels) for part, each in self.real.items()
        }
        self.scorer_on_reconstructed = {
            part: agreement(self._scorer.find(pixels), self.real[part].scenes)
            for part, pixels in self.reconstructed.items()
        }
        weights = load_state_dict_file(folder / TRAINING_NAME / "model" / WEIGHTS_NAME)
        self.num_parameters = sum(weight.numel() for weight in weights.values())
        log = (folder / TRAINING_NAME / "log.jsonl").read_text()
        self._log = [json.loads(line) for line in log.splitlines()]

    def losses(self, name: str) -> tuple[list[float], list[float]]:
        """The steps at which the transformer's training tells a number, and the numbers."""
        entries = [entry for entry in self._log if name in entry]
        return [entry["step"] for entry in entries], [entry[name] for entry in entries]

    def more_than(self, setting: Setting, other: Setting) -> Shares:
        """How many more images are right in a setting than in another."""
        return differences(self.prompts, self.right[setting], self.right[other])

    def shown_rows(self, category: str, *, is_held_out: bool, count: int) -> list[int]:
        """The first prompts of a category with other words each, not chosen by their images."""
        rows: dict[str, int] = {}
        for row, prompt in enumerate(self.prompts):
            if (prompt.category, prompt.is_held_out) == (category, is_held_out):
                rows.setdefault(prompt.text, row)
        return list(rows.values())[:count]

    def training_scenes(self, count: int) -> ScenePart:
        """The first training scenes with their captions."""
        return read_scenes(self.folder / SCENES_NAME, "train", count)

    def _find_settings(self) -> list[Setting]:
        found = [
            Setting(order, int(passes))
            for order, passes in (
                file.stem.rsplit("_", 1) for file in (self.folder / SAMPLES_NAME).glob("*.npz")
            )
        ]
        names = list(dict.fromkeys((ONE_BY_ONE.order, "random", LOCALITY_NAME)))
        return sorted(found, key=lambda each: (names.index(each.order), -each.passes))

    def _judge(self, samples: Samples) -> Right:
        found = self._scorer.find(torch.from_numpy(samples.pixels))
        return np.array(
            [is_right(prompt, each) for prompt, each in zip(self.prompts, found, strict=True)]
        )

    @torch.inference_mode()
    def _reconstruct(self, pixels: Tensor) -> Tensor:
        decode = self._tokenizer.pixel_decoder()
        parts = []
        for part in pixels.split(64):
            codes = self._tokenizer.encode(normalize_(part.float()))  # (B, N)
            side = round(codes.shape[1] ** 0.5)
            parts.append(decode(codes, (side, side)))
        return torch.cat(parts)


def pictures(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(..., 3, H, W) -> (..., H, W, 3), as figures are drawn from."""
    return np.moveaxis(pixels, -3, -1)
