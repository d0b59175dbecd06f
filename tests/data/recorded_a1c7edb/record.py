"""Record what the programs of commit a1c7edb leave behind, some of them in the middle.

This runs with that commit's code, and writes into the folder it stands in:

    git worktree add /tmp/a1c7edb a1c7edb && cd /tmp/a1c7edb && bash environment_setup.sh
    PYTHONPATH=$PWD .venv/bin/python REPOSITORY/tests/data/recorded_a1c7edb/record.py

Everything is as small as can be: 20 images of 8 pixels, 16 codes each, shards of 8 images, and
``lpd_tiny`` shrunk to one block of width 8. ``commands.json`` holds the commands with their flags,
paths relative to this folder, and the two numbers that are patched; tests/e2e/test_recorded_runs.py
gives today's programs the same.

What is there afterwards:

- ``images``, ``reference.npz`` (ADM's mu, sigma and arr_0): made here.
- ``tokenizer``, ``classifier``: trained by the quickstart's programs, complete;
  ``tokenizer_part``: interrupted in step 8 of 12, with the checkpoint of step 5.
- ``cache``: complete; ``cache_part``: interrupted in the second of three shards.
- ``training``: interrupted in step 8 of 10, with the checkpoint of step 5, the end of an epoch, and
  log lines of 7 steps; ``training_done``: the model that the same training ends in.
- ``orders.npz``: 24 locality-aware orders.
- ``evaluation``: two settings asked for; lpd_4 is complete, raster_4 has one chunk of three.

Left out are TensorBoard's files, which name the machine, and the checkpoints of ``training_done``.
"""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from PIL import Image

import lpd
from lpd.data import code_cache
from lpd.evaluation.features import load_feature_extractor
from lpd.evaluation.generate import Chunk
from lpd.evaluation.metrics import gaussian_statistics
from lpd.models.lpd import PRESETS
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.training.trainer import Trainer

FOLDER = Path(__file__).parent
CHECKOUT = Path(lpd.__file__).parents[1]
SHARD_IMAGES = 8
LPD_TINY = (1, 8, 1)

TOKENIZER = [
    *("--data_path", "images", "--img_size", "8", "--num_steps", "12", "--batch_size", "4"),
    *("--restart_every", "3", "--checkpoint_every", "5"),
    *("--network.ch", "2", "--network.ch_mult", "1", "2", "--network.num_res_blocks", "1"),
    *("--network.z_channels", "2", "--network.codebook_size", "24"),
    *("--network.codebook_embed_dim", "4", "--network.norm_groups", "2"),
]
CLASSIFIER = [
    *("--data_path", "images", "--output_dir", "classifier", "--img_size", "8"),
    *("--epochs", "1", "--batch_size", "10", "--device", "cpu"),
]
CACHE = [
    *("--data_path", "images", "--vqgan_path", "tokenizer", "--img_size", "8"),
    *("--batch_size", "4", "--num_workers", "0", "--device", "cpu"),
]
TRAINING = [
    *("--cached_path", "cache", "--vqgan_path", "tokenizer", "--model", "lpd_tiny"),
    *("--img_size", "8", "--epochs", "2", "--batch_size", "4", "--lr", "0.01"),
    *("--lr_schedule", "cosine", "--warmup_epochs", "0.4", "--seed", "3", "--device", "cpu"),
    *("--log_freq", "1", "--save_last_freq", "1", "--save_intermediate_freq", "1"),
]
ORDERS = [
    *("--img_size", "8", "--stride", "2", "--generation_steps", "4", "--num_runs", "24"),
    *("--repulsion_threshold", "1", "--seed", "3", "--output_file", "orders.npz"),
]
EVALUATION = [
    *("--pretrained_ckpt", "training_done/model", "--vqgan_path", "tokenizer"),
    *("--feature_extractor", "classifier", "--reference", "reference.npz"),
    *("--output_dir", "evaluation", "--img_size", "8", "--num_images", "24"),
    *("--chunk_size", "8", "--eval_bsz", "5", "--order", "lpd", "raster"),
    *("--generation_steps", "4", "--lpd_order_file", "orders.npz", "--repulsion_threshold", "1"),
    *("--cfg", "1.5", "--top_k", "20", "--seed", "3", "--num_workers", "0", "--device", "cpu"),
]
COMMANDS = {
    "tokenizer": ["scripts/quickstart/train_tokenizer.py", *TOKENIZER, "--output_dir", "tokenizer"],
    "tokenizer_part": [
        *("scripts/quickstart/train_tokenizer.py", *TOKENIZER, "--output_dir", "tokenizer_part")
    ],
    "classifier": ["scripts/quickstart/train_classifier.py", *CLASSIFIER],
    "cache": ["main_cache.py", *CACHE, "--cached_path", "cache"],
    "cache_part": ["main_cache.py", *CACHE, "--cached_path", "cache_part"],
    "training": ["main_train.py", *TRAINING, "--output_dir", "training"],
    "training_done": ["main_train.py", *TRAINING, "--output_dir", "training_done"],
    "orders": ["orders/run_lpd_order.py", *ORDERS],
    "evaluation": ["main_eval.py", *EVALUATION],
}


