"""Whole evaluations: numbers, resume, and what is refused before any work."""

import copy
import csv
import dataclasses
import gc
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.distributed import World
from lpd.evaluation.features.batches import FeatureBatch
from lpd.evaluation.features.extractors import Classifier, ClassifierConfig
from lpd.evaluation.generated import sweep
from lpd.evaluation.generated.chunks import Chunk, read_codes
from lpd.evaluation.generated.sweep import run_evaluation
from lpd.evaluation.images.statistics_file import read_statistics
from lpd.evaluation.measures import metrics
from lpd.evaluation.measures.metrics import (
    compute_metrics,
    frechet_distance,
    inception_score,
    precision_recall,
)
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.files import read_json, write_json
from lpd.generation import ImageGenerator
from lpd.options import flatten
from lpd.orders.files import save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.sampling.config import YOUNGER_OPTIONS
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import save_pretrained


def without_times(results):
    timed = {
        *("seconds_per_image", "share_elsewhere", "latency_seconds", "images_per_second"),
        *("latency_spread", "throughput_spread", "flip_rate", "flip_images", "speed_device"),
        *("generator_seconds", "extractor_seconds", "wall_seconds"),
    }
    return [{k: v for k, v in result.flat().items() if k not in timed} for result in results]


def chunk_files(config):
    return {path: path.stat().st_mtime_ns for path in config.output_dir.glob("*/chunks/*.npz")}


def chunk_file(folder, start, stop):
    return folder / "chunks" / f"chunk_{start:08d}_{stop:08d}.npz"


BASE = {"order": ("raster",), "generation_steps": (4,)}


@pytest.fixture
def count_generated(monkeypatch):
    """The images generated so far."""
    generated, prepared = [], {}
    prepare, run = ImageGenerator.prepare, ImageGenerator.run

    def noting(self, *args, image_indices, **kwargs):
        inputs = prepare(self, *args, image_indices=image_indices, **kwargs)
        prepared[id(inputs)] = image_indices
        return inputs

    def counting(self, inputs):
        generated.extend(prepared.pop(id(inputs)))
        return run(self, inputs)

    monkeypatch.setattr(ImageGenerator, "prepare", noting)
    monkeypatch.setattr(ImageGenerator, "run", counting)
    return generated


