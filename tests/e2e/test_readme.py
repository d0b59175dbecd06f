"""Every block of README.md is run, in a copy of the repository, with what the quickstart leaves.

ENTRIES says how: as it is written, or with what is written otherwise here, or not at all and why. A
block without an entry fails, and so does an entry without a block. The models are random and tiny:
what is tested is that commands and lines work, not what they make.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.evaluation.features.extractors import Classifier, ClassifierConfig
from lpd.models.lpd import LPD
from lpd.models.presets import PRESETS
from lpd.orders.group_sizes import training_group_sizes
from lpd.pipeline import LPDPipeline
from lpd.pretrained import config_of_preset
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.training.memory import Workload, memory_of
from lpd.training.throughput import flops_per_image
from lpd.weights import save_pretrained
from scripts.quickstart.make_digits import enlarge
from scripts.quickstart_text.encoder import packaged_encoder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
WARM_PYTHON = Path(__file__).with_name("warm_python.py")
PROGRAMS = ("bash", "python")
NO_PROGRAMS = ("", "bibtex")
NOISE = 17  # grey levels of a scan


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of README.md."""

    language: str
    text: str
    line: int
    """Of its first line."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How the block that has some text is run."""

    shows: str
    """What only this block has."""
    changes: Mapping[str, str] | None = None
    """What is written otherwise here, by what is written there."""
    prints: str = ""
    """An expression that its output must match."""
    leaves: tuple[str, ...] = ()
    """Files that it must leave, relative to the repository."""
    not_here: str = ""
    """Why it is not run; what tests it instead."""

    def applied_to(self, block: Block) -> str:
        """What is run of a block."""
        text = block.text
        for old, new in (self.changes or {}).items():
            assert old in text, (
                f"README.md:{block.line} has no {old!r}, which {self.shows!r} changes"
            )
            text = text.replace(old, new)
        return text


