"""Scorers' files: what benchmarks make of them, and by which line a bad one is named."""

import csv
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpd.errors import InputError
from lpd.evaluation.prompts.accuracy import mean_of_images
from lpd.evaluation.prompts.config import PromptScoresConfig
from lpd.evaluation.prompts.dpg import read_dpg
from lpd.evaluation.prompts.geneval import read_geneval
from lpd.evaluation.prompts.published import GENEVAL_PROMPTS, ROWS
from lpd.evaluation.prompts.scores import run_scores

# Stable Diffusion 1.5 as it was measured by others (issue 24 of ELLA's repository), in percent.
MEASURED = {
    "single_object": 95.62,
    "two_object": 37.63,
    "counting": 37.81,
    "colors": 74.73,
    "position": 3.50,
    "color_attr": 4.75,
}
MEASURED_OVERALL = 42.34


def geneval_rows(num_correct, num_prompts=GENEVAL_PROMPTS, per_prompt=4):
    """The rows of a scorer's file, shuffled as folders are listed."""
    rows = []
    for tag, count in num_prompts.items():
        places = [(prompt, image) for prompt in range(count) for image in range(per_prompt)]
        random.Random(tag).shuffle(places)
        for number, (prompt, image) in enumerate(places):
            text = f"a photo of {tag} {prompt}"
            rows.append({
                "filename": f"images/{tag}{prompt:05d}/samples/{image:04d}.png",
                "tag": tag,
                "prompt": text,
                "correct": number < num_correct[tag],
                "reason": "" if number < num_correct[tag] else "expected x>=1, found 0",
                "metadata": json.dumps({"tag": tag, "prompt": text}),
                "details": "{}",
            })  # fmt: skip
    random.Random(0).shuffle(rows)
    return rows


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def dpg_text(scores, path="/data/out, 2/images"):
    """What compute_dpg_bench.py writes of prompts' scores."""
    means = []
    text = ""
    for key, each in scores.items():
        means.append(sum(each) / len(each))
        text += f"{path}/{key}.png, " + ", ".join(map(str, each)) + f", {means[-1]}\n"
    text += "Model: images\nL1 category scores:\n"
    text += "\tentity: 86.05101711333548\n\tglobal: 90.9\n"
    text += "L2 category scores:\n\tentity - part: 71.5\n\tglobal : 89.0\n"
    text += f"Image path: {path}\nSave results to: results, 1.txt\n"
    return text + f"DPG-Bench score: {np.mean(means) * 100}\n"


@pytest.fixture
def dpg_scores():
    generator = np.random.default_rng(0)
    return {f"key{k}": (generator.integers(0, 9, 4) / 8).tolist() for k in range(20)}


def test_geneval_is_the_mean_over_its_tasks(tmp_path):
    """The score that others were told of the same shares, and each task's share."""
    correct = {
        tag: round(share * 4 * GENEVAL_PROMPTS[tag] / 100) for tag, share in MEASURED.items()
    }
    rows = geneval_rows(correct)
    scores = read_geneval(write_lines(tmp_path / "results.jsonl", rows))
    assert list(scores.categories) == list(GENEVAL_PROMPTS)
    for tag, mean in scores.categories.items():
        assert round(100 * mean.value, 2) == pytest.approx(MEASURED[tag], abs=0.011)
        assert mean.count == 4 * GENEVAL_PROMPTS[tag]
    assert round(100 * scores.overall.value, 2) == MEASURED_OVERALL
    assert (scores.images, scores.overall.prompts) == (2212, 553)
    assert scores.warnings == ()
    assert scores.more["correct_images"] == sum(row["correct"] for row in rows) / 2212
    solved = {row["metadata"] for row in rows if row["correct"]}
    assert scores.more["correct_prompts"] == len(solved) / 553
    errors = [mean.error for mean in scores.categories.values()]
    assert scores.overall.error == pytest.approx(np.linalg.norm(errors) / 6)


def test_the_error_is_that_of_the_mean_over_prompts():
    """Four equal images of a prompt tell no more than one."""
    values = np.random.default_rng(1).random((30, 4))
    prompts = [f"p{row}" for row in range(30) for _ in range(4)]
    mean = mean_of_images(values.ravel().tolist(), prompts)
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(values.mean(1).std(ddof=1) / np.sqrt(30))
    equal = mean_of_images(np.repeat(values[:, :1], 4).tolist(), prompts)
    once = mean_of_images(values[:, 0].tolist(), range(30))
    assert equal.error == pytest.approx(once.error)
    assert once.error == pytest.approx(values[:, 0].std(ddof=1) / np.sqrt(30))


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=20),
    seed=st.integers(0, 5),
)
def test_a_mean_and_its_error_do_not_depend_on_the_order_of_images(values, seed):
    shuffled = random.Random(seed).sample(values, len(values))
    one, other = (mean_of_images(*zip(*each, strict=True)) for each in (values, shuffled))
    assert other.value == pytest.approx(one.value)
    assert (one.error is None) == (len({prompt for _, prompt in values}) == 1)
    assert other.error == (None if one.error is None else pytest.approx(one.error, abs=1e-12))