class TestNumbers:
    def test_are_those_of_the_chunks(self, make_config, capsys):
        config = make_config(keep_features=True)
        results = run_evaluation(config, World())
        assert [(r.order, r.generation_steps) for r in results] == [
            ("lpd", 16), ("lpd", 4), ("raster", 16), ("raster", 4),
        ]  # fmt: skip
        reference = read_statistics(config.output_dir / "reference.npz")
        for result in results:
            folder = config.output_dir / f"{result.order}_{result.generation_steps}"
            chunks = [Chunk.load(path) for path in sorted((folder / "chunks").iterdir())]
            assert [len(chunk) for chunk in chunks] == [10, 10, 4]
            features = np.concatenate([chunk.measured.features for chunk in chunks])
            logits = np.concatenate([chunk.measured.logits for chunk in chunks])
            assert result.metrics["fid"] == frechet_distance(
                reference.statistics, gaussian_statistics(features)
            )
            assert result.metrics["inception_score"] == inception_score(logits).mean
            assert result.metrics["class_accuracy"] == np.mean(
                logits.argmax(1) == np.arange(24) % 3
            )
            assert result.metrics["recall"] == precision_recall(features, reference.features).recall
            assert result.num_images == 24
            assert result.group_sizes == make_group_sizes(16, result.generation_steps)
            with Image.open(folder / "samples.png") as grid:
                assert grid.size == (3 * 18 + 2, 8 * 18 + 2)  # 24 images in 3 columns
        written = json.loads((config.output_dir / "results.json").read_text())
        assert written["results"][1]["fid"] == results[1].metrics["fid"]
        assert written["settings"]["cfg"] == 1.5
        printed = capsys.readouterr().out
        assert f"{results[0].metrics['fid']:.3f}" in printed
        assert "accuracy" in printed

    def test_of_orders_with_their_own_passes_stand_beside_the_others(self, make_config):
        config = make_config(
            order=("halton", "par_4x", "nar", "zipar_2"), group_size_schedule="uniform"
        )
        results = run_evaluation(config, World())
        assert [(r.order, r.generation_steps) for r in results] == [
            ("halton", 16), ("halton", 4), ("nar", 7), ("par_4x", 7), ("zipar_2", 10),
        ]  # fmt: skip
        assert results[1].group_sizes == make_group_sizes(16, 4, "uniform")
        assert results[2].group_sizes == (1, 2, 3, 4, 3, 2, 1)
        assert results[3].group_sizes == (1, 1, 1, 1, 4, 4, 4)
        written = json.loads((config.output_dir / "results.json").read_text())
        assert written["results"][4]["fid"] == results[4].metrics["fid"]
        # The same uniforms in another order: other images.
        codes = {
            folder.name: read_codes(folder, num_images=24, old_size=10).tobytes()
            for folder in config.output_dir.iterdir()
            if folder.is_dir()
        }
        assert set(codes) == {"halton_16", "halton_4", "nar_7", "par_4x_7", "zipar_2_10"}
        assert len(set(codes.values())) == 5

    def test_group_sizes_are_for_the_orders_that_take_them(self, make_config):
        # The default number of passes, 20, does not fit 16 positions, but nothing asks for it.
        config = make_config(order=("nar", "raster"), group_sizes="4x4", generation_steps=(20,))
        results = run_evaluation(config, World())
        assert [(r.order, r.generation_steps) for r in results] == [("nar", 7), ("raster", 4)]

    def test_without_a_reference_are_left_empty_and_it_is_said_once(self, make_config, capsys):
        config = make_config(reference=None)
        results = run_evaluation(config, World())
        assert {tuple(map(r.metrics.get, ("fid", "precision", "recall"))) for r in results} == {
            (None, None, None)
        }
        assert all(r.metrics["inception_score"] is not None for r in results)
        written = json.loads((config.output_dir / "results.json").read_text())
        assert written["results"][1]["fid"] is None
        assert capsys.readouterr().out.count("no --reference") == 1

    def test_a_classifier_of_other_classes_gives_no_accuracy(self, make_config, tmp_path):
        config = ClassifierConfig(
            architecture="resnet10t",
            num_classes=4,
            image_size=16,
            model_args={"channels": [8, 8, 8, 16], "stem_width": 8},
        )
        Classifier(config).save(tmp_path / "four")
        (result,) = run_evaluation(
            make_config(
                order=("raster",),
                generation_steps=(4,),
                feature_extractor=str(tmp_path / "four"),
            ),
            World(),
        )
        assert result.metrics["class_accuracy"] is None
        assert result.metrics["fid"] is not None

    def test_of_classes_are_by_the_classifier_that_is_named(
        self, make_config, tmp_path, make_classifier
    ):
        torch.manual_seed(9)
        make_classifier().save(tmp_path / "judge")
        config = make_config(
            order=("raster",),
            generation_steps=(4,),
            classifier=str(tmp_path / "judge"),
            keep_features=True,
        )
        (result,) = run_evaluation(config, World())
        folder = config.output_dir / "raster_4"
        chunks = [Chunk.load(path) for path in sorted((folder / "chunks").iterdir())]
        measured = FeatureBatch.concatenate([chunk.measured for chunk in chunks])
        logits = measured.class_logits
        assert not np.allclose(logits, measured.logits)
        right = logits.argmax(1) == np.arange(24) % 3
        assert result.metrics["class_accuracy"] == right.mean()
        by_class = [right[label::3].mean() for label in range(3)]
        assert result.metrics["lowest_class_accuracy"] == min(by_class)
        written = json.loads((folder / "class_accuracy.json").read_text())
        assert written == {"accuracy": by_class, "images": [8, 8, 8]}
        other = dataclasses.replace(config, classifier=None)
        with pytest.raises(ValueError, match="classifier was classifier"):
            run_evaluation(other, World())

    def test_of_one_more_entry_show_up_everywhere(self, make_config, monkeypatch, capsys):
        """A new metric is one entry: files and the table follow."""

        def spread(samples, reference):
            return float(samples.features.std()), float(len(reference.features)), None

        toy = metrics.Metric(
            numbers=tuple(
                metrics.Number(key=key, heading=heading, format="{:.3e}")
                for key, heading in (("spread", "toy spread"), ("seen", "seen"), ("nothing", "nil"))
            ),
            compute=spread,
        )
        monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, toy))
        config = make_config(order=("raster",), generation_steps=(4,), keep_features=True)
        (result,) = run_evaluation(config, World())
        chunks = sorted((config.output_dir / "raster_4" / "chunks").iterdir())
        expected = np.concatenate([Chunk.load(path).measured.features for path in chunks]).std()
        assert result.metrics["spread"] == pytest.approx(float(expected))
        values = json.loads((config.output_dir / "raster_4" / "metrics.json").read_text())
        collected = json.loads((config.output_dir / "results.json").read_text())
        for found in (values, collected["results"][0]):
            assert found["spread"] == result.metrics["spread"]
            assert (found["seen"], found["nothing"]) == (24, None)
        heading, row = capsys.readouterr().out.splitlines()[:2]
        assert "toy spread" in heading
        assert "nil" not in heading  # no setting has it
        assert f"{result.metrics['spread']:.3e}" in row

    def test_of_too_few_images_are_left_empty(self, make_config):
        config = make_config(num_images=3, order=("raster",), generation_steps=(4,))
        (result,) = run_evaluation(config, World())
        assert result.metrics["inception_score"] is result.metrics["precision"] is None
        assert result.metrics["fid"] is not None

    def test_of_many_images_are_computed_with_their_features_in_memory_once(
        self, make_config, monkeypatch
    ):
        def batches():
            gc.collect()
            return sum(isinstance(each, FeatureBatch) for each in gc.get_objects())

        before, found = batches(), []

        def counting(samples, reference):
            found.append(batches())
            return compute_metrics(samples, reference)

        monkeypatch.setattr(metrics, "compute_metrics", counting)
        run_evaluation(make_config(order=("lpd",), generation_steps=(4,)), World())
        assert found == [before]  # the samples have the arrays, and nobody else

    def test_of_speed_are_measured_on_demand_and_once(self, make_config, monkeypatch):
        config = make_config(order=("raster",), generation_steps=(4,))
        (plain,) = run_evaluation(config, World())
        assert plain.latency_seconds is None
        config = dataclasses.replace(config, measure_speed=True)
        (measured,) = run_evaluation(config, World())
        assert measured.latency_seconds > 0
        assert measured.images_per_second > 0
        assert measured.throughput_batch_size == 5
        assert (measured.flip_rate, measured.flip_images) == (0, 10)
        assert measured.speed_device == measured.environment["device"]
        other = dataclasses.replace(config, throughput_bsz=3)
        (again,) = run_evaluation(other, World())
        assert again.throughput_batch_size == 3
        (measured,) = run_evaluation(dataclasses.replace(config, throughput_bsz=5), World())
        monkeypatch.setattr(sweep, "measure_speed", lambda *args, **kwargs: pytest.fail("again"))
        assert run_evaluation(config, World()) == [measured]
        assert without_times([dataclasses.replace(measured, throughput_batch_size=None)]) == (
            without_times([plain])
        )


