"""Whole evaluations: their settings, and what is refused before any work."""

import csv
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
import torch

from lpd.distributed import World
from lpd.evaluation.generated.chunks import read_codes
from lpd.evaluation.generated.sweep import run_evaluation
from lpd.evaluation.images.statistics_file import read_statistics
from lpd.evaluation.measures.metrics import (
    frechet_distance,
)
from lpd.files import read_json, write_json
from lpd.options import flatten
from lpd.orders.files import save_orders
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.locality import LocalityConfig
from lpd.orders.registry import OrderConfig, make_plan
from lpd.sampling.config import YOUNGER_OPTIONS
from lpd.tokenizer.vqgan import VQGAN, VQGANConfig
from lpd.weights import save_pretrained
from tests.unit.evaluation.sweeps import BASE, chunk_files, without_times


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