def test_other_prompts_than_genevals_are_told(tmp_path):
    rows = geneval_rows({"colors": 3, "scenes": 1}, {"colors": 2, "scenes": 1}, per_prompt=2)
    scores = read_geneval(write_lines(tmp_path / "results.jsonl", rows))
    assert {tag: mean.value for tag, mean in scores.categories.items()} == {
        "colors": 0.75,
        "scenes": 0.5,
    }
    assert scores.categories["scenes"].error is None
    assert (scores.overall.value, scores.overall.error) == (0.625, None)
    prompts, images = scores.warnings
    assert "single_object 0 of 80" in prompts
    assert "scenes 1 of 0" in prompts
    assert "four images" in images


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row | {"correct": 1}, 'line 2 of .* must have "correct", .* got 1'),
        (lambda row: row | {"correct": None}, 'line 2 of .* must have "correct", .* got None'),
        (lambda row: row | {"tag": ""}, 'line 2 of .* must have "tag"'),
        (lambda row: {"prompt": "x"}, 'line 2 of .* must have "filename"'),
        (lambda row: 7, "line 2 of .* is no JSON object, but 7"),
    ],
)
def test_a_bad_line_of_geneval_is_named(tmp_path, change, told):
    rows = geneval_rows({"colors": 1}, {"colors": 1})
    rows[1] = change(rows[1])
    with pytest.raises(InputError, match=told):
        read_geneval(write_lines(tmp_path / "results.jsonl", rows))


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    rows = geneval_rows({"colors": 1}, {"colors": 1})
    with pytest.raises(InputError, match=r"line 5 of .* as line 2 is: .* more than one run"):
        read_geneval(write_lines(tmp_path / "results.jsonl", [*rows, rows[1]]))


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_dpg_is_the_mean_over_its_prompts(tmp_path, dpg_scores, per_prompt):
    file = tmp_path / "results.txt"
    taken = {key: scores[:per_prompt] for key, scores in dpg_scores.items()}
    file.write_text(dpg_text(taken))
    scores = read_dpg(file)
    means = 100 * np.array(list(taken.values())).mean(1)
    assert scores.overall.value == pytest.approx(means.mean())
    assert scores.overall.error == pytest.approx(means.std(ddof=1) / np.sqrt(20))
    assert (scores.images, scores.overall.prompts) == (20 * per_prompt, 20)
    assert scores.told == {
        "L1": {"entity": 86.05101711333548, "global": 90.9},
        "L2": {"entity - part": 71.5, "global ": 89.0},
    }
    prompts, categories = scores.warnings
    assert "20 of DPG-Bench's 1065 prompts" in prompts
    assert "give --questions dpg_bench.csv" in categories


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.partition("DPG-Bench score")[0], "the scorer has not come to its end"),
        (lambda text: text.partition("\n")[2], "some are missing, or of another run"),
        (lambda text: text.partition("\n")[0] + "\n" + text, "line 2 of .* more than one run"),
        (
            lambda text: text.replace("key3.png, 0.5,", "key3.png, 0.6,"),
            "line 4 of .* is no line of",
        ),
        (lambda text: "nothing\n" + text, "line 1 of .* is no line of DPG-Bench's scorer"),
        (lambda text: "a.png, nan, nan\n" + text, "line 1 of .* is no line of DPG-Bench's scorer"),
        (lambda text: text.replace("90.9", "nan"), "line .* must end in a percentage"),
        (lambda text: text.replace("90.9", "1e400"), "line .* must end in a percentage"),
        (lambda text: text[text.index("Model") :], "got 0 lines of no images"),
        (lambda text: "a.png, 1.0, 1.0\n" + text, "got 21 lines of 1, 4 images"),
    ],
)
def test_a_bad_file_of_dpg_is_named(tmp_path, dpg_scores, change, told):
    file = tmp_path / "results.txt"
    file.write_text(change(dpg_text(dpg_scores)))
    with pytest.raises(InputError, match=told):
        read_dpg(file)


