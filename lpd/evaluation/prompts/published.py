"""What is published of LPD's models of texts, and how many prompts the benchmarks have.

Nothing here needs torch.
"""

from dataclasses import dataclass

from lpd.errors import InputError

PAPER = "arXiv 2507.01957"
GENEVAL = "geneval"
DPG = "dpg"

GENEVAL_PROMPTS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""How many prompts GenEval's tasks have (arXiv 2310.11513), in its order."""
DPG_PROMPTS = 1065
"""How many prompts DPG-Bench has (arXiv 2403.05135)."""


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """A score that the paper reports of a model of texts."""

    benchmark: str
    preset: str
    """Of the model."""
    img_size: int
    """Image side in pixels."""
    generation_steps: int
    """Number of passes."""
    score: float
    """Overall, as the benchmark's scorer gives it."""

    @property
    def name(self) -> str:
        """Of the row, such as lpd_t2i_l_1024_64."""
        return f"{self.preset}_{self.img_size}_{self.generation_steps}"


ROWS: dict[str, PublishedScore] = {
    row.name: row
    for row in (
        PublishedScore(
            benchmark=GENEVAL, preset=preset, img_size=1024, generation_steps=64, score=score
        )
        for preset, score in (("lpd_t2i_l", 0.58), ("lpd_t2i_xl", 0.62))
    )
}
"""By name."""


def find_row(name: str, benchmark: str) -> PublishedScore:
    """A published score by its name.

    Raises:
        InputError: there is none of this benchmark.
    """
    known = [row.name for row in ROWS.values() if row.benchmark == benchmark]
    if name not in known:
        choice = f"choose from {', '.join(known)}" if known else "leave --published_row out"
        raise InputError(f"no result {name!r} of {benchmark} is published: {choice}")
    return ROWS[name]
