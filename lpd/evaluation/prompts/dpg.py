"""What DPG-Bench's scorer writes (arXiv 2403.05135).

A line of text for each prompt: its picture's path, the score of each of its images and their mean,
with ", " between them. Then follows a summary, with the means of categories of questions and of all
prompts, in percent. What was asked and answered of each image goes to another file beside it. The
score is the mean over all prompts.

The scorer's means of categories are of the last image of each prompt alone, and it mixes them up
where it has run in several processes (issues 60 and 56 of its repository, TencentQQGYLab/ELLA). So
those of all images are computed here, from what was answered. Nothing here needs torch.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from lpd.errors import InputError
from lpd.evaluation.prompts.accuracy import Mean, mean_of_images
from lpd.evaluation.prompts.prompt_files import Line, lines_of, read_text, shortened
from lpd.evaluation.prompts.published import DPG_PROMPTS
from lpd.evaluation.prompts.reading import Scores, check_new
from lpd.files import printable

_SUMMARY = "Model: "
_LEVEL = " category scores:"
_PATHS = ("Image path: ", "Save results to: ")
_SCORE = "DPG-Bench score: "
# The scorer never asks the first question of its file, and fails at the prompt where others depend
# on it. Some have mended that.
_NEVER_SCORED = 1
_MOST_PICTURES = 4
# The scorer's sums and these may be in another order.
_ROUNDING = 1e-6
# A picture's path, the part of it that is the image, and the question with its answer.
_ANSWER = re.compile(r"(?P<path>.+), (?P<box>\(\d+, \d+, \d+, \d+\)), (?P<said>.+)")
_COLUMNS = ("item_id", "tuple", "question_natural_language")

Questions = Mapping[str, Mapping[str, list[str]]]
"""By prompt and question the category; several where a question is asked several times."""


def read_dpg(path: Path, questions: Path | None = None) -> Scores:
    """DPG-Bench's text file, and what was answered.

    Args:
        path: the file.
        questions: the benchmark's ``dpg_bench.csv``, for means of categories of all images.

    Raises:
        InputError: a line is none of its scorer's, a prompt is there twice, or a file has no end,
            or another one than its lines give.
    """
    lines = lines_of(path)
    means: dict[str, float] = {}
    counts: dict[str, int] = {}
    seen: dict[str, int] = {}
    for line in lines:
        if line.text.startswith(_SUMMARY):
            break
        name, scores = _dpg_prompt(line)
        check_new(seen, name, line)
        means[name] = 100 * math.fsum(scores) / len(scores)
        counts[name] = len(scores)
    told, total = _dpg_summary(lines, path)
    if not means or len(set(counts.values())) > 1:
        raise InputError(
            f"{printable(path)} must have a line for each prompt, of as many images each, got "
            f"{len(means)} lines of "
            f"{', '.join(map(str, sorted(set(counts.values())))) or 'no'} images"
        )
    overall = mean_of_images(list(means.values()), list(means))
    if not math.isclose(overall.value, total, rel_tol=0, abs_tol=100 * _ROUNDING):
        raise InputError(
            f"{printable(path)} says that the score is {total}, but its lines give "
            f"{overall.value}: some are missing, or of another run; score the images again"
        )
    warnings = []
    if len(means) < DPG_PROMPTS - _NEVER_SCORED:
        warnings.append(
            f"{len(means)} of DPG-Bench's {DPG_PROMPTS} prompts are scored, for the scorer passes "
            "over what it cannot read: the score compares with no published one"
        )
    categories: dict[str, Mean] = {}
    if questions is not None:
        answers = path.with_name(path.name.replace(".txt", "_detail.txt"))
        categories = _answered(answers, read_questions(questions), counts)
    elif told:
        warnings.append(
            "the scorer's categories are of the last image of each prompt, and mixed up if it ran "
            "in several processes: give --questions dpg_bench.csv for those of all images"
        )
    return Scores(
        overall=overall,
        images=sum(counts.values()),
        categories=categories,
        of="answers",
        told=told,
        warnings=tuple(warnings),
    )


def _dpg_prompt(line: Line) -> tuple[str, list[float]]:
    """A picture's path, and the scores of its images."""
    parts = line.text.split(", ")
    numbers: list[float] = []
    while len(parts) > 1 and len(numbers) <= _MOST_PICTURES:
        try:
            number = float(parts[-1])
        except ValueError:
            break
        numbers.insert(0, number)
        parts.pop()
    *scores, mean = numbers or [math.nan]
    is_whole = scores and all(0 <= score <= 1 for score in scores)
    if not is_whole or abs(math.fsum(scores) / len(scores) - mean) > _ROUNDING:
        raise InputError(
            f"{line.place} is no line of DPG-Bench's scorer, PATH, SCORE, ..., MEAN: got "
            f"{shortened(line.text)}"
        )
    return ", ".join(parts), scores


