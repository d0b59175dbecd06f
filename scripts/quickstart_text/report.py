"""Write the report of text to image: a page that needs no network, and ``results.json``."""

import html
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpd import cli
from lpd.likelihood import Estimate
from lpd.orders.registry import find_order
from scripts.order_study.claims import difference_of_estimate, sentence
from scripts.quickstart.figures import (
    animation_bytes,
    decoding_frames,
    figure_bytes,
    loss_curves,
)
from scripts.quickstart.page import ANIMATION, paragraphs, write_page
from scripts.quickstart.tables import table, with_error
from scripts.quickstart_text import figures
from scripts.quickstart_text.generate import Setting
from scripts.quickstart_text.measured import ONE_BY_ONE, SHOWN, QuickstartText
from scripts.quickstart_text.prompts import CATEGORIES
from scripts.quickstart_text.scenes import COLOURS, PLACES
from scripts.quickstart_text.scoring import HELD_OUT, OVERALL, SEEN, plain

TEMPLATE = Path(__file__).with_name("report_template.html")
_ANIMATED = 8  # prompts
HONESTY = (
    "This is the real system at toy size: every stage is the code that a cluster runs, with a real "
    "text encoder, but the world has ten digits, {colours} colours and {places} places, its "
    "sentences have {lengths} words from a handful of phrasings, images have {num_codes} codes "
    "instead of 4096, and the transformer has {parameters:.2f} million parameters. That prompts "
    "are followed here says that text gets where it should, and that parallel decoding keeps it; "
    "it says nothing of open prompts, of photographs, or of how often a large model follows them. "
    "The scores are GenEval's in kind, by a small network that knows these scenes alone and asks "
    "that nothing else be there; they compare with each other and with nothing else. Held-out "
    "combinations are new puttings-together of parts that were all learned, not new parts. The "
    "model is that of one training, and another would differ by more than these errors."
)
RULE = (
    "Differences are taken image by image, of the same prompt and seed. Below two standard errors "
    "they are noise; beyond, they are called lower or higher (each for itself: of twenty that are "
    "nothing, one is claimed)."
)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report of text to image."""

    output_dir: Path = Path("outputs/quickstart_text")
    """The quickstart's folder."""


def make_pictures(quickstart: QuickstartText) -> dict[str, bytes]:
    """All pictures of the report: PNG files by name, and the animation, a GIF."""
    columns = [ONE_BY_ONE, Setting("random", SHOWN.passes), SHOWN]
    columns = [each for each in columns if each in quickstart.settings]
    rows = [
        row
        for category in CATEGORIES
        for is_held_out, count in ((False, 3), (True, 2))
        for row in quickstart.shown_rows(category, is_held_out=is_held_out, count=count)
    ]
    generated = [
        (
            quickstart.prompts[row].text + (" *" if quickstart.prompts[row].is_held_out else ""),
            [quickstart.samples[each].pixels[row] for each in columns],
            [bool(quickstart.right[each][row]) for each in columns],
        )
        for row in rows
    ]
    names = [f"{find_order(each.order).label}\n{each.passes}" for each in columns]
    scenes = quickstart.training_scenes(12)
    real = [
        ("; ".join(captions), [pixels.numpy()], [None])
        for captions, pixels in zip(scenes.captions, scenes.pixels, strict=True)
    ]
    animated = quickstart.shown_rows("colour and position", is_held_out=False, count=_ANIMATED)
    of_shown = [each for each in quickstart.settings if each.passes == SHOWN.passes]
    frames = decoding_frames(
        {each.order: quickstart.samples[each].pixels[animated] for each in of_shown},
        {each.order: quickstart.samples[each].pass_of_cell[animated] for each in of_shown},
        _grid(quickstart),
    )
    losses = quickstart.tokenizer_training["losses"]
    curves = {
        "tokenizer": (range(1, len(losses) + 1), losses, "reconstruction MSE"),
        "LPD transformer": (*quickstart.losses("loss"), "cross-entropy"),
    }
    shown = quickstart.shares[SHOWN]
    return {
        "prompts": figure_bytes(figures.prompts_and_pictures(generated, names)),
        "scenes": figure_bytes(figures.prompts_and_pictures(real, ["scene"])),
        ANIMATION: animation_bytes(frames),
        "passes": figure_bytes(figures.scores_by_passes(quickstart.shares)),
        "categories": figure_bytes(figures.categories(shown[SEEN], shown[HELD_OUT])),
        "losses": figure_bytes(
            loss_curves(curves, {"LPD transformer": quickstart.losses("val_loss")})
        ),
    }