class TestResume:
    def test_a_complete_run_is_not_done_again(self, make_config, count_generated):
        first = run_evaluation(make_config(), World())
        count_generated.clear()
        assert run_evaluation(make_config(), World()) == first
        assert count_generated == []

    def test_features_that_are_asked_for_later_are_computed_of_the_codes(
        self, make_config, count_generated
    ):
        config = make_config(order=("raster",), generation_steps=(4,))
        first = run_evaluation(config, World())
        paths = sorted((config.output_dir / "raster_4" / "chunks").iterdir())
        before = [Chunk.load(path) for path in paths]
        assert all(chunk.measured is None for chunk in before)
        count_generated.clear()
        keeping = dataclasses.replace(config, keep_features=True)
        assert run_evaluation(keeping, World()) == first
        assert count_generated == []
        after = [Chunk.load(path) for path in paths]
        features = np.concatenate([chunk.measured.features for chunk in after])
        reference = read_statistics(config.output_dir / "reference.npz").statistics
        fid = frechet_distance(reference, gaussian_statistics(features))
        assert first[0].metrics["fid"] == pytest.approx(fid, rel=1e-4)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old.codes, new.codes)

    def test_features_of_images_that_are_gone_are_not_made(self, make_config, count_generated):
        config = make_config(order=("raster",), generation_steps=(4,))
        run_evaluation(config, World())
        shutil.rmtree(config.output_dir / "raster_4" / "chunks")
        count_generated.clear()
        run_evaluation(dataclasses.replace(config, keep_features=True), World())
        assert count_generated == []

    def test_makes_only_the_chunks_that_are_missing(self, make_config, count_generated):
        config = make_config(keep_features=True)
        first = run_evaluation(config, World())
        folder = config.output_dir / "lpd_4"
        (folder / "metrics.json").unlink()
        chunk_file(folder, 10, 20).unlink()
        others = chunk_files(config)
        count_generated.clear()
        again = run_evaluation(make_config(eval_bsz=3, keep_features=True), World())
        assert sorted(count_generated) == list(range(10, 20))
        assert without_times(again) == [
            {k: pytest.approx(v, rel=1e-4, abs=1e-6) if isinstance(v, float) else v
             for k, v in numbers.items()}
            for numbers in without_times(first)
        ]  # fmt: skip
        now = chunk_files(config)
        assert {path: now[path] for path in others} == others

    def test_an_interrupt_leaves_whole_chunks_that_the_next_run_keeps(
        self, make_config, monkeypatch, count_generated
    ):
        config = make_config(keep_features=True)
        save = Chunk.save
        made = []

        def interrupted(self, path):
            if len(made) == 4:
                raise KeyboardInterrupt
            made.append(path)
            save(self, path)

        with monkeypatch.context() as patch:
            patch.setattr(Chunk, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_evaluation(config, World())
        there = chunk_files(config)
        assert sorted(there) == sorted(made)
        count_generated.clear()
        results = run_evaluation(config, World())
        assert len(count_generated) == 4 * 24 - (10 + 10 + 4 + 10)
        now = chunk_files(config)
        assert {path: now[path] for path in there} == there
        assert len(results) == 4

    def test_a_reference_that_could_not_be_read_may_be_mended(self, make_config, tmp_path):
        folder = tmp_path / "data" / "0"
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"no image")
        Image.new("RGB", (16, 16)).save(folder / "0.png")
        config = make_config(order=("raster",), generation_steps=(4,), reference=tmp_path / "data")
        with pytest.raises(ValueError, match=r"1\.png"):
            run_evaluation(config, World())
        Image.new("RGB", (16, 16)).save(folder / "1.png")
        assert run_evaluation(config, World())[0].metrics["fid"] is not None

    def test_a_sweep_grows_in_the_same_folder(self, make_config, count_generated):
        run_evaluation(make_config(order=("raster",), generation_steps=(4,)), World())
        count_generated.clear()
        results = run_evaluation(
            make_config(order=("raster", "random"), generation_steps=(4,)), World()
        )
        assert len(count_generated) == 24
        assert [r.order for r in results] == ["random", "raster"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_images": 30}, "num_images was 24, now 30"),
            ({"reference": None}, "reference was images"),
            ({"pixel_rounding": "published", "bf16": True}, "bf16 was False.*pixel_rounding was"),
        ],
    )
    def test_another_configuration_in_the_same_folder_is_refused(
        self, make_config, changes, message, count_generated
    ):
        base = {"order": ("raster",), "generation_steps": (4,)}
        run_evaluation(make_config(**base), World())
        count_generated.clear()
        with pytest.raises(ValueError, match=f"{message}.*another --output_dir"):
            run_evaluation(make_config(**base, **changes), World())
        assert count_generated == []