def _dpg_summary(lines: Iterator[Line], path: Path) -> tuple[dict[str, dict[str, float]], float]:
    """The categories' means in percent by level, and that of all prompts."""
    told: dict[str, dict[str, float]] = {}
    level: dict[str, float] | None = None
    for line in lines:
        name, _, value = line.text.rpartition(": ")
        if line.text.startswith(_SCORE):
            return told, _percent(value, line)
        if line.text.endswith(_LEVEL):
            level = told.setdefault(line.text.removesuffix(_LEVEL), {})
        elif line.text.startswith(_PATHS):
            level = None
        elif level is not None:
            level[name] = _percent(value, line)
    raise InputError(
        f'{printable(path)} has no line "{_SCORE.strip()}" at its end: the scorer has not come to '
        "its end, or this is another file"
    )


def _percent(text: str, line: Line) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100 + _ROUNDING:
        raise InputError(f"{line.place} must end in a percentage, got {shortened(line.text)}")
    return value


def read_questions(path: Path) -> Questions:
    """The benchmark's ``dpg_bench.csv``.

    Raises:
        InputError: it is another file.
    """
    found: dict[str, dict[str, list[str]]] = {}
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in rows:
            item, proposition, question = (row.get(name) for name in _COLUMNS)
            if not (item and proposition and question):
                raise InputError(
                    f"line {rows.line_num} of {printable(path)} must have {', '.join(_COLUMNS)}, "
                    "as DPG-Bench's dpg_bench.csv has"
                )
            category = proposition.partition("(")[0].strip()
            found.setdefault(item, {}).setdefault(question.strip(), []).append(category)
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {printable(path)}: {error}") from error
    return found


def _answer(said: str, question: str) -> str | None:
    """What was answered to a question; None where another one was asked. White space at a
    question's end, which the scorer keeps, is no part of it."""
    if not said.startswith(question):
        return None
    before, comma, answer = said[len(question) :].partition(",")
    return answer.strip() if comma and not before.strip() else None


def _answered(path: Path, questions: Questions, scored: Mapping[str, int]) -> dict[str, Mean]:
    """The share of questions that all images have right, in percent: of each category, and of each
    of its parts.

    Args:
        path: what was answered, a line for each question of each image.
        questions: what was asked.
        scored: the pictures' paths, with the number of images of each.

    Raises:
        InputError: a line is not so, or images that were scored are missing.
    """
    values: dict[str, list[float]] = {}
    prompts: dict[str, list[str]] = {}
    asked: Counter[tuple[str, str, str]] = Counter()
    images: dict[str, set[str]] = {}
    for line in lines_of(path):
        match = _ANSWER.fullmatch(line.text)
        if match is None:
            raise InputError(
                f"{line.place} is no line of DPG-Bench's scorer, PATH, BOX, QUESTION, ANSWER: got "
                f"{shortened(line.text)}"
            )
        picture, box, said = match["path"], match["box"], match["said"]
        if picture not in scored:  # the scorer has failed at it, and left it out
            continue
        own = questions.get(Path(picture).name.partition(".")[0], {})
        fitting = (each for each in own if _answer(said, each) is not None)
        question = max(fitting, key=len, default=None)
        number = asked[picture, box, question or ""]
        if question is None or number >= len(own[question]):
            raise InputError(f"{line.place} has a question that --questions does not: {said!r}")
        asked[picture, box, question] += 1
        images.setdefault(picture, set()).add(box)
        category = own[question][number]
        is_right = _answer(said, question) == "yes"
        for name in {category, category.partition("-")[0].strip()}:
            values.setdefault(name, []).append(100.0 * is_right)
            prompts.setdefault(name, []).append(picture)
    if {picture: len(boxes) for picture, boxes in images.items()} != scored:
        raise InputError(
            f"the images of {printable(path)} are not those that were scored: it is of another "
            "run; score the images again"
        )
    return {name: mean_of_images(values[name], prompts[name]) for name in sorted(values)}