def _grid(quickstart: QuickstartText) -> tuple[int, int]:
    count = quickstart.samples[SHOWN].pass_of_cell.shape[1]
    side = round(count**0.5)
    return side, side


def score_table(quickstart: QuickstartText, part: str) -> str:
    """A row per setting: the shares of right images in per cent, and their standard errors."""
    names = list(quickstart.shares[SHOWN][part])
    rows = [
        [
            find_order(setting.order).label,
            str(setting.passes),
            *(with_error(quickstart.shares[setting][part][name], 100, 1) for name in names),
            f"{1e3 * quickstart.samples[setting].seconds / len(quickstart.prompts):.1f}",
        ]
        for setting in quickstart.settings
    ]
    return table(["order", "passes", *names, "ms per image"], rows)


def claims(quickstart: QuickstartText, part: str) -> list[str]:
    """What may be said of the share of right images in fewer passes: a sentence for each order."""
    count = sum(prompt.is_held_out == (part == HELD_OUT) for prompt in quickstart.prompts)
    sentences = []
    for order in dict.fromkeys(setting.order for setting in quickstart.settings):
        others = [
            setting
            for setting in quickstart.settings
            if setting.order == order and setting != ONE_BY_ONE
        ]
        more = [quickstart.more_than(each, ONE_BY_ONE)[part][OVERALL] for each in others]
        sentences.append(
            sentence(
                f"In {find_order(order).label} order, compared with one code at a time in raster "
                "order, the share of right images is",
                [f"in {each.passes} passes" for each in others],
                [difference_of_estimate(_in_points(each), count) for each in more],
                unit="points",
                digits=1,
            )
        )
    return sentences


def _in_points(estimate: Estimate) -> Estimate:
    return Estimate(value=100 * estimate.value, error=100 * estimate.error)


def accuracy_table(quickstart: QuickstartText) -> str:
    """How often the scorer finds all that is in real scenes, before and after the tokenizer."""
    rows = []
    for part, words in {"val": "held-out scans", "held_out": "in held-out combinations"}.items():
        numbers = []
        for accuracies in (quickstart.scorer_on_real, quickstart.scorer_on_reconstructed):
            each = accuracies[part]
            numbers.append(
                with_error(Estimate(value=each["right"], error=each["right_error"]), 100, 1)
            )
        rows.append([words, str(int(quickstart.scorer_on_real[part]["scenes"])), *numbers])
    return table(["real scenes", "scenes", "right, %", "after the tokenizer, %"], rows)


