"""Where a training's time goes, and how much arithmetic it is."""

import dataclasses
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lpd.distributed import World
from lpd.models.condition import TextCondition
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility
from lpd.pretrained import config_of_preset
from lpd.training.clock import BACKWARD, DATA, FORWARD, OPTIMIZER, StepClock
from lpd.training.logging import TrainingLog
from lpd.training.throughput import flops_per_image, peak_flops, take_peak_memory, visible_pairs


class Device:
    """A device that works through its queue by itself; a mark is a place in the queue."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.waited_for: list[float] = []

    def make_mark(self, device: torch.device) -> "DeviceMark":
        return DeviceMark(self, self.milliseconds)


@dataclass
class DeviceMark:
    device: Device
    at: float

    def synchronize(self) -> None:
        self.device.waited_for.append(self.at)

    def elapsed_time(self, end: "DeviceMark") -> float:
        return end.at - self.at


def test_parts_are_added_up_and_what_is_between_is_left_out() -> None:
    device = Device()
    clock = StepClock(torch.device("cpu"), device.make_mark)
    assert clock.read() == dict.fromkeys((DATA, FORWARD, BACKWARD, OPTIMIZER), 0.0)

    def steps(*parts: tuple[str | None, float]) -> None:
        for part, milliseconds in parts:
            device.milliseconds += milliseconds
            clock.lap(part)

    micro = ((FORWARD, 20.0), (BACKWARD, 40.0))
    steps((None, 500.0), (DATA, 3.0), *micro, *micro, (OPTIMIZER, 5.0))
    steps((None, 7000.0), (DATA, 1.0), *micro, (OPTIMIZER, 5.0))  # a save before
    assert device.waited_for == []  # until it is read
    read = clock.read()
    assert read == pytest.approx({DATA: 0.004, FORWARD: 0.06, BACKWARD: 0.12, OPTIMIZER: 0.01})
    assert device.waited_for == [device.milliseconds]
    steps((DATA, 2.0), *micro, (OPTIMIZER, 5.0))  # goes on where it was read
    assert clock.read()[DATA] == pytest.approx(0.002)


def test_matrix_products_are_those_that_torch_counts(tiny_config: LPDConfig) -> None:
    model = LPD(tiny_config)
    tokens, orders = torch.zeros(3, 16, dtype=torch.int64), torch.arange(16).expand(3, 16)
    with FlopCounterMode(display=False) as counter:  # without attention
        model(tokens, torch.zeros(3, dtype=torch.int64), orders, lambda q, k, v: q).sum().backward()
    counted = counter.get_total_flops()
    # Twice the forward pass in the backward pass: torch leaves out what nobody needs, here nothing.
    attention = 3 * 2 * tiny_config.depth * 2 * tiny_config.dim * pairs_of_one_pass()
    assert flops_per_image(model, [(16,)]) - attention == pytest.approx(counted / 3)


def pairs_of_one_pass() -> int:
    """Who sees whom when all 16 cells are one group: the prefix itself, the 15 tokens the prefix
    and each other, the 16 queries the prefix and each other."""
    return 1 + 15 * 16 + 16 * 17


@pytest.mark.parametrize("sizes", [(16,), (1,) * 16, (1, 15), (15, 1), (1, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("num_prefix", [1, 3])
def test_rows_see_what_the_mask_says(sizes: tuple[int, ...], num_prefix: int) -> None:
    visibility = Visibility.of_group_sizes(sizes, torch.device("cpu"), num_prefix)
    assert visible_pairs(sizes, num_prefix) == int(visibility.dense_mask().sum())


def test_rows_see_what_the_mask_of_a_length_says() -> None:
    visibility = Visibility.of_group_sizes((1, 3, 5), torch.device("cpu"), 6, 5)
    for length in range(6):
        mask = visibility.dense_mask(torch.tensor([length]))
        assert visible_pairs((1, 3, 5), 6, 5 - length) == int(mask.sum())


def test_a_model_of_texts_makes_rows_of_them(tiny_config: LPDConfig) -> None:
    config = dataclasses.replace(tiny_config, conditioning="text", text_width=24, text_length=5)
    model = LPD(config)
    tokens, orders = torch.zeros(3, 16, dtype=torch.int64), torch.arange(16).expand(3, 16)
    texts = TextCondition(torch.zeros(3, 5, 24), torch.tensor([0, 2, 4]))
    with FlopCounterMode(display=False) as counter:  # without attention
        model(tokens, texts, orders, lambda _lengths: lambda q, k, v: q).sum().backward()
    counted = counter.get_total_flops() / 3
    # Padding is in it. Attention is of texts of the mean length, by default of the longest.
    for length, given in ((5, None), (2, 2.0)):
        attention = 3 * 2 * config.depth * 2 * config.dim * visible_pairs((16,), 6, 5 - length)
        assert flops_per_image(model, [(16,)], given) - attention == pytest.approx(counted)


def test_attention_is_the_mean_over_the_schedules(tiny_config: LPDConfig) -> None:
    model = LPD(tiny_config)
    one, other = (flops_per_image(model, [sizes]) for sizes in ((16,), (1,) * 16))
    assert one != other
    assert flops_per_image(model, [(16,), (1,) * 16]) == pytest.approx((one + other) / 2)


def test_a_published_model_takes_six_operations_a_weight_and_row() -> None:
    with torch.device("meta"):
        model = LPD(config_of_preset("lpd_l"))
    weights = sum(p.numel() for p in model.blocks.parameters())
    flops = flops_per_image(model, [(1,) * 256])
    # And something for the head, on half of the rows, and for attention.
    assert 1.04 < flops / (6 * weights * 512) < 1.25


def test_peaks_are_known_by_the_devices_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    assert take_peak_memory(torch.device("cpu")) is None
    for name, peak in {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA B200": 2250e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA GB200": None,
        "NVIDIA H100 NVL": None,
        "NVIDIA H200 NVL": None,
        "NVIDIA A10G": None,
        "NVIDIA L40": None,
        "NVIDIA RTX A1000 Laptop GPU": None,
        "NVIDIA GeForce RTX 4090": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak, name


def test_weights_and_biases_follow_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for rank in (0, 1):
        world = World(rank=rank)
        with TrainingLog(tmp_path, start_step=0, total_steps=1, world=world, wandb=True):
            pass
    with TrainingLog(tmp_path, start_step=1, total_steps=1, world=World(), wandb=True):
        pass
    first, again = calls  # rank 0 alone
    assert first["sync_tensorboard"] is True
    assert first["resume"] == "allow"
    assert first["id"] == again["id"]
