"""What tells settings apart: by values, by name, and for the images that are there."""

from typing import Any

import pytest

from lpd.errors import InputError
from lpd.evaluation.generated.setting import EvalConfig, Setting, base_of
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig, SamplingSweep

SIZES = make_group_sizes(16, 4)
SOURCE = PlanSource(order=OrderConfig(kind="raster"), grid=(4, 4), group_sizes=SIZES)
# By what an image was named before there were further options.
PLAN = {
    "order": "raster", "generation_steps": 4, "group_sizes": SIZES,
    "group_size_schedule": "cosine", "proximity_threshold": None, "repulsion_threshold": None,
}  # fmt: skip


def setting(**options: Any) -> Setting:
    return Setting(source=SOURCE, sampling=SamplingConfig(**options), seed=3)


def base(**options: Any) -> dict[str, Any]:
    sampling = SamplingSweep.of(SamplingConfig(**options))
    return base_of(
        EvalConfig(
            pretrained_ckpt="m", vqgan_path="t", output_dir="o", sampling=sampling, seed=(3,)
        )
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"cfg": 1.0, "cfg_schedule": None}),
        ({"cfg": 2.0}, {"cfg": 2.0, "cfg_schedule": "linear"}),
        # Without guidance none of these has an effect, nor passes of no refinement.
        (
            {"cfg_power": 5.0, "cfg_start": 0.5, "cfg_end": 0.75, "refine_steps": 4},
            {"cfg": 1.0, "cfg_schedule": None},
        ),
    ],
)
def test_images_of_before_further_options_are_what_they_were(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    """The chunks that are there carry a digest of these."""
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3}
    assert setting(**options).identity == {**PLAN, **expected, **drawn}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"cfg": 2.0, "cfg_start": 0.5}, {"cfg_start": 0.5}),
        ({"cfg": 2.0, "cfg_schedule": "power_cosine", "cfg_power": 2.0}, {"cfg_power": 2.0}),
        (
            {"temperature_schedule": "linear", "temperature_end": 2.0},
            {"temperature_schedule": "linear", "temperature_end": 2.0},
        ),
        ({"refine": 0.5}, {"refine": 0.5, "refine_steps": 2}),
        ({"refine": 0.5, "refine_steps": 2}, {"refine": 0.5, "refine_steps": 2}),
    ],
)
def test_images_drawn_otherwise_are_told_apart(
    options: dict[str, Any], more: dict[str, Any]
) -> None:
    found, plain = setting(**options).identity, setting(cfg=options.get("cfg", 1.0)).identity
    assert {**plain, **more, "cfg_schedule": found["cfg_schedule"]} == found


@pytest.mark.parametrize(
    ("options", "first", "expected"),
    [
        ({}, {}, "raster_4"),
        ({"refine": 0.5}, {}, "raster_4_refine_0.5"),
        ({"refine": 0.5, "refine_steps": 2}, {}, "raster_4_refine_0.5"),  # as by itself
        ({"refine": 0.5, "refine_steps": 3}, {}, "raster_4_refine_0.5_refine_steps_3"),
        ({}, {"refine": 0.5}, "raster_4_refine_0"),
        ({"refine": 0.5}, {"refine": 0.5}, "raster_4"),
        ({"refine": 0.5}, {"refine": 0.5, "refine_steps": 3}, "raster_4_refine_steps_2"),
        ({"refine": 0.5, "refine_steps": 3}, {"refine": 0.5, "refine_steps": 3}, "raster_4"),
        ({"cfg": 2.0, "cfg_end": 0.5}, {"cfg": 2.0}, "raster_4_cfg_end_0.5"),
        (
            {"temperature_schedule": "linear", "temperature_end": 2.0},
            {},
            "raster_4_temperature_schedule_linear_temperature_end_2",
        ),
    ],
)
def test_names_tell_what_is_unlike_the_first_run(
    options: dict[str, Any], first: dict[str, Any], expected: str
) -> None:
    assert setting(**options).name(base(**first)) == expected


def test_passes_are_all_counted() -> None:
    assert (setting().total_passes, setting().values["refine_steps"]) == (4, None)
    assert setting(refine=0.5).total_passes == 4 + 2
    assert setting(refine=0.5, refine_steps=8).total_passes == 4 + 8
    with pytest.raises(InputError, match="refine_steps 9 are more passes"):
        _ = setting(refine=0.5, refine_steps=9).values
