"""Kernels are counted on the device, inside CUDA graphs too."""

import pytest
import torch

from scripts.benchmark.launches import count_launches, profiled_launches


@pytest.mark.gpu
def test_the_profiler_counts_kernels() -> None:
    x = torch.ones(1000, device="cuda")

    def run() -> torch.Tensor:
        return (x + 1) * 2 - x[:1]

    run()
    torch.cuda.synchronize()
    assert profiled_launches(run).total() == count_launches(run) == 3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    assert profiled_launches(graph.replay).total() == 3