@pytest.fixture
def answered(tmp_path):
    """What is asked of three prompts of four images each, and answered; by category the answers of
    each prompt. Gives the scorer's file, the questions and the answers by category and prompt."""
    asked = [  # the scorer passes over the first question of all
        ("k0", "entity - whole (dog)", "Is there a dog?"),
        ("k0", "entity - whole (a, cat)", "Is there a cat, or not?"),
        ("k0", "attribute - color (cat, red)", "Is the cat red? "),
        ("k1", "global - ", "Is this a photo?"),
        ("k1", "entity - part (leg)", "Is there a leg?"),
        ("k2", "entity - whole (leg)", "Is there a leg?"),
        ("k2", "entity - part (leg, left)", "Is there a leg?"),
    ]
    generator = random.Random(0)
    answers, scores, lines = {}, {}, []
    for key in ("k0", "k1", "k2"):
        for number in range(4):
            box = (4 * (number % 2), 4 * (number // 2), 4 * (number % 2) + 4, 4 * (number // 2) + 4)
            right = []
            for item, proposition, question in asked[1:]:
                if item == key:
                    answer = generator.choice(["yes", "no", "yes, it is", ""])
                    right.append(float(answer == "yes"))
                    lines.append(f"/out, 1/{key}.png, {box}, {question}, {answer}")
                    answers.setdefault(proposition.split("(")[0].strip(), []).append(
                        (key, right[-1])
                    )
            scores.setdefault(key, []).append(sum(right) / len(right))
    file, questions = tmp_path / "scored.txt", tmp_path / "dpg_bench.csv"
    file.write_text(dpg_text(scores, "/out, 1"))
    # Several processes write in turns.
    blocks = ["\n".join(lines[k : k + 2]) for k in range(0, len(lines), 2)]
    generator.shuffle(blocks)
    blocks.append("/out, 1/failed.png, (0, 0, 4, 4), Is there a dog?, yes")  # and is not scored
    (tmp_path / "scored_detail.txt").write_text("\n".join(blocks) + "\n")
    with questions.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["item_id", "text", "proposition_id", "tuple", "question_natural_language"])
        writer.writerows([item, "a, text", 1, what, question] for item, what, question in asked)
    return file, questions, answers


def test_dpgs_categories_are_of_all_images(answered):
    file, questions, answers = answered
    scores = read_dpg(file, questions)
    expected = dict(answers)
    expected["entity"] = answers["entity - whole"] + answers["entity - part"]
    expected["attribute"] = answers["attribute - color"]
    expected["global"] = answers["global -"]
    assert list(scores.categories) == sorted(expected)
    for name, each in expected.items():
        mean = scores.categories[name]
        assert mean.value == pytest.approx(100 * np.mean([right for _, right in each]))
        assert (mean.count, mean.prompts) == (len(each), len({key for key, _ in each}))
        assert (mean.error is None) == (mean.prompts == 1)
    assert len(scores.warnings) == 1  # of the number of prompts


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "x\n" + text, "line 1 of .*_detail.txt is no line of DPG-Bench's scorer"),
        (lambda text: text.replace("a photo?", "a scan?"), "line .* has a question that --quest"),
        (lambda text: text + text.split("\n")[0], "line .* has a question that --questions does"),
        (
            lambda text: text.replace("(4, 4, 8, 8)", "(0, 0, 4, 4)", 1),
            "line .* has a question|not",
        ),
        (lambda text: text.replace("k1.png", "k0.png"), "line .* has a question that --questions"),
        (
            lambda text: "\n".join(line for line in text.split("\n") if "k1" not in line),
            "are not those that were scored",
        ),
    ],
)
def test_bad_answers_are_named(answered, change, told):
    file, questions, _ = answered
    answers = file.with_name("scored_detail.txt")
    answers.write_text(change(answers.read_text()))
    with pytest.raises(InputError, match=told):
        read_dpg(file, questions)


def test_other_questions_are_refused(answered):
    file, questions, _ = answered
    questions.write_text("item_id,text\nk0,a")
    with pytest.raises(InputError, match=r"line 2 of .*csv must have item_id, tuple, question"):
        read_dpg(file, questions)
    questions.write_bytes(b"item_id,tuple,question_natural_language\n" + b"x" * 200_000)
    with pytest.raises(InputError, match=r"line 1 of .*csv: field larger than field limit"):
        read_dpg(file, questions)
    with pytest.raises(InputError, match=r"cannot read .*none"):
        read_dpg(file, questions.with_name("none"))


def test_results_are_written_and_shown(tmp_path, capsys):
    rows = geneval_rows({tag: 2 * count for tag, count in GENEVAL_PROMPTS.items()})
    file = write_lines(tmp_path / "scored.jsonl", rows)
    config = PromptScoresConfig(
        benchmark="geneval",
        results=file,
        output_dir=tmp_path / "out",
        published_row="lpd_t2i_xl_1024_64",
    )
    results = run_scores(config)
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"]["overall"] == 0.5
    assert results["categories"]["counting"]["accuracy"] == 0.5
    assert (results["published"]["score"], results["warnings"]) == (0.62, [])
    shown = capsys.readouterr().out
    assert "published: lpd_t2i_xl_1024_64 0.6200" in " ".join(shown.split())
    assert run_scores(config) == results  # the same again
    write_lines(file, rows[1:])
    with pytest.raises(InputError, match="was made otherwise"):
        run_scores(config)


@pytest.mark.parametrize(
    ("benchmark", "row", "told"),
    [
        ("coco", None, "unknown benchmark 'coco': choose from geneval, dpg"),
        ("geneval", "lpd_l_256_20", f"choose from {', '.join(ROWS)}"),
        ("dpg", "lpd_t2i_l_1024_64", "leave --published_row out"),
    ],
)
def test_wrong_options_are_refused(tmp_path, benchmark, row, told):
    with pytest.raises(InputError, match=told):
        PromptScoresConfig(
            benchmark=benchmark, results=tmp_path, output_dir=tmp_path, published_row=row
        )


def test_questions_are_for_dpg_alone(tmp_path):
    with pytest.raises(InputError, match="are not for geneval"):
        PromptScoresConfig(
            benchmark="geneval", results=tmp_path, output_dir=tmp_path, questions=tmp_path
        )
