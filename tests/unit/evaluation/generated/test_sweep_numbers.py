"""Whole evaluations: their numbers are those of the images."""

import dataclasses
import gc
import json

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
from lpd.orders.group_sizes import make_group_sizes
from tests.unit.evaluation.sweeps import without_times


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