def page_texts(quickstart: QuickstartText) -> dict[str, str]:
    """The words of the page that depend on what was measured."""
    shown, one = (quickstart.shares[each][SEEN][OVERALL] for each in (SHOWN, ONE_BY_ONE))
    num_codes = quickstart.samples[SHOWN].pass_of_cell.shape[1]
    words = [len(prompt.text.split()) for prompt in quickstart.prompts]
    counts = {
        part: sum(prompt.is_held_out == is_held_out for prompt in quickstart.prompts)
        for part, is_held_out in ((SEEN, False), (HELD_OUT, True))
    }
    return {
        "summary": (
            f"A transformer learned scenes of scanned digits with captions in words, read by a "
            f"frozen text encoder. Of prompts of things it has seen, {with_error(shown, 100, 1)}% "
            f"are followed in every point in {SHOWN.passes} passes of the locality-aware order, "
            f"and {with_error(one, 100, 1)}% one code at a time, in {ONE_BY_ONE.passes} passes."
        ),
        "honesty": HONESTY.format(
            colours=len(COLOURS),
            places=len(PLACES),
            lengths=f"{min(words)} to {max(words)}",
            num_codes=num_codes,
            parameters=quickstart.num_parameters / 1e6,
        ),
        "shown_steps": str(SHOWN.passes),
        "num_codes": str(num_codes),
        "guidance": f"{quickstart.samples_settings['cfg']:g}",
        "guidance_schedule": quickstart.samples_settings["cfg_schedule"],
        "temperature": f"{quickstart.samples_settings['temperature']:g}",
        "animation_rows": ", ".join(
            find_order(each.order).label
            for each in quickstart.settings
            if each.passes == SHOWN.passes
        ),
        "animated": html.escape(
            "; ".join(
                quickstart.prompts[row].text
                for row in quickstart.shown_rows(
                    "colour and position", is_held_out=False, count=_ANIMATED
                )
            )
        ),
        "seen_images": str(counts[SEEN]),
        "held_out_images": str(counts[HELD_OUT]),
        "seen_table": score_table(quickstart, SEEN),
        "held_out_table": score_table(quickstart, HELD_OUT),
        "seen_claims": paragraphs(claims(quickstart, SEEN)),
        "held_out_claims": paragraphs(claims(quickstart, HELD_OUT)),
        "rule": html.escape(RULE),
        "accuracy_table": accuracy_table(quickstart),
        "training_caption": (
            f"Tokenizer: held-out PSNR {quickstart.tokenizer_training['psnr']:.1f} dB, "
            f"{quickstart.tokenizer_training['codebook_usage']:.0%} of the codes in use. "
            "Transformer: nats per code; held-out scenes are seen in random orders alone."
        ),
    }


def results(quickstart: QuickstartText) -> dict[str, Any]:
    """The numbers of the page."""
    settings: dict[str, Any] = {}
    for setting in quickstart.settings:
        settings.setdefault(setting.order, {})[str(setting.passes)] = {
            **plain(quickstart.shares[setting]),
            "more_than_one_code_at_a_time": plain(quickstart.more_than(setting, ONE_BY_ONE)),
            "seconds_per_image": quickstart.samples[setting].seconds / len(quickstart.prompts),
        }
    return {
        "settings": quickstart.samples_settings,
        "images": {
            category: {
                part: sum(
                    (prompt.category, prompt.is_held_out) == (category, is_held_out)
                    for prompt in quickstart.prompts
                )
                for part, is_held_out in ((SEEN, False), (HELD_OUT, True))
            }
            for category in CATEGORIES
        },
        "orders": settings,
        "scorer_on_real_scenes": quickstart.scorer_on_real,
        "scorer_on_reconstructed_scenes": quickstart.scorer_on_reconstructed,
        "tokenizer_psnr": quickstart.tokenizer_training["psnr"],
        "tokenizer_codebook_usage": quickstart.tokenizer_training["codebook_usage"],
        "transformer_parameters": quickstart.num_parameters,
    }


def write_report(config: ReportConfig) -> None:
    """Make all pictures and write the page and the numbers."""
    started = time.perf_counter()
    quickstart = QuickstartText(config.output_dir)
    write_page(
        config.output_dir,
        template=TEMPLATE,
        texts=page_texts(quickstart),
        pictures=make_pictures(quickstart),
        files={"report.png": "prompts", "decoding.gif": ANIMATION},
        results=results(quickstart),
        started=started,
    )


if __name__ == "__main__":
    run_config = cli.parse(ReportConfig, "Write the report of text to image.")
    with cli.command():
        write_report(run_config)