QUICKSTART, TEXT_QUICKSTART = "outputs/quickstart", "outputs/quickstart_text"
TINY_EVALUATION = f"--feature_extractor {QUICKSTART}/classifier --num_workers 0"
DRY = "--dry_run"
ENTRIES = (
    # See it work.
    Entry(shows="git clone", not_here="sets up an environment: test_environment.py"),
    Entry(shows='from_pretrained("mit-han-lab/lpd_l_256")', leaves=("golden_retriever.png",)),
    Entry(
        shows="bash scripts/quickstart.sh",
        changes={"quickstart.sh": f"quickstart.sh {DRY}"},  # test_quickstart.py runs it
        prints='"output_dir": "outputs/quickstart"',
    ),
    Entry(shows='images[0].save("three.png")', leaves=("three.png",)),
    Entry(
        shows="pipe.save_pretrained(",
        prints=r"Match\(label=3, name='3'",
        leaves=(
            "outputs/eight.png",
            "outputs/digits/model.safetensors",
            "outputs/digits/tokenizer/model.safetensors",
        ),
    ),
    Entry(
        shows="python scripts/edit.py",
        leaves=tuple(
            f"outputs/{name}"
            for name in (
                "samples/samples.png",
                "samples/passes.png",
                "samples/decoding.gif",
                "edits/edits.png",
            )
        ),
    ),
    Entry(shows="pipe.inpaint(", leaves=("eight.png", "wide.png")),
    # Train on your own images.
    Entry(
        shows="RUN=runs/mine",
        changes={
            "--epochs 12": "--epochs 1",
            "--eval_freq 3": "--eval_freq 1",
            "--num_images 1000": "--num_images 20",
        },
        prints=r"lpd +16 +4 +20 ",
        leaves=(
            "runs/mine/reconstruction/results.json",
            "runs/mine/codes/meta.json",
            "runs/mine/codes_val/meta.json",
            "runs/mine/training/model/model.safetensors",
            "runs/mine/training/samples/step_00000001.png",
            "runs/mine/reference.npz",
            "runs/mine/evaluation/results.json",
            "runs/mine/samples/samples.png",
        ),
    ),
    Entry(
        shows="RUN=runs/flowers",
        changes={"main_train.py": f"main_train.py {DRY}"},
        prints=r'"global_batch_size": 256,\n(.*\n)*.*"total": 40.46',
    ),
    Entry(
        shows="NPROC_PER_NODE=1 bash scripts/train/lpd_l_256.sh",
        changes={"lpd_l_256.sh": f"lpd_l_256.sh {DRY}"},
        prints=r'"total": 40.46(.*\n)*.*"total": 9.89(.*\n)*.*"total": 6.35',
    ),
    # Text to image.
    Entry(
        shows="bash scripts/quickstart_text.sh",
        changes={"quickstart_text.sh": f"quickstart_text.sh {DRY}"},  # test_quickstart_text.py
        prints='"output_dir": "outputs/quickstart_text"',
    ),
    Entry(shows="LPDTextPipeline.from_pretrained(", leaves=("three_and_seven.png",)),
    Entry(
        shows="for SIZE in 256 512 1024",
        changes={
            "/data/": "data/",
            "main_cache.py": f"main_cache.py {DRY}",
            "main_train.py": f"main_train.py {DRY}",
        },
        prints=r'google/gemma-2-2b(.*\n)*.*"pretrained_ckpt": "runs/t2i_512/model"',
    ),
    Entry(
        shows="scripts/prompt_images.py",
        changes={
            "python scripts/prompt_images.py --pretrained_ckpt runs/t2i_1024/model": (
                'echo \'{"tag": "colors", "include": [], "prompt": "a red 3"}\' '
                "> evaluation_metadata.jsonl\n"
                'echo \'{"filename": "runs/geneval/images/00000/samples/0000.png", "tag": "colors",'
                ' "prompt": "a red 3", "correct": true, "reason": ""}\' > results.jsonl\n'
                f"python scripts/prompt_images.py --pretrained_ckpt {TEXT_QUICKSTART}/lpd/model"
            ),
            "--vqgan_path tokenizers/vq_ds16_t2i.pt": f"--vqgan_path {TEXT_QUICKSTART}/tokenizer",
            "--generation_steps 64": "--generation_steps 4",
            "--clip CLIP_FOLDER": f"--clip CLIP_FOLDER {DRY}",
            "main_eval.py --plan_loss": f"main_eval.py --plan_loss {DRY}",
        },
        leaves=(
            "runs/geneval/images/00000/samples/0003.png",
            "runs/geneval/images/00000/metadata.jsonl",
            "runs/geneval_scores/results.json",
        ),
    ),
    Entry(shows="ORDERS.append(", leaves=("from_the_middle.png",)),
    # The road to ImageNet.
    Entry(
        shows="scripts/slurm/submit.sh",
        changes={"scripts/train/lpd_l_256.sh": f"scripts/train/lpd_l_256.sh {DRY}"},
        prints=r'"published_row": "lpd_l_256_20"(.*\n)*.*"global_batch_size": 2048',
    ),
    Entry(shows="scripts/demo.py", not_here="serves until Ctrl-C: test_demo.py"),
    Entry(shows="download_weights.py", not_here="needs the hub: test_download_weights.py"),
    Entry(
        shows="main_cache.py \\\n    --img_size 256",
        changes={
            "--img_size 256 --vqgan_path tokenizers/vq_ds16_c2i.pt": (
                f"--img_size 32 --vqgan_path {QUICKSTART}/tokenizer --num_workers 0"
            )
        },
        leaves=("runs/imagenet_codes/codes_00000.npy",),
    ),
    Entry(
        shows="--nnodes=4",
        changes={"main_train.py": f"main_train.py {DRY}"},
        prints=r'"lr": 0.0008,(.*\n)*.*"global_batch_size": 2048',
    ),
    Entry(
        shows="bash orders/run_lpd_order.sh",
        changes={
            "bash orders/run_lpd_order.sh ": (
                "sed -i s/60000/3/ orders/run_lpd_order.sh; bash orders/run_lpd_order.sh "
            ),
            "--output_file": "--num_runs 3 --output_file",
        },
        leaves=("orders/lpd_orders_generated/res512_steps48_repulsion4.npz", "my_orders.npz"),
    ),
    Entry(
        shows="--lpd_order_file",
        changes={"main_eval.py": f"main_eval.py {DRY}"},
        prints=r'"model": "lpd_l"',
    ),
    Entry(
        shows="runs/plans_lpd_l_256",
        changes={
            "--model lpd_l --pretrained_ckpt weights/lpd_l_256.pth": (
                f"--pretrained_ckpt {QUICKSTART}/lpd/model"
            ),
            "cache/imagenet256_val": "runs/mine/codes_val",
        },
        leaves=("runs/plans_lpd_l_256/plan_losses.csv",),
    ),
    Entry(
        shows="--samples FOLDER_OR_NPZ",
        changes={
            "DATA reference.npz --img_size 256": (
                f"{QUICKSTART}/digits reference.npz --img_size 32 {TINY_EVALUATION}"
            ),
            "FOLDER_OR_NPZ --num_images 50000": f"{QUICKSTART}/digits/val --num_images 40",
            "--output_dir runs/eval_other_model": (
                f"--output_dir runs/eval_other_model {TINY_EVALUATION}"
            ),
            "tokenizers/vq_ds16_c2i.pt": f"{QUICKSTART}/tokenizer",
            "IMAGENET/val --img_size 256": f"{QUICKSTART}/digits/val --img_size 32",
            "--output_dir runs/reconstruction": (
                f"--output_dir runs/reconstruction {TINY_EVALUATION}"
            ),
        },
        leaves=(
            "reference.npz",
            "runs/eval_other_model/results.json",
            "runs/reconstruction/results.json",
        ),
    ),
    # Decoding orders.
    Entry(
        shows="--order lpd halton par_4x nar zipar_4",
        changes={" ...": f" {DRY} --pretrained_ckpt MODEL --vqgan_path TOKENIZER --output_dir OUT"},
        prints="zipar_4",
    ),
    Entry(
        shows="scripts/plot_orders.py",
        changes={"--img_size 256 --generation_steps 20": "--img_size 64 --generation_steps 4"},
        leaves=("orders.png", "orders.gif"),
    ),
    Entry(
        shows="scripts/order_search.py",
        changes={"--output_file": "--num_orders 2 --output_file"},
        leaves=("losses.csv", "losses.png", "search.csv"),
    ),
    # Results.
    Entry(
        shows="bash scripts/reproduce.sh",
        changes={  # test_reproduce.py and test_scripts.py run them
            "reproduce.sh": f"reproduce.sh {DRY}",
            "ablations.sh orders": f"ablations.sh orders {DRY}",
        },
        prints='"lpd_l_256_32"(.*\\n)*.*"order": \\[\\n *"raster"',
    ),
    Entry(shows="scripts/check_parity.py"),
    Entry(shows="bash scripts/test.sh", not_here="these are the tests"),
)


