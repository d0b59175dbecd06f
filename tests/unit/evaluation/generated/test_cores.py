"""Threads of processes that share a machine."""

import os

import pytest
import torch

from lpd.distributed import World
from lpd.evaluation.generated.cores import sharing_cores


@pytest.mark.parametrize(
    ("size", "num_busy", "expected"),
    [
        (1, 1, 1),  # alone, as its user has set them
        (4, 1, 12),  # the others wait for it
        (4, 3, 4),
        (4, 4, 3),
        (16, 16, 1),  # more processes than cores
        (4, 0, 12),  # nothing to do
    ],
)
def test_cores_are_shared_by_those_that_compute(monkeypatch, size, num_busy, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(12)))
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1] if asked else 1)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with sharing_cores(World(size=size), num_busy):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 1


def test_threads_are_as_before_after_an_error(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    before = torch.get_num_threads()
    with pytest.raises(InterruptedError), sharing_cores(World(size=2), 1):
        raise InterruptedError
    assert asked[-1] == before