def make_images() -> None:
    """Images of coloured noise; those of a class have one tint."""
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 3)):
        for row in range(count):
            label = row % 3
            pixels = random.integers(0, 128, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, label] += 100
            file = FOLDER / "images" / part / "abc"[label] / f"{row:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


def make_reference() -> None:
    """Statistics of the classifier's features of images, with the images."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    extractor = load_feature_extractor("classifier", torch.device("cpu"))
    features = extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2)).features.numpy()
    statistics = gaussian_statistics(features)
    np.savez(
        "reference.npz",
        mu=statistics.mean,
        sigma=statistics.covariance,
        arr_0=pixels,
    )


def load_program(name: str) -> ModuleType:
    """A program as a module, to change something in it."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, CHECKOUT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where tyro looks for the source
    spec.loader.exec_module(module)
    return module


def run(command: Sequence[str], program: Callable[[], object] | None = None) -> object:
    """Run a command, as it is or as ``program``; returns the exit code."""
    with mock.patch.object(sys, "argv", list(command)):
        try:
            if program is None:
                runpy.run_path(str(CHECKOUT / command[0]), run_name="__main__")
            else:
                program()
        except SystemExit as exit_:
            return exit_.code
    return 0


def at_call(function: Callable[..., object], number: int) -> Callable[..., object]:
    """The function, until Ctrl-C is pressed in its ``number``-th call."""
    calls = iter(range(1, number))

    def interrupted(*args: object, **kwargs: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return interrupted


def record() -> None:
    """Make everything, in the order in which one thing is made of another."""
    make_images()
    tokenizer = load_program("scripts/quickstart/train_tokenizer.py")
    assert run(COMMANDS["tokenizer"], tokenizer.main) == 0
    step = at_call(tokenizer.Trainer.train_step, 8)
    with mock.patch.object(tokenizer.Trainer, "train_step", step):
        assert run(COMMANDS["tokenizer_part"], tokenizer.main) == 130

    classifier = load_program("scripts/quickstart/train_classifier.py")
    classifier._MODEL_ARGS = {"channels": [2, 2, 4, 4], "stem_width": 4}
    with mock.patch.object(sys, "argv", COMMANDS["classifier"]):
        classifier.run(classifier.cli.parse(classifier.TrainClassifierConfig, ""))
    make_reference()

    assert run(COMMANDS["cache"]) == 0
    # Two calls for each batch of four images, plain and flipped.
    with mock.patch.object(VQTokenizer, "encode", at_call(VQTokenizer.encode, 6)):
        assert run(COMMANDS["cache_part"]) == 130

    with mock.patch.object(Trainer, "train_step", at_call(Trainer.train_step, 8)):
        assert run(COMMANDS["training"]) == 130
    assert run(COMMANDS["training_done"]) == 0
    shutil.rmtree("training/tensorboard")
    shutil.rmtree("training_done/tensorboard")
    shutil.rmtree("training_done/checkpoints")

    assert run(COMMANDS["orders"]) == 0
    both = COMMANDS["evaluation"]
    assert run([word for word in both if word != "raster"]) == 0
    with mock.patch.object(Chunk, "save", at_call(Chunk.save, 2)):
        assert run(both) == 130
    content = {"shard_images": SHARD_IMAGES, "lpd_tiny": LPD_TINY, "commands": COMMANDS}
    Path("commands.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, text=True)
    assert commit.startswith("a1c7edb"), f"{CHECKOUT} is at {commit}; set PYTHONPATH to a1c7edb"
    for old in FOLDER.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != Path(__file__).name:
            old.unlink()
    os.chdir(FOLDER)  # so that all paths are relative
    torch.set_num_threads(1)
    with (
        mock.patch.object(code_cache, "SHARD_IMAGES", SHARD_IMAGES),
        mock.patch.dict(PRESETS, {"lpd_tiny": LPD_TINY}),
    ):
        record()