class TestSweep:
    def test_ways_to_draw_and_seeds_are_settings_of_their_own(self, make_config, count_generated):
        """One run over all of them gives each the images of a run of its own."""
        config = make_config(
            order=("lpd", "raster"),
            generation_steps=(4,),
            cfg=(1.5, 3.0),
            seed=(0, 1),
            repulsion_threshold=(2.0, 1.0),
        )
        results = run_evaluation(config, World())
        assert len(count_generated) == 24 * (2 * 2 * 2 + 2 * 2)
        folders = {path.name for path in config.output_dir.iterdir() if path.is_dir()}
        drawn = {"", "_cfg_3", "_seed_1", "_cfg_3_seed_1"}
        assert folders == {
            *(f"raster_4{each}" for each in drawn),
            *(f"lpd_4{each}" for each in drawn),
            *(f"lpd_4_repulsion_threshold_1{each}" for each in drawn),
        }
        alone = make_config(
            order=("lpd",),
            generation_steps=(4,),
            cfg=3.0,
            seed=1,
            repulsion_threshold=1.0,
            output_dir=config.output_dir / "alone",
        )
        (expected,) = run_evaluation(alone, World())
        (found,) = [r for r in results if r.setting == expected.setting]
        assert without_times([found]) == without_times([expected])
        assert len({r.codes_sha256 for r in results}) == len(results)
        rows = (config.output_dir / "summary.csv").read_text().splitlines()
        assert len(rows) == 1 + 6

    def test_grows_in_a_folder_whose_first_run_named_the_rest(self, make_config, count_generated):
        run_evaluation(make_config(**BASE, cfg=3.0, group_size_schedule="uniform"), World())
        count_generated.clear()
        config = make_config(
            **BASE, cfg=(1.5, 3.0), group_size_schedule=("cosine", "uniform"), top_k=(0, 5)
        )
        results = run_evaluation(config, World())
        assert len(results) == 8
        assert len(count_generated) == 7 * 24
        folders = {path.name for path in config.output_dir.iterdir() if path.is_dir()}
        assert {"raster_4", "raster_4_cosine_cfg_1.5_top_k_5", "raster_4_cfg_1.5"} < folders
        count_generated.clear()
        typed = make_config(**BASE, cfg=3.0, group_sizes="1,1,1,13")
        assert len(run_evaluation(typed, World())) == 9
        (folder,) = config.output_dir.glob("raster_4_sizes_*")
        assert json.loads((folder / "metrics.json").read_text())["group_sizes"] == [1, 1, 1, 13]
        run_evaluation(make_config(**BASE, cfg=3.0, group_sizes="1,1,1,13", seed=1), World())
        assert (config.output_dir / f"{folder.name}_seed_1" / "metrics.json").is_file()

    def test_without_guidance_schedules_are_one(self, make_config, count_generated):
        config = make_config(**BASE, cfg=1.0, cfg_schedule=("constant", "linear"))
        (result,) = run_evaluation(config, World())
        assert result.cfg_schedule is None
        again = make_config(**BASE, cfg=1.0, cfg_schedule="linear")
        assert run_evaluation(again, World()) == [result]
        assert len(count_generated) == 24

    def test_codes_decoded_again_are_counted_in_passes(self, make_config, count_generated, capsys):
        config = make_config(**BASE, cfg=2.0, refine=(0.0, 0.4), refine_steps=(0, 3))
        results = run_evaluation(config, World())
        assert [
            (each.refine, each.refine_steps, each.generation_steps, each.total_passes)
            for each in results
        ] == [(0.0, None, 4, 4), (0.4, 2, 4, 6), (0.4, 3, 4, 7)]
        assert len({each.codes_sha256 for each in results}) == 3
        assert len(count_generated) == 3 * 24
        assert {path.name for path in config.output_dir.iterdir() if path.is_dir()} == {
            "raster_4", "raster_4_refine_0.4", "raster_4_refine_0.4_refine_steps_3",
        }  # fmt: skip
        told = capsys.readouterr().out.splitlines()
        (heading,) = (line for line in told if line.split()[:1] == ["order"])
        assert re.split(r"\s{2,}", heading.strip())[:5] == [
            "order", "passes", "refine", "again in", "passes in all",
        ]  # fmt: skip
        with (config.output_dir / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["refine"], row["total_passes"]) for row in rows] == [
            ("0.0", "4"), ("0.4", "6"), ("0.4", "7"),
        ]  # fmt: skip
        count_generated.clear()
        # Said with its number of passes it is the same setting, and by itself the same images.
        again = make_config(**BASE, cfg=2.0, refine=0.4, refine_steps=2)
        assert run_evaluation(again, World()) == results
        assert count_generated == []

    def test_a_folder_of_before_there_were_options_goes_on(self, make_config, count_generated):
        config = make_config(**BASE, cfg=2.0)
        (result,) = run_evaluation(config, World())
        record = config.output_dir / "settings.json"
        write_json(
            record,
            {name: v for name, v in read_json(record).items() if name not in YOUNGER_OPTIONS},
        )
        numbers = config.output_dir / "raster_4" / "metrics.json"
        younger = {*YOUNGER_OPTIONS, "total_passes"}
        write_json(
            numbers, {name: v for name, v in read_json(numbers).items() if name not in younger}
        )
        older = numbers.read_bytes()
        count_generated.clear()
        assert run_evaluation(config, World()) == [result]
        assert count_generated == []
        assert numbers.read_bytes() == older
        grown = run_evaluation(make_config(**BASE, cfg=2.0, cfg_start=(0.0, 0.5)), World())
        assert [each.cfg_start for each in grown] == [0.0, 0.5]
        assert len(count_generated) == 24
        assert (config.output_dir / "raster_4_cfg_start_0.5").is_dir()

    def test_features_are_dropped_and_come_back_where_they_are_needed(
        self, make_config, count_generated
    ):
        config = make_config(**BASE)
        (first,) = run_evaluation(config, World())
        folder = config.output_dir / "raster_4"
        for path in chunk_files(config):
            with np.load(path) as content:
                assert set(content) == {"codes", "labels", "seconds", "digests", "identity"}
        kept = read_statistics(folder / "statistics.npz").statistics
        reference = read_statistics(config.output_dir / "reference.npz").statistics
        assert frechet_distance(reference, kept) == first.metrics["fid"]
        (folder / "metrics.json").unlink()
        count_generated.clear()
        (again,) = run_evaluation(config, World())
        assert count_generated == []
        assert again.metrics == {
            name: value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
            for name, value in first.metrics.items()
        }
        assert again.pixels_sha256 == first.pixels_sha256

    def test_counts_what_is_in_the_images(self, make_config, run_folder):
        (result,) = run_evaluation(make_config(**BASE, num_images=25, top_k=1), World())
        codes = read_codes(make_config().output_dir / "raster_4", num_images=25, old_size=10)
        assert result.duplicates == 25 - len({row.tobytes() for row in codes}) > 0
        assert result.images_per_class == (8, 9)
        expected = hashlib.sha256(codes.astype("<u2").tobytes()).hexdigest()
        assert result.codes_sha256 == expected
        assert result.environment["versions"]["torch"] == torch.__version__

    def test_numbers_of_images_that_are_not_even_are_warned_of(self, make_config, capsys):
        run_evaluation(make_config(**BASE, num_images=25), World())
        assert "num_images 25 is no multiple of the 3 classes" in capsys.readouterr().err


