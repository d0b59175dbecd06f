"""Train the network that tells what is in a scene, on real scenes of all combinations.

python scripts/quickstart_text/train_scorer.py --data_path SCENES --output_dir OUT
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lpd import cli
from lpd.errors import InputError
from lpd.files import read_json, write_json
from lpd.likelihood import Estimate
from lpd.progress import progress
from lpd.provenance import Origin, missing
from lpd.randomness import check_seed
from lpd.weights import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    find_config,
    load_state_dict_file,
    load_strictly,
    save_pretrained,
)
from scripts.quickstart.train_classifier import shift
from scripts.quickstart_text.make_scenes import draw, read_scenes
from scripts.quickstart_text.scenes import (
    COLOURS,
    PLACES,
    Digit,
    Scene,
    SceneDrawer,
    all_scenes,
    load_scans,
)
from scripts.quickstart_text.scorer import NOTHING, Scorer, ScorerConfig

RESULT_NAME = "accuracy.json"
# Of a scene's drawing, so that none is one of the files: those count parts.
_DRAWN_HERE = 1000
_LEAST_BLUR = 0.1  # at which nothing changes
_SETTINGS = ("num_images", "num_steps", "batch_size", "lr", "max_shift", "max_blur", "seed")


@dataclass(frozen=True, kw_only=True)
class TrainScorerConfig:
    """Train the network that tells what is in a scene."""

    data_path: Path
    """The scenes that make_scenes.py wrote; it is measured on the held-out ones."""
    output_dir: Path
    """Where the network's folder goes; complete, it is left as it is."""
    num_images: int = 6000
    """Scenes to learn from, drawn from the training scans in all combinations, held-out ones too:
    what it judges must not depend on what the transformer was trained on."""
    num_steps: int = 800
    """Training steps."""
    batch_size: int = 32
    """Scenes per step."""
    lr: float = 4e-3
    """Highest learning rate."""
    max_shift: int = 1
    """Training scenes are moved by up to so many pixels in each direction."""
    max_blur: float = 1.0
    """Training scenes are blurred over 3 x 3 pixels, by a Gaussian of up to this standard deviation
    in pixels. What comes from a tokenizer is blurred, and a network that had only seen sharp scenes
    would misread it."""
    seed: int = 0
    """Names all random numbers."""

    def __post_init__(self) -> None:
        for name in ("num_images", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise InputError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.max_shift <= 4:
            raise InputError(f"max_shift must be from 0 to 4, got {self.max_shift}")
        if not _LEAST_BLUR <= self.max_blur <= 4:
            raise InputError(f"max_blur must be from {_LEAST_BLUR} to 4, got {self.max_blur}")
        check_seed(self.seed)


def run(config: TrainScorerConfig) -> None:
    """Train, measure on held-out scenes, write the folder; do nothing if it is complete.

    Raises:
        InputError: the folder holds a network of another configuration, or the scenes are not
            there.
    """
    folder = config.output_dir
    origin = Origin(values={name: getattr(config, name) for name in _SETTINGS})
    if not missing(folder / name for name in (RESULT_NAME, WEIGHTS_NAME, CONFIG_NAME)):
        result = read_json(folder / RESULT_NAME)
        origin.check(result.get("settings"), place=folder, remedy="give another --output_dir")
        print(f"scorer: complete, {told(result['scenes'])}: {folder}")
        return
    held_out = {part: read_scenes(config.data_path, part) for part in ("val", "held_out")}
    scorer = train(config)
    result = {
        part: agreement(scorer.find(each.pixels), each.scenes) for part, each in held_out.items()
    }
    write_json(folder / RESULT_NAME, {"scenes": result, "settings": origin.plain()})
    save_pretrained(folder, scorer, scorer.config)  # its weights say that the folder is complete
    print(f"scorer: {told(result)}: {folder}")


def told(result: dict[str, dict[str, float]]) -> str:
    """The accuracies in a line."""
    shares = ", ".join(f"{each['right']:.1%} of {part}" for part, each in result.items())
    return f"all digits right in {shares} scenes"


def train(config: TrainScorerConfig) -> Scorer:
    """Train with AdamW and a one-cycle learning rate."""
    from torchvision.transforms import v2  # after lpd, without which not every build of it loads

    scans, drawer = load_scans()["train"], SceneDrawer(all_scenes())
    drawn = [
        draw(drawer, scans, 1, config.seed, _DRAWN_HERE, image)
        for image in progress(range(config.num_images), desc="drawing scenes", unit="image")
    ]
    pixels = torch.stack([torch.from_numpy(each.pixels).permute(2, 0, 1) for each in drawn])
    targets = torch.stack([targets_of(each.scene) for each in drawn])  # (n, K, 2)
    generator = torch.Generator().manual_seed(config.seed)
    blur = v2.GaussianBlur(3, sigma=(_LEAST_BLUR, config.max_blur))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the first weights, dropout, and the blur of each step
        scorer = Scorer(ScorerConfig())
        optimizer = torch.optim.AdamW(scorer.parameters(), lr=config.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.num_steps
        )
        with progress(total=config.num_steps, desc="scorer", unit="step") as bar:
            for _ in range(config.num_steps):
                rows = torch.randint(len(pixels), (config.batch_size,), generator=generator)
                seen = blur(shift(pixels[rows], config.max_shift, generator))
                loss = loss_of(scorer(seen), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return scorer.eval()


def targets_of(scene: Scene) -> Tensor:
    """(K, 2) the number and colour at every place; ``NOTHING`` and -100 where there is none."""
    by_place = {digit.place: digit for digit in scene.digits}
    return torch.tensor(
        [
            [by_place[place].number, list(COLOURS).index(by_place[place].colour)]
            if place in by_place
            else [NOTHING, -100]  # which cross-entropy passes over
            for place in PLACES
        ]
    )


def loss_of(logits: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """The cross-entropies of (B, K, 2) numbers and colours, added."""
    return sum(
        (
            F.cross_entropy(of.flatten(0, 1), targets[..., kind].flatten())
            for kind, of in enumerate(logits)
        ),
        start=torch.zeros(()),
    )


def agreement(found: Sequence[tuple[Digit, ...]], scenes: Sequence[Scene]) -> dict[str, float]:
    """In how many scenes everything was found, and nothing else, with its standard error."""
    right = torch.tensor(
        [set(each) == set(scene.digits) for each, scene in zip(found, scenes, strict=True)]
    )
    estimate = Estimate.of(right.double().numpy())
    return {"right": estimate.value, "right_error": estimate.error, "scenes": len(scenes)}


def load_scorer(folder: Path) -> Scorer:
    """Load the trained network.

    Raises:
        InputError: it is not there, or is another.
    """
    config = find_config(folder, ScorerConfig) if folder.is_dir() else None
    if config is None:
        raise InputError(f"there is no scorer in {folder}: run train_scorer.py first")
    scorer = Scorer(config)
    load_strictly(scorer, load_state_dict_file(folder), str(folder))
    return scorer.eval()


if __name__ == "__main__":
    run_config = cli.parse(TrainScorerConfig, "Train the network that tells what is in a scene.")
    with cli.command():
        run(run_config)
