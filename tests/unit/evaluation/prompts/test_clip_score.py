"""The CLIP score, against a plain call of transformers; and CLIPs that are none."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.images import parts
from lpd.evaluation.prompts.clip import Clip
from lpd.evaluation.prompts.clip_score import measure_clip_score
from lpd.evaluation.prompts.config import ClipScoreConfig
from tests.unit.evaluation.prompts.painting import Painter

transformers = pytest.importorskip("transformers")
pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers

pytestmark = pytest.mark.slow  # transformers takes seconds to import
CPU = torch.device("cpu")
PROMPTS = ["a red three", "eine grüne Sieben", "a red three", "six and " * 9]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP of 8 x 8 pixels and 16 tokens, a token per byte."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{each}</w>" for each in letters)]
    vocab = {word: row for row, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    special = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
    config = transformers.CLIPConfig(
        text_config={
            **small, **special, "vocab_size": len(vocab), "max_position_embeddings": 16,
            "pad_token_id": len(vocab) - 1,
        },
        vision_config={**small, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # so that images matter more to their vectors than what all share
            torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def images_folder(make, tmp_path):
    """Images of the prompts, two of each."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    return make(Painter(), prompts, output_dir=tmp_path / "made", num_images_per_prompt=2)


@pytest.fixture
def make_config(clip_folder, tmp_path):
    def make_config(images, **changes):
        values = {
            "clip": clip_folder, "images": images, "output_dir": tmp_path / "scores",
            "device": "cpu", "num_workers": 0,
        }  # fmt: skip
        return ClipScoreConfig(**{**values, **changes})

    return make_config


def plain_scores(folder, pictures, prompts):
    """100 max(cos, 0) of each image, by one plain call of the whole model for it alone."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    scores = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        inputs = processor(
            text=[prompt], images=[picture], return_tensors="pt", truncation=True, max_length=16
        )
        with torch.no_grad():
            outputs = model(**inputs)
        cosine = (outputs.logits_per_image / model.logit_scale.exp()).item()
        scores.append(100 * max(cosine, 0))
    return scores


def test_the_score_is_that_of_plain_transformers(clip_folder, make_config, images_folder, said):
    results = measure_clip_score(make_config(images_folder), World())
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    pictures = [Image.open(images_folder / "images" / f"{k:05d}.png") for k in range(8)]
    scores = plain_scores(clip_folder, pictures, prompts)
    assert 0 in scores  # a negative cosine is among them
    assert max(scores) > 1
    metrics = results["metrics"]
    assert metrics["clip_score"] == pytest.approx(np.mean(scores), rel=1e-4)
    by_prompt = {}
    for prompt, score in zip(prompts, scores, strict=True):
        by_prompt.setdefault(prompt, []).append(score)
    sums = [sum(each) - len(each) * np.mean(scores) for each in by_prompt.values()]
    error = np.sqrt(np.square(sums).sum() * 3 / 2) / 8  # of three different prompts
    assert metrics["clip_score_error"] == pytest.approx(error, rel=1e-4)
    assert (results["images"], results["prompts"], results["prompts_cut"]) == (8, 3, 2)
    assert "2 of 3 prompts have more than the CLIP's 16 tokens" in said()


@pytest.mark.slow
def test_processes_and_stops_change_no_bit(
    make_config, images_folder, in_threads, monkeypatch, tmp_path
):
    monkeypatch.setattr(parts, "BLOCK_IMAGES", 3)
    one = measure_clip_score(make_config(images_folder), World())
    config = make_config(images_folder, output_dir=tmp_path / "two")
    both = in_threads(lambda world: measure_clip_score(config, world), 2)
    assert both == [one, one]
    assert measure_clip_score(config, World()) == one  # which is read
    moved = next((images_folder / "images").iterdir())
    moved.write_bytes(moved.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"was made otherwise \(images was"):
        measure_clip_score(config, World())


def test_images_are_cut_out_of_their_picture(clip_folder, make_config, make, tmp_path):
    """Of the four in DPG-Bench's layout; one that is not in its picture is an error."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "key.txt").write_text("a red three")
    made = make(Painter(), folder, layout="dpg", output_dir=tmp_path / "made")
    results = measure_clip_score(make_config(made), World())
    with Image.open(made / "images" / "key.png") as whole:
        boxes = [(x, y, x + 4, y + 4) for y in (0, 4) for x in (0, 4)]
        pictures = [whole.crop(box) for box in boxes]
    scores = plain_scores(clip_folder, pictures, ["a red three"] * 4)
    assert results["metrics"]["clip_score"] == pytest.approx(np.mean(scores), rel=1e-4)
    assert results["metrics"]["clip_score_error"] is None  # one prompt tells no spread
    manifest = made / "prompts.jsonl"
    manifest.write_text(manifest.read_text().replace("[4, 4, 8, 8]", "[4, 4, 8, 9]"))
    with pytest.raises(InputError, match=r"key\.png has 8 x 8 pixels, and no part"):
        measure_clip_score(make_config(made, output_dir=tmp_path / "other"), World())


def test_a_text_is_the_same_beside_any_others(clip_folder):
    clip = Clip.from_folder(clip_folder, CPU)
    together = clip.embed_texts(PROMPTS)
    alone = np.concatenate([clip.embed_texts([prompt]) for prompt in PROMPTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def remove(name):
    return lambda folder: (folder / name).unlink()


def set_config(**values):
    def change(folder):
        file = folder / "config.json"
        config = json.loads(file.read_text())
        for name, value in values.items():
            part = config if name == "model_type" else config["text_config"]
            part[name] = value
        file.write_text(json.dumps(config))

    return change


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove("model.safetensors"), "it has no model.safetensors"),
        (remove("preprocessor_config.json"), "it has no preprocessor_config.json"),
        (remove("tokenizer.json"), "it has no tokenizer.json"),
        (set_config(model_type="siglip"), "is no CLIP, but of model_type 'siglip'"),
        (set_config(num_hidden_layers=3), "lack .*text_model.* and 15 more"),
        (set_config(vocab_size=9), "cannot load the CLIP|do not belong together"),
        (cut, "cannot load the CLIP in"),
    ],
)
def test_what_is_no_clip_is_told_in_a_line(clip_folder, tmp_path, change, told):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    change(folder)
    with pytest.raises(InputError, match=told) as error:
        Clip.from_folder(folder, CPU)
    assert "\n" not in str(error.value)


def test_images_that_are_not_all_there_are_refused(make_config, tmp_path):
    with pytest.raises(InputError, match=r"there is no .*prompts\.jsonl, which is written when"):
        measure_clip_score(make_config(tmp_path), World())