def blocks() -> list[Block]:
    """All blocks, in the order of README.md."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [
        Block(language=each[1], text=each[2], line=README.count("\n", 0, each.start(2)) + 1)
        for each in found
    ]


def block_of(entry: Entry) -> Block:
    """The block that an entry is about."""
    matching = [each for each in blocks() if each.language in PROGRAMS and entry.shows in each.text]
    assert len(matching) == 1, f"{len(matching)} blocks of README.md have {entry.shows!r}, not one"
    return matching[0]


def entries_in(language: str) -> list[Entry]:
    """Those that are run, in the order of README.md."""
    found = [(block_of(entry), entry) for entry in ENTRIES if not entry.not_here]
    found.sort(key=lambda each: each[0].line)
    return [entry for block, entry in found if block.language == language]


def test_every_block_has_an_entry_and_every_entry_a_block() -> None:
    told = {block_of(entry).line: entry.shows for entry in ENTRIES}
    assert len(told) == len(ENTRIES), "two entries are about one block"
    for block in blocks():
        assert block.language in PROGRAMS + NO_PROGRAMS, f"README.md:{block.line}"
        assert (block.line in told) == (block.language in PROGRAMS), (
            f"README.md:{block.line} begins a block that no entry of ENTRIES is about"
        )
    assert README.count("```") == 2 * len(blocks())


def without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def anchors_of(markdown: str) -> set[str]:
    """The anchors of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", without_code(markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(README))
    assert len(targets) > 30
    for target in targets:
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = ROOT / (name or "README.md")
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file.read_text()), target


def test_memory_and_hours_are_those_of_the_estimates() -> None:
    """Models of texts, where they are in a table, have the hours of a million images."""
    rows = re.findall(r"^\| `(lpd_\w+)` \| (\d+) \| (.*) \|$", README, re.MULTILINE)
    assert [row[:2] for row in rows if "t2i" not in row[0]] == [
        *(("lpd_l", "256"), ("lpd_xl", "256"), ("lpd_xxl", "256")),
        *(("lpd_l", "512"), ("lpd_xl", "512")),
    ]
    for preset, img_size, numbers in rows:
        batch, plain, saving, saving_of_8, work, *epochs, hours = map(float, numbers.split(" | "))
        config = config_of_preset(preset, img_size=int(img_size))
        has_texts = config.conditioning == "text"
        num_images = 1e6 if has_texts else epochs[0] * 1_281_167
        with torch.device("meta"):
            model = LPD(config)

        def gib(batch_size: float, *, saves: bool, config=config, has_texts=has_texts) -> float:
            workload = Workload(
                depth=config.depth,
                dim=config.dim,
                num_heads=config.num_heads,
                num_positions=config.num_positions,
                text_width=config.text_width if has_texts else 0,
                text_length=config.text_length if has_texts else 0,
                batch_size=int(batch_size),
                bf16=True,
                recompute_every=int(saves),
                chunked_loss=saves,
            )
            return memory_of(workload).total / 2**30

        assert plain == pytest.approx(gib(batch, saves=False), abs=0.06)
        assert saving == pytest.approx(gib(batch, saves=True), abs=0.06)
        assert saving_of_8 == pytest.approx(gib(8, saves=True), abs=0.06)
        flops = flops_per_image(model, training_group_sizes(config.num_positions))
        assert work == pytest.approx(flops / 1e12, abs=0.006)
        seconds = num_images * flops / (0.4 * 989e12)
        assert hours == pytest.approx(seconds / 3600, abs=0.6)


