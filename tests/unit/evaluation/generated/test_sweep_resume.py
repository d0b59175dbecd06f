"""Whole evaluations: what is there is not made again, and nothing else is added to it."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.distributed import World
from lpd.evaluation.generated.chunks import Chunk
from lpd.evaluation.generated.sweep import run_evaluation
from lpd.evaluation.images.statistics_file import read_statistics
from lpd.evaluation.measures.metrics import (
    frechet_distance,
)
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.orders.files import save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.weights import save_pretrained
from tests.unit.evaluation.sweeps import BASE, chunk_file, chunk_files, without_times


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
