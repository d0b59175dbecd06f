"""Write the quickstart's report: one HTML page that needs no network, and ``results.json``."""

import html
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpd import cli
from lpd.orders.registry import LOCALITY_NAME, find_order
from scripts.order_figures.drawing import pass_maps
from scripts.order_study.claims import difference_of_estimate
from scripts.quickstart import figures
from scripts.quickstart.claims import editing_claim, guidance_claim, loss_claims, quality_claims
from scripts.quickstart.edit_digits import PICTURE_NAME
from scripts.quickstart.measured import Quickstart
from scripts.quickstart.page import ANIMATION, paragraphs, write_page
from scripts.quickstart.run import (
    EDITING_NAME,
    FIGURES_NAME,
    GUIDANCE,
    ORDER_MIX,
    SEEDS,
    SHOWN_ORDERS,
    SHOWN_STEPS,
)
from scripts.quickstart.tables import (
    by_order,
    editing_table,
    numbers_of,
    quality_table,
    with_error,
)

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
        ANIMATION: figures.animation_bytes(frames),
        "samples": figures.figure_bytes(figures.samples_by_class(blocks)),
        "editing": (quickstart.folder / EDITING_NAME / PICTURE_NAME).read_bytes(),
        "maps": figures.figure_bytes(pass_maps(passes, grid)),
        **{name: (sweep / f"{name}.png").read_bytes() for name in ("passes", "guidance", "speed")},
        "plan_losses": figures.figure_bytes(figures.plan_losses(quickstart.plan_losses)),
        "losses": figures.figure_bytes(figures.loss_curves(curves, held_out)),
    }


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
        "edited_digits": str(quickstart.editing["images"]),
        "editing_table": editing_table(quickstart.editing),
        "editing_claim": paragraphs([editing_claim(quickstart.editing)]),
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
    }


def results(quickstart: Quickstart) -> dict[str, Any]:
    """The numbers of the page."""
    return {
        "settings": quickstart.settings,
        "seeds": len(SEEDS),
        "orders": by_order([*quickstart.compared, *quickstart.others]),
        "guidance": {f"{p.values['cfg']:g}": numbers_of(p) for p in quickstart.guided},
        "plan_losses": quickstart.plan_losses,
        "editing": quickstart.editing,
        "classifier_accuracy_on_real_digits": quickstart.classifier["accuracy"],
        "tokenizer_psnr": quickstart.tokenizer_training["psnr"],
        "tokenizer_codebook_usage": quickstart.tokenizer_training["codebook_usage"],
    }


def write_report(config: ReportConfig) -> None:
    """Make all pictures and write the page and the numbers."""
    started = time.perf_counter()
    quickstart = Quickstart(config.output_dir)
    write_page(
        config.output_dir,
        template=TEMPLATE,
        texts=page_texts(quickstart),
        pictures=make_pictures(quickstart),
        files={"samples.png": "samples", "decoding.gif": ANIMATION, "orders.png": "maps"},
        results=results(quickstart),
        started=started,
    )


if __name__ == "__main__":
    run_config = cli.parse(ReportConfig, "Write the quickstart's report.")
    with cli.command():
        write_report(run_config)
