"""main_eval.py as users start it: alone, in two processes, with wrong flags."""

import dataclasses
import inspect
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_eval
from lpd.distributed import World
from lpd.errors import InputError
from lpd.evaluation.generated.chunks import Chunk
from lpd.evaluation.images import parts, samples

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def flags(run_folder):
    flags = [
        "--pretrained_ckpt", run_folder / "model",
        "--vqgan_path", run_folder / "tokenizer",
        "--feature_extractor", run_folder / "classifier",
        "--reference", run_folder / "data",
        "--img_size", 16, "--num_images", 24, "--chunk_size", 7, "--eval_bsz", 4,
        "--order", "raster", "lpd", "--generation_steps", 16, 4,
        "--cfg", 1.5, "--device", "cpu", "--evaluate",
    ]  # fmt: skip
    return [str(flag) for flag in flags]


@pytest.fixture
def run_main(monkeypatch):
    """Runs the program in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["main_eval.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "main_eval.py"), run_name="__main__")

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(flags, run_main, in_two_processes, tmp_path):
    run_main(*flags, "--output_dir", tmp_path / "one")
    codes, outputs = in_two_processes(run_main, *flags, "--output_dir", tmp_path / "two")
    assert codes == [0, 0], outputs
    assert [output.count("recall") for output in outputs] == [1, 0]  # rank 0 alone reports
    one, both = (
        json.loads((tmp_path / name / "results.json").read_text())["results"]
        for name in ("one", "two")
    )
    assert [(each["order"], each["generation_steps"]) for each in one] == [
        ("lpd", 16), ("lpd", 4), ("raster", 16), ("raster", 4),
    ]  # fmt: skip
    for a, b in zip(one, both, strict=True):
        for name in ("codes_sha256", "pixels_sha256", "duplicates", "images_per_class"):
            assert a[name] == b[name]
        for name in ("fid", "inception_score", "class_accuracy", "precision", "recall"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), (a["order"], name)


@pytest.mark.slow
def test_two_processes_measure_images_as_one(
    run_folder, run_main, in_two_processes, tmp_path, monkeypatch
):
    """References, samples and reconstructions: the same bits, by every mode's own flags."""
    monkeypatch.setattr(parts, "BLOCK_IMAGES", 5)  # so that both have some of the 24 images
    common = ["--feature_extractor", run_folder / "classifier", "--num_workers", 0]
    common += ["--device", "cpu"]
    data = run_folder / "data" / "train"
    small = tmp_path / "small"
    small.mkdir()
    for path in data.glob("*/*.png"):
        with Image.open(path) as image:
            image.crop((0, 2, 16, 18)).save(small / f"{path.parent.name}_{path.name}")

    def commands(name):
        folder = tmp_path / name
        yield ["--make_reference", data, folder / "reference.npz", "--img_size", 16]
        yield [
            *("--samples", small, "--reference", folder / "reference.npz"),
            *("--output_dir", folder / "samples"),
        ]
        yield [
            *("--reconstruct", "--vqgan_path", run_folder / "tokenizer", "--data_path", data),
            *("--img_size", 16, "--output_dir", folder / "reconstructions"),
        ]

    for command in commands("one"):
        run_main(*command, *common)
    for command in commands("two"):
        codes, outputs = in_two_processes(run_main, *command, *common)
        assert codes == [0, 0], outputs
        assert outputs[0].strip()
        assert "numbers" not in outputs[1]  # rank 0 alone reports
    for name in ("samples", "reconstructions"):
        one, two = (
            json.loads((tmp_path / each / name / "results.json").read_text())
            for each in ("one", "two")
        )
        one["settings"].pop("reference", None)  # the hash of a file, which has a date in it
        two["settings"].pop("reference", None)
        assert one == two
    with (
        np.load(tmp_path / "one" / "reference.npz") as first,
        np.load(tmp_path / "two" / "reference.npz") as second,
    ):
        for array in ("mu", "sigma", "features"):
            np.testing.assert_array_equal(first[array], second[array])


