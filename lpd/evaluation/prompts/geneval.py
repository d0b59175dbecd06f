"""What GenEval's scorer writes (arXiv 2310.11513).

A line of JSON for each image, with ``filename``, ``tag`` (the task), ``prompt``, ``correct`` and
more. The score is the mean over the tasks of the share of correct images. Nothing here needs torch.
"""

from collections.abc import Mapping
from pathlib import Path

from lpd.errors import InputError
from lpd.evaluation.prompts.accuracy import Mean, mean_of_images, mean_of_means
from lpd.evaluation.prompts.prompt_files import lines_of, shortened
from lpd.evaluation.prompts.published import GENEVAL_PROMPTS
from lpd.evaluation.prompts.reading import Scores, check_new


def read_geneval(path: Path) -> Scores:
    """GenEval's ``results.jsonl``.

    Raises:
        InputError: a line is none of its scorer's, or an image is there twice.
    """
    correct: dict[str, list[float]] = {}
    prompts: dict[str, list[str]] = {}
    seen: dict[str, int] = {}
    for line in lines_of(path):
        fields = line.fields()
        filename, tag, prompt = (line.text_of(fields, n) for n in ("filename", "tag", "prompt"))
        is_correct = fields.get("correct")
        if not isinstance(is_correct, bool):
            raise InputError(
                f'{line.place} must have "correct", true or false, got {shortened(is_correct)}'
            )
        check_new(seen, filename, line)
        # The scorer tells prompts apart by their whole metadata: the same words may be two tasks'.
        metadata = fields.get("metadata")
        correct.setdefault(tag, []).append(float(is_correct))
        prompts.setdefault(tag, []).append(metadata if isinstance(metadata, str) else prompt)
    order = [tag for tag in GENEVAL_PROMPTS if tag in correct]
    order += sorted(correct.keys() - GENEVAL_PROMPTS.keys())
    tasks = {tag: mean_of_images(correct[tag], prompts[tag]) for tag in order}
    overall = mean_of_means(tasks)
    solved = {
        (tag, prompt)
        for tag in order
        for value, prompt in zip(correct[tag], prompts[tag], strict=True)
        if value
    }
    return Scores(
        overall=overall,
        images=overall.count,
        categories=tasks,
        more={
            "correct_images": sum(map(sum, correct.values())) / overall.count,
            "correct_prompts": len(solved) / overall.prompts,
        },
        warnings=_geneval_warnings(tasks),
    )


def _geneval_warnings(tasks: Mapping[str, Mean]) -> tuple[str, ...]:
    found = {tag: mean.prompts for tag, mean in tasks.items()}
    warnings = []
    if found != GENEVAL_PROMPTS:
        differing = [
            f"{tag} {found.get(tag, 0)} of {GENEVAL_PROMPTS.get(tag, 0)}"
            for tag in {**GENEVAL_PROMPTS, **found}
            if found.get(tag, 0) != GENEVAL_PROMPTS.get(tag, 0)
        ]
        warnings.append(
            f"these are not GenEval's prompts ({', '.join(differing)}): the score compares with no "
            "published one"
        )
    counts = {mean.count / mean.prompts for mean in tasks.values()}
    if counts != {4.0}:
        warnings.append("GenEval has four images of each prompt, and these have others")
    return tuple(warnings)
