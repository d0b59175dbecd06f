"""What the study compares, and where its parts lie.

N positions of a grid; a share is the share of training images that are seen in locality-aware
orders, the others being seen in random ones.
"""

from dataclasses import dataclass
from pathlib import Path

from lpd.errors import InputError
from lpd.orders.group_sizes import CUMULATIVE_SHARES, make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.mixture import RANDOM_NAME
from lpd.orders.plan import Grid
from lpd.orders.registry import LOCALITY_NAME, OrderConfig
from lpd.orders.request import PlanSource
from lpd.randomness import check_seed
from lpd.weights import WEIGHTS_NAME
from scripts.quickstart.run import LOCALITY, QuickstartConfig

DECODED_ORDERS = (RANDOM_NAME, "halton", LOCALITY_NAME, "raster")
SHAPE = "cosine"  # of group sizes, where nothing else is said
PROXIMITIES = (0.0, 1.0, 2.0)
REPULSIONS = (0.0, 1.0, 2.0, 3.0)
# The shares whose models are decoded in other ways too, and those that generate images.
CHOSEN_SHARES = (0.0, 0.5)
QUALITY_SHARES = (0.0, 0.5, 1.0)
GUIDANCE = (1.5, 3.0)
SAMPLING_SEEDS = (0, 1)
# Of the plans under which losses are measured: all models see the same orders of the same images.
PLAN_SEED = 0


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train on mixtures of random and locality-aware orders, and compare ways to decode."""

    quickstart_dir: Path = Path("outputs/quickstart")
    """The quickstart's folder; what is missing of its digits, classifier, tokenizer and caches is
    made there."""
    output_dir: Path = Path("outputs/order_study")
    """Where models and measurements go. The same command goes on from what is there."""
    report_dir: Path = Path("outputs/order_study/report")
    """Where the page, its figures and its tables go."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the trainings, each of which all mixtures are trained with."""
    shares: tuple[float, ...] = (0.0, 0.5, 1.0, 0.25, 0.75)
    """Shares of locality-aware orders to train with."""
    epochs: int = QuickstartConfig.epochs
    """Passes of a training over the digits."""
    tokenizer_steps: int = QuickstartConfig.tokenizer_steps
    """Training steps of the tokenizer, where it is missing."""
    num_images: int = 1000
    """Generated images per setting and sampling seed."""

    def __post_init__(self) -> None:
        for name in ("seeds", "shares"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} needs at least one value, and none twice")
        for seed in self.seeds:
            check_seed(seed)
        for share in self.shares:
            if not (0 <= share <= 1 and 100 * share == round(100 * share)):
                raise InputError(f"shares must be hundredths from 0 to 1, got {share}")
        for name in ("epochs", "tokenizer_steps", "num_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    def training_dir(self, seed: int, share: float) -> Path:
        """The folder of a training."""
        return self.output_dir / f"seed_{seed}" / name_of(share)

    def losses_file(self, seed: int, share: float) -> Path:
        """The file with the losses of its model."""
        return self.output_dir / "losses" / f"seed_{seed}_{name_of(share)}.npz"

    def quality_dir(self, seed: int, share: float) -> Path:
        """The folder of the evaluation of its model."""
        return self.output_dir / "quality" / f"seed_{seed}_{name_of(share)}"

    def model_dir(self, seed: int, share: float) -> Path:
        """The folder of its model; the weights are there once the training is complete."""
        return self.training_dir(seed, share) / "model"

    def is_trained(self, seed: int, share: float) -> bool:
        """Whether the training is complete."""
        return (self.model_dir(seed, share) / WEIGHTS_NAME).is_file()


def name_of(share: float) -> str:
    """A mixture's name in file names."""
    return f"lpd_{round(100 * share)}"


def words_of(share: float) -> str:
    """What a mixture is called in texts and figures."""
    if share == 0:
        return "random orders alone"
    return "locality-aware orders alone" if share == 1 else f"{share:.0%} locality-aware orders"


def order_mix(share: float) -> str:
    """A mixture as ``main_train.py --order_mix`` takes it."""
    if share in (0, 1):
        return LOCALITY_NAME if share else RANDOM_NAME
    return f"{RANDOM_NAME}:{1 - share:g} {LOCALITY_NAME}:{share:g}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A way to decode."""

    order: str
    passes: int
    shape: str = SHAPE
    """How group sizes grow."""
    locality: LocalityConfig = LOCALITY
    """The thresholds, by default those that the quickstart decodes and trains with."""

    @property
    def name(self) -> str:
        """A name of letters, digits, points and underscores, another for each plan."""
        thresholds = f"{self.locality.proximity_threshold:g}_{self.locality.repulsion_threshold:g}"
        return f"{self.order}_{self.passes}_{self.shape}_{thresholds}"

    def source(self, grid: Grid) -> PlanSource:
        """The plans of images."""
        return PlanSource(
            order=OrderConfig(kind=self.order, locality=self.locality),
            grid=grid,
            group_sizes=make_group_sizes(grid[0] * grid[1], self.passes, self.shape),
        )


def numbers_of_passes(num_positions: int) -> tuple[int, ...]:
    """N and a quarter, an eighth and a sixteenth of it."""
    return tuple(max(1, num_positions >> halvings) for halvings in (0, 2, 3, 4))


def main_plans(num_positions: int) -> list[Plan]:
    """Every order in every number of passes: what all models are measured with."""
    return [
        Plan(order=order, passes=passes)
        for passes in numbers_of_passes(num_positions)
        for order in DECODED_ORDERS
    ]


def threshold_plans(num_positions: int) -> list[Plan]:
    """The locality-aware order with every pair of thresholds, in a quarter and an eighth of N."""
    return [
        Plan(
            order=LOCALITY_NAME,
            passes=passes,
            locality=LocalityConfig(proximity_threshold=proximity, repulsion_threshold=repulsion),
        )
        for passes in numbers_of_passes(num_positions)[1:3]
        for proximity in PROXIMITIES
        for repulsion in REPULSIONS
    ]


def shape_plans(num_positions: int) -> list[Plan]:
    """The locality-aware order with every shape of group sizes, in fewer passes than N."""
    return [
        Plan(order=LOCALITY_NAME, passes=passes, shape=shape)
        for passes in numbers_of_passes(num_positions)[1:]
        for shape in CUMULATIVE_SHARES
    ]


def plans_of(share: float, num_positions: int) -> list[Plan]:
    """All that a model is measured with, none twice."""
    plans = main_plans(num_positions)
    if share in CHOSEN_SHARES:
        plans += threshold_plans(num_positions) + shape_plans(num_positions)
    return list(dict.fromkeys(plans))