def test_a_mistake_of_two_processes_ends_both(flags, run_main, in_two_processes, tmp_path):
    mistaken = [*flags, "--reference", tmp_path / "absent.npz"]
    codes, outputs = in_two_processes(run_main, *mistaken, "--output_dir", tmp_path / "out")
    assert codes == [2, 2]
    assert all("no reference at" in output for output in outputs)


def damage(path):
    """Change a byte of the first array in an archive, which its directory says nothing of."""
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
class TestMistakesThatOneOfTwoProcessesMeets:
    """Both end, with the message, and neither waits for the other until it is called lost."""

    def refuse(self, in_two_processes, run_main, message, *arguments):
        codes, outputs = in_two_processes(run_main, *arguments)
        assert codes == [2, 2], outputs
        assert all(message in " ".join(output.split()) for output in outputs)

    def test_in_the_numbers_of_a_setting(self, flags, run_main, in_two_processes, tmp_path):
        out = tmp_path / "out"
        run_main(*flags, "--output_dir", out, "--keep_features")
        # The second of two settings, which rank 1 computes.
        for name in ("raster_16", "raster_4"):
            (out / name / "metrics.json").unlink()
        damage(next((out / "raster_4" / "chunks").iterdir()))
        self.refuse(in_two_processes, run_main, "is damaged", *flags, "--output_dir", out)

    def test_while_images_are_made(self, flags, run_main, in_two_processes, tmp_path, monkeypatch):
        save = Chunk.save

        def refused(self, path):
            if os.environ.get("RANK") == "1":
                raise InputError("there is no room")
            save(self, path)

        monkeypatch.setattr(Chunk, "save", refused)
        self.refuse(
            in_two_processes, run_main, "there is no room", *flags, "--output_dir", tmp_path / "out"
        )

    @pytest.mark.parametrize("name", ["raster_4/metrics.json", "reference.npz", "settings.json"])
    def test_in_what_rank_0_alone_reads(self, flags, run_main, in_two_processes, tmp_path, name):
        out = tmp_path / "out"
        run_main(*flags, "--output_dir", out)
        (out / "raster_16" / "metrics.json").unlink()  # so that the reference is needed
        (out / name).write_text("nothing")
        self.refuse(in_two_processes, run_main, name, *flags, "--output_dir", out)

    def test_in_images_that_are_there(
        self, run_folder, run_main, in_two_processes, tmp_path, monkeypatch
    ):
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(24):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
        command = ["--samples", folder, "--output_dir", tmp_path / "out", "--device", "cpu"]
        command += ["--feature_extractor", run_folder / "classifier", "--num_workers", 0]
        make = samples.make_parts

        def make_and_write(*arguments, **options):
            make(*arguments, **options)
            if os.environ.get("RANK") == "0":
                Image.new("RGB", (16, 16)).save(folder / "30.png")

        with monkeypatch.context() as patch:
            patch.setattr(samples, "make_parts", make_and_write)
            self.refuse(in_two_processes, run_main, "changed while it was measured", *command)
        (folder / "30.png").unlink()
        codes, outputs = in_two_processes(run_main, *command)
        assert codes == [0, 0], outputs
        (tmp_path / "out" / "results.json").write_text("nothing")
        self.refuse(in_two_processes, run_main, "results.json is not valid JSON", *command)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--order", "spiral"], "spiral"),
        (["--no_such_flag", 1], "no_such_flag"),
        (["--group_sizes", "4x4", "--order", "nar"], "for orders without passes of their own"),
        (["--top_p", 0], "top_p must be above 0"),
        (["--throughput_bsz", 0], "throughput_bsz must be at least 1"),
        (["--published_row", "lpd_m"], "no row 'lpd_m': choose from lpd_l_256_20"),
    ],
)
def test_wrong_flags_are_told_and_exit_with_2(flags, run_main, tmp_path, change, message, said):
    with pytest.raises(SystemExit) as exit_:
        run_main(*flags, "--output_dir", tmp_path / "out", *change)
    assert exit_.value.code == 2
    assert message in said()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--group_sizes", "1,2"], "sum to 3, but the grid has 16 positions"),
        (["--output_dir", "in_the_way/out"], "in_the_way"),
        (["--lpd_order_file", "absent.npz"], "no order file at"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    flags, run_main, tmp_path, change, message, capsys, monkeypatch
):
    monkeypatch.delenv("LPD_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("in_the_way").write_text("a file, where a folder should be")
    with pytest.raises(SystemExit) as exit_:
        run_main(*flags, "--output_dir", "out", *change)
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main_eval")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("out").exists()


def test_every_mode_is_there_and_takes_its_configuration():
    assert len({mode.flag for mode in main_eval.MODES}) == len(main_eval.MODES)
    for mode in main_eval.MODES:
        config, world = inspect.signature(pkgutil.resolve_name(mode.run)).parameters.values()
        assert config.annotation is mode.config
        assert world.annotation is World
        assert "device" in {field.name for field in dataclasses.fields(mode.config)}


def test_flags_are_those_of_published_command_lines_and_need_no_torch():
    """One process asks for the resolved flags and for every mode's help, and then says what it
    imported."""
    program = """
import contextlib, io, json, runpy, sys
outputs = []
others = {modes}
for arguments in ([*{flags}, "--dry_run"], ["--help"], *([each, "--help"] for each in others)):
    sys.argv = ["main_eval.py", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        runpy.run_path("main_eval.py", run_name="__main__")
    outputs.append(output.getvalue())
heavy = sorted({{"torch", "torchvision", "timm", "scipy", "torch_fidelity"}} & sys.modules.keys())
print(json.dumps([json.loads(outputs[0]), outputs[1], outputs[2:], heavy]))
"""
    flags = [
        *("--pretrained_ckpt", "m", "--vqgan_path", "t", "--output_dir", "o", "--evaluate"),
        *("--order", "raster", "zipar_4", "lpd", "--generation-steps", "32", "20", "--cfg", "4.8"),
        *("--group_sizes", "1x4 2x6", "--lpd_order_file", "f.npz", "--repulsion_threshold", "3"),
        *("--no-bf16", "--proximity-threshold", "0.5", "--top_k", "5", "--save_npz"),
    ]
    modes = [f"--{mode.flag}" for mode in main_eval.MODES if mode.flag]
    result = subprocess.run(
        [sys.executable, "-c", program.format(flags=flags, modes=modes)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    options, help_text, other_texts, heavy = json.loads(result.stdout)
    assert heavy == []
    given = {
        "pretrained_ckpt": "m", "vqgan_path": "t", "output_dir": "o", "evaluate": True,
        "order": ["raster", "zipar_4", "lpd"], "generation_steps": [32, 20], "cfg": [4.8],
        "group_sizes": "1x4 2x6", "lpd_order_file": "f.npz", "repulsion_threshold": [3.0],
        "bf16": False, "proximity_threshold": [0.5], "top_k": [5], "save_npz": True,
    }  # fmt: skip
    others = {
        "model": None, "img_size": 256, "num_images": 50000, "eval_bsz": 64,
        "group_size_schedule": ["cosine"], "cfg_schedule": ["linear"], "temperature": [1.0],
        "top_p": [1.0], "seed": [0], "device": None, "feature_extractor": "inception",
        "inception_path": None, "reference": None, "num_workers": 4, "measure_speed": False,
        "classifier": None,
        "backend": "auto", "cuda_graphs": True,
        "save_images": False, "chunk_size": 1000, "keep_features": False,
        "pixel_rounding": "float32", "throughput_bsz": None, "published_row": None,
        "cfg_power": [3.0], "cfg_start": [0.0], "cfg_end": [1.0],
        "temperature_schedule": ["constant"], "temperature_end": [1.2], "entropy_theta": [1.0],
        "refine": [0.0], "refine_steps": [0],
    }  # fmt: skip
    assert options == given | others
    for name in options:
        assert f"--{name}" in help_text or f"--no-{name}" in help_text, name
    for mode, text in zip(modes, other_texts, strict=True):
        assert f"main_eval.py {mode} --help" in help_text
        assert text.startswith(f"usage: main_eval.py {mode}")