def write_digits(folder: Path) -> None:
    """Scans of nothing, by the names of real ones, and in train/ as many as a batch of 32 needs."""
    random = np.random.default_rng(0)
    for part, numbers in (("train", (1, 2, 3, 4)), ("val", (6, 12, 18, 24))):
        for digit in range(10):
            path = folder / part / str(digit)
            path.mkdir(parents=True)
            for number in numbers:
                scan = random.integers(NOISE, size=(8, 8)).astype(np.float64)
                enlarge(scan, 32).save(path / f"{number:03d}.png")


def write_quickstart(folder: Path) -> None:
    """What the quickstart leaves, but random and tiny."""
    write_digits(folder / "digits")
    network = VQGANConfig(
        ch=4,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        codebook_size=256,
        codebook_embed_dim=4,
        norm_groups=2,
    )
    torch.manual_seed(0)
    save_pretrained(folder / "tokenizer", VQGAN(network), network)
    tokenizer = VQTokenizer.from_pretrained(folder / "tokenizer", torch.device("cpu"))
    config = config_of_preset(
        "lpd_tiny",
        img_size=32,
        stride=tokenizer.stride,
        vocab_size=tokenizer.vocab_size,
        num_classes=10,
        tokenizer_sha256=tokenizer.sha256,
        class_names=tuple("0123456789"),
    )
    model = LPD(config)
    model.init_weights()
    save_pretrained(folder / "lpd" / "model", model, config)
    classifier = ClassifierConfig(
        architecture="resnet10t",
        num_classes=10,
        image_size=32,
        model_args={"channels": [4, 4, 8, 8], "stem_width": 4},
    )
    Classifier(classifier).eval().save(folder / "classifier")


def write_text_quickstart(folder: Path, tokenizer_folder: Path) -> None:
    """What the quickstart of texts leaves, likewise, with the encoder that it takes."""
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))
    config = config_of_preset(
        "lpd_t2i_tiny",
        img_size=32,
        stride=tokenizer.stride,
        vocab_size=tokenizer.vocab_size,
        text_width=384,
        text_length=16,
        text_encoder=str(packaged_encoder()),
    )
    model = LPD(config)
    model.init_weights()
    save_pretrained(folder / "lpd" / "model", model, config)


def write_program(path: Path, *command: object) -> None:
    """A program that starts another one with its own arguments."""
    words = " ".join(f"'{word}'" for word in command)
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, beside what the quickstart leaves, and an environment."""
    copy = tmp_path_factory.mktemp("readme") / "lpd"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/unit"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    write_quickstart(copy / QUICKSTART)
    write_text_quickstart(copy / TEXT_QUICKSTART, copy / QUICKSTART / "tokenizer")
    programs = copy.parent / "environment" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "torchrun"):
        write_program(programs / name, sys.executable, "-S", "-E", WARM_PYTHON, name)
    # As environment_setup.sh leaves it, which then has nothing to do.
    set_up_by = b"".join(
        (copy / name).read_bytes() for name in ("pyproject.toml", "environment_setup.sh")
    )
    stamp = f"{copy} {hashlib.sha256(set_up_by).hexdigest()}  -\n"
    (programs.parent / ".lpd-environment").write_text(stamp)
    return copy


@pytest.fixture(scope="module")
def environment(repository: Path) -> dict[str, str]:
    """The variables that README's commands find."""
    around = repository.parent
    return {
        "PATH": f"{around / 'environment' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(around),
        "VIRTUAL_ENV": str(around / "environment"),
        "PYTHONPATH": str(repository),  # another checkout may be the one that is installed
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(around / "matplotlib"),
        "WARM_PYTHON": str(around / "python.socket"),
        # What README's text says that they hold.
        "IMAGENET_PATH": str(repository / QUICKSTART / "digits"),
        "CACHED_PATH": "runs/imagenet_codes",
        "HEAD_NODE": "first-node",
    }