class TestMistakenFolders:
    def test_numbers_without_their_settings_are_refused(self, make_config, count_generated):
        """Once these gave chunks of one guidance as those of another."""
        config = make_config(**BASE, cfg=3.0)
        run_evaluation(config, World())
        (config.output_dir / "settings.json").unlink()
        count_generated.clear()
        other = make_config(**BASE, cfg=1.0)
        with pytest.raises(ValueError, match=r"metrics\.json is there, but no .*settings\.json"):
            run_evaluation(other, World())
        (config.output_dir / "raster_4" / "metrics.json").unlink()
        with pytest.raises(ValueError, match=r"\.npz is there, but no .*settings\.json"):
            run_evaluation(other, World())
        assert count_generated == []

    def test_chunks_from_elsewhere_are_refused(self, make_config, count_generated):
        config = make_config(**BASE, cfg=3.0)
        run_evaluation(config, World())
        other = make_config(**BASE, cfg=1.5, output_dir=config.output_dir / "other")
        run_evaluation(other, World())
        (other.output_dir / "raster_4" / "metrics.json").unlink()
        for path in chunk_files(config):
            if path.is_relative_to(other.output_dir):
                continue
            shutil.copy(path, other.output_dir / path.relative_to(config.output_dir))
        count_generated.clear()
        with pytest.raises(ValueError, match="made with other settings or weights"):
            run_evaluation(other, World())
        assert count_generated == []

    def test_a_model_of_other_heads_is_another(self, make_config, tiny_model, tmp_path):
        """The weights are the same, what they compute is not."""
        save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
        config = make_config(**BASE, pretrained_ckpt=tmp_path / "model")
        run_evaluation(config, World())
        heads = tiny_model.config.num_heads
        other = dataclasses.replace(tiny_model.config, num_heads=2 * heads)
        save_pretrained(tmp_path / "model", tiny_model, other)
        with pytest.raises(ValueError, match="model_config was"):
            run_evaluation(config, World())

    def test_what_classes_are_called_is_of_no_matter(
        self, make_config, tiny_model, tmp_path, count_generated
    ):
        save_pretrained(tmp_path / "model", tiny_model, tiny_model.config)
        config = make_config(**BASE, pretrained_ckpt=tmp_path / "model")
        run_evaluation(config, World())
        count_generated.clear()
        named = dataclasses.replace(tiny_model.config, class_names=("a", "b", "c"))
        save_pretrained(tmp_path / "model", tiny_model, named)
        run_evaluation(config, World())
        assert count_generated == []

    def test_weights_that_are_not_finite_are_refused(self, make_config, tiny_model, tmp_path):
        broken = copy.deepcopy(tiny_model)
        broken.head.weight.data[3, 2] = torch.nan
        save_pretrained(tmp_path / "model", broken, tiny_model.config)
        with pytest.raises(ValueError, match=r"not finite .*head\.weight"):
            run_evaluation(make_config(pretrained_ckpt=tmp_path / "model"), World())

    def test_an_order_file_with_too_few_orders_is_refused(self, make_config, tmp_path):
        path, sizes = tmp_path / "orders.npz", make_group_sizes(16, 4)
        plan = make_plan(OrderConfig(), (4, 4), sizes, 0, np.arange(23))
        save_orders(path, plan.orders, sizes, kind="lpd", seed=0, locality=LocalityConfig())
        config = make_config(order=("lpd",), generation_steps=(4,), lpd_order_file=path)
        with pytest.raises(ValueError, match="holds 23 orders, fewer than the 24 images"):
            run_evaluation(config, World())
        assert not config.output_dir.exists()