@pytest.fixture(scope="module")
def warm_python(repository: Path, environment: dict[str, str]) -> Iterator[None]:
    """Serves those who call python and torchrun."""
    modules = ("lpd.evaluation.generated.sweep", "lpd.training.trainer", "lpd.data.caching")
    with subprocess.Popen(
        [sys.executable, WARM_PYTHON, "serve", environment["WARM_PYTHON"], *modules],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
        server.terminate()


@pytest.fixture(scope="module")
def finished(
    repository: Path, environment: dict[str, str], warm_python: None
) -> dict[str, subprocess.CompletedProcess[str]]:
    """How all blocks of commands ended, by what they show; run one after the other, as one reads,
    for they need what earlier ones leave."""
    return {
        entry.shows: subprocess.run(
            ["bash", "-euo", "pipefail", "-c", entry.applied_to(block_of(entry))],
            cwd=repository,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for entry in entries_in("bash")
    }


def check_left(entry: Entry, repository: Path) -> None:
    for name in entry.leaves:
        assert (repository / name).stat().st_size > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("entry", entries_in("bash"), ids=lambda entry: entry.shows)
def test_commands(
    entry: Entry, finished: dict[str, subprocess.CompletedProcess[str]], repository: Path
) -> None:
    ended = finished[entry.shows]
    assert ended.returncode == 0, f"README.md:{block_of(entry).line}\n{ended.stdout}"
    assert "Traceback" not in ended.stdout
    assert re.search(entry.prints, ended.stdout), ended.stdout
    check_left(entry, repository)


# Runs the blocks as one program, whose lines are README.md's. The published models are scaled down
# to what is made in seconds, and so is the tokenizer, whose file does not tell its shape.
PYTHON_BLOCKS = """
import json, sys
import lpd.tokenizer.vq_tokenizer
from lpd.models.presets import PRESETS
from lpd.tokenizer.vqgan import VQGANConfig

class Small(VQGANConfig):
    def __init__(self, **values):
        super().__init__(**{**json.loads(sys.argv[1]), **values})

PRESETS.update((name, tuple(shape)) for name, shape in json.loads(sys.argv[2]).items())
lpd.tokenizer.vq_tokenizer.VQGANConfig = Small
names = {}
for line, text in json.load(sys.stdin):
    exec(compile("\\n" * (line - 1) + text, "README.md", "exec"), names)
"""
SMALL_NETWORK = {"ch": 32, "z_channels": 32}
SMALL_PRESETS = {"lpd_l": (1, 64, 2)}


@pytest.mark.slow
def test_python(
    repository: Path,
    environment: dict[str, str],
    tmp_path: Path,
    serve_hub: Callable[[Mapping[str, Path]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = {
        "mit-han-lab/lpd_l_256": tmp_path / "lpd_l_256",
        "FoundationVision/LlamaGen": tmp_path / "LlamaGen",
    }
    for folder in hub.values():
        folder.mkdir()
    monkeypatch.setitem(PRESETS, "lpd_l", SMALL_PRESETS["lpd_l"])
    model = LPD(config_of_preset("lpd_l", img_size=256))
    model.init_weights()
    torch.save({"model": model.state_dict()}, tmp_path / "lpd_l_256" / "lpd_l_256.pth")
    network = VQGAN(VQGANConfig(**SMALL_NETWORK))
    torch.save({"model": network.state_dict()}, tmp_path / "LlamaGen" / "vq_ds16_c2i.pt")

    entries = entries_in("python")
    shown = [(block_of(entry).line, entry.applied_to(block_of(entry))) for entry in entries]
    arguments = (json.dumps(SMALL_NETWORK), json.dumps(SMALL_PRESETS))
    ended = subprocess.run(
        [sys.executable, "-c", PYTHON_BLOCKS, *arguments],
        cwd=repository,
        env={**environment, "HF_ENDPOINT": serve_hub(hub), "HF_HOME": str(tmp_path / "hub home")},
        input=json.dumps(shown),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    for entry in entries:
        assert re.search(entry.prints, ended.stdout), entry.shows
        check_left(entry, repository)
    with Image.open(repository / "golden_retriever.png") as image:
        assert image.size == (256, 256)
        assert np.asarray(image).std() > 0
    with Image.open(repository / "wide.png") as image:
        assert image.size == (48, 32)
    # What was saved is the same pipeline.
    saved = LPDPipeline.from_pretrained(repository / "outputs" / "digits", device="cpu")
    options = {"generation_steps": 16, "repulsion_threshold": 1, "cfg": 3.0, "seed": 0}
    image = saved([3, 1, 4, 1, 5, 9], **options).images[0]
    with Image.open(repository / "three.png") as three:
        assert three.tobytes() == image.tobytes()