class TestExport:
    def test_images_and_samples_are_the_generated_ones(self, make_config, count_generated):
        base = {"order": ("raster",), "generation_steps": (4,)}
        run_evaluation(make_config(**base), World())
        count_generated.clear()
        config = make_config(**base, save_images=True, save_npz=True)
        run_evaluation(config, World())
        assert count_generated == []  # decoded from the codes that are there
        folder = config.output_dir / "raster_4"
        with np.load(folder / "samples.npz") as content:
            samples = content["arr_0"]
        assert (samples.shape, samples.dtype) == ((24, 16, 16, 3), np.uint8)
        files = sorted((folder / "images").iterdir())
        assert len(files) == 24
        for sample, file in zip(samples, files, strict=True):
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.asarray(image), sample)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


class TestRefusedBeforeAnyWork:
    @pytest.fixture(autouse=True)
    def _nothing_happens(self, make_config, count_generated):
        yield
        assert count_generated == []
        assert not make_config().output_dir.exists()

    def refuse(self, message, make_config, **changes):
        with pytest.raises(ValueError, match=message):
            run_evaluation(make_config(**changes), World())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"group_sizes": "1,2,3"}, r"sum to 6, but the grid has 16"),
            ({"generation_steps": (4, 17)}, "17 generation steps do not fit 16 positions"),
            ({"img_size": 32}, "images of 16 pixels, but img_size is 32"),
            ({"model": "lpd_giant"}, "unknown model 'lpd_giant'"),
            ({"order": ("spiral",)}, "unknown order 'spiral'"),
            ({"order": ("lpd", "zipar_5")}, "window must be between 1 and 4"),
            ({"order": ("par_9x",)}, "3 x 3 equal regions, but the grid is 4 x 4"),
            (
                {"order": ("nar", "par_4x"), "group_sizes": "4x4"},
                r"group_sizes 4x4 is for orders without passes of their own.*are nar, par_4x",
            ),
            ({"group_size_schedule": "cubic"}, "unknown group-size schedule 'cubic'"),
            ({"feature_extractor": "nowhere"}, "unknown feature extractor 'nowhere'"),
            ({"cfg_schedule": "cubic"}, "unknown cfg_schedule 'cubic'"),
            ({"refine": 0.1, "refine_steps": 3}, "refine_steps 3 are more passes than there are"),
            ({"num_images": 0}, "num_images must be at least 1"),
            ({"num_images": 1}, "at least 2 images"),
            ({"order": ()}, "order needs at least one value"),
            ({"seed": -1}, "seed must be"),
        ],
    )
    def test_values_that_do_not_go_together(self, make_config, changes, message):
        self.refuse(message, make_config, **changes)

    def test_order_files_of_another_grid_or_schedule(self, make_config, tmp_path):
        path = tmp_path / "orders.npz"

        def save(grid, steps):
            sizes = make_group_sizes(grid[0] * grid[1], steps)
            plan = make_plan(OrderConfig(), grid, sizes, 0, np.arange(3))
            save_orders(
                path, plan.orders, plan.group_sizes, kind="lpd", seed=0, locality=LocalityConfig()
            )

        save((8, 8), 8)
        file = {"order": ("lpd",), "lpd_order_file": path}
        self.refuse("orders 64 positions, but the model has 16", make_config, **file)
        save((4, 4), 8)
        self.refuse("made for 8 passes.* not for 4", make_config, generation_steps=(4,), **file)
        changes = {"order": ("raster",), "lpd_order_file": path}
        self.refuse("is for the order lpd", make_config, **changes)

    def test_a_tokenizer_with_another_vocabulary_or_stride(self, make_config, tmp_path):
        shape = {"ch": 8, "num_res_blocks": 1, "z_channels": 8, "norm_groups": 4}
        for ch_mult, size, message in (
            ((1, 1, 1), 32, "32 codes of 4 x 4 pixels, the model expects 24 codes of 4 x 4"),
            ((1, 1), 24, "24 codes of 2 x 2 pixels, the model expects 24 codes of 4 x 4"),
        ):
            config = VQGANConfig(ch_mult=ch_mult, codebook_size=size, codebook_embed_dim=4, **shape)
            save_pretrained(tmp_path / "other", VQGAN(config), config)
            self.refuse(message, make_config, vqgan_path=tmp_path / "other")

    def test_the_same_kind_of_tokenizer_with_other_weights(self, make_config, tiny_model, tmp_path):
        config = dataclasses.replace(tiny_model.config, tokenizer_sha256="0" * 64)
        save_pretrained(tmp_path / "model", tiny_model, config)
        self.refuse("trained with another", make_config, pretrained_ckpt=tmp_path / "model")

    def test_orders_of_another_kind_or_thresholds(self, make_config, tmp_path):
        path = tmp_path / "orders.npz"
        for kind, repulsion, message in (
            ("raster", 2.0, "kind was raster, now lpd"),
            ("lpd", 3.0, r"repulsion_threshold was 3\.0, now 2\.0"),
        ):
            plan = make_plan(OrderConfig(kind=kind), (4, 4), (1, 15), 0, np.arange(4))
            locality = LocalityConfig(repulsion_threshold=repulsion)
            save_orders(path, plan.orders, plan.group_sizes, kind=kind, seed=0, locality=locality)
            self.refuse(
                message, make_config, order=("lpd",), group_sizes="1,15", lpd_order_file=path
            )

    def test_models_of_texts(self, make_config, make_text_model, tmp_path):
        """Before their weights are read, and whatever img_size is."""
        model = make_text_model()
        save_pretrained(tmp_path / "text", model, model.config)
        (tmp_path / "text.pth").write_bytes(b"")
        for where, preset in (("text", None), ("text.pth", "lpd_t2i_l")):
            self.refuse(
                r"is a model of text, .* scripts/prompt_images\.py",
                make_config,
                pretrained_ckpt=tmp_path / where,
                model=preset,
                img_size=256,
            )

    def test_missing_files(self, make_config, tmp_path):
        for name in ("pretrained_ckpt", "vqgan_path", "reference"):
            self.refuse("absent", make_config, **{name: tmp_path / "absent"})

    def test_weights_of_another_shape(self, make_config, run_folder, tmp_path):
        torch.save({"model": {"head.weight": torch.zeros(2, 2)}}, tmp_path / "model.pth")
        self.refuse(
            "does not fit this LPD",
            make_config,
            pretrained_ckpt=tmp_path / "model.pth",
            model="lpd_tiny",
        )


def test_every_field_changes_the_settings_or_is_known_not_to(make_config, run_folder, tmp_path):
    """A field added later must not slip past the check that guards an output folder."""
    known = {
        # what a setting is, or where things are
        "order", "generation_steps", "output_dir", "model", "inception_path",
        # what does not change numbers
        "eval_bsz", "backend", "cuda_graphs", "device", "num_workers", "measure_speed",
        "throughput_bsz", "published_row", "save_images", "save_npz", "evaluate", "keep_features",
    }  # fmt: skip
    config = make_config(order=("raster",), generation_steps=(4,))
    run_evaluation(config, World())
    shared = json.loads((config.output_dir / "settings.json").read_text())
    assert flatten(config).keys() == (known | shared.keys()) - {"model_config", "tokenizer_config"}
