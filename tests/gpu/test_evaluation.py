"""Evaluation on a GPU: the numbers of a plain loop, and a host that waits for no batch."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lpd.evaluation.features.digests import image_digests
from lpd.evaluation.features.extractors import (
    Classifier,
    ClassifierConfig,
    FeatureExtractor,
    load_feature_extractor,
)
from lpd.evaluation.generated.making import ChunkMaker
from lpd.evaluation.generated.setting import Setting
from lpd.evaluation.generated.timing import share_elsewhere
from lpd.evaluation.measures.neighbours import precision_recall
from lpd.generation import ImageGenerator
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import make_group_sizes
from lpd.orders.registry import OrderConfig
from lpd.orders.request import PlanSource
from lpd.sampling.config import SamplingConfig
from lpd.tokenizer.vq_tokenizer import VQTokenizer
from tests.unit.evaluation.chunk_tasks import chunk_tasks

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
SAMPLING = SamplingConfig(cfg=1.5)
SOURCE = PlanSource(order=OrderConfig(), grid=(4, 4), group_sizes=make_group_sizes(16, 5))


@pytest.fixture
def generator(tiny_model: LPD, tokenizer_folder: Path) -> ImageGenerator:
    tokenizer = VQTokenizer.from_pretrained(tokenizer_folder, DEVICE)
    return ImageGenerator(copy.deepcopy(tiny_model).to(DEVICE), tokenizer, batch_size=4)


@pytest.fixture
def extractor(tmp_path: Path) -> FeatureExtractor:
    config = ClassifierConfig(
        architecture="resnet10t",
        num_classes=3,
        image_size=16,
        model_args={"channels": [4, 4, 8, 8], "stem_width": 4},
    )
    Classifier(config).save(tmp_path / "classifier")
    return load_feature_extractor(str(tmp_path / "classifier"), DEVICE)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for all that the device was asked for is an error; waiting for
    an event is none."""
    mode = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.usefixtures("no_waiting")
def test_chunks_are_those_of_a_plain_loop_and_are_not_waited_for(
    generator: ImageGenerator, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    maker = ChunkMaker(generator, extractor)
    setting = Setting(source=SOURCE, sampling=SAMPLING, seed=3)
    tasks = chunk_tasks(setting, tmp_path, 17, 10)
    list(maker.make(tasks))  # what is compiled or captured is, from here on
    torch.cuda.set_sync_debug_mode("error")
    chunks = list(maker.make(tasks))
    torch.cuda.set_sync_debug_mode("default")
    for task, chunk in zip(tasks, chunks, strict=True):
        indices = np.asarray(task.image_indices)
        for start in range(0, len(indices), 4):
            rows = slice(start, start + 4)
            generated = generator.generate(
                indices[rows] % 3,
                SOURCE.plan(3, indices[rows]),
                seed=3,
                image_indices=indices[rows],
                sampling=SAMPLING,
            )
            measured = extractor(generated.images)
            np.testing.assert_array_equal(chunk.codes[rows], generated.codes.cpu().numpy())
            for name in ("features", "logits"):
                np.testing.assert_allclose(
                    getattr(chunk.measured, name)[rows],
                    getattr(measured, name).cpu().numpy(),
                    rtol=1e-4,
                    atol=1e-5,
                )
            np.testing.assert_array_equal(
                chunk.digests[rows], image_digests(generated.images.cpu().numpy())
            )
        times = chunk.times
        assert min(times.generator, times.extractor) > 0
        assert times.wall > times.generator + times.extractor
    share = share_elsewhere(chunks)
    assert share is not None
    assert 0 < share < 1


def test_features_do_not_hang_on_the_batch(extractor: FeatureExtractor) -> None:
    """Whatever the process allows its matrix products to be."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 3, 16, 16), dtype=torch.uint8, generator=generator)
    before = torch.get_float32_matmul_precision()
    whole = extractor(images.to(DEVICE))
    try:
        torch.set_float32_matmul_precision("high")
        for batch_size in (1, 7, 64, 100):
            parts = [extractor(part) for part in images.to(DEVICE).split(batch_size)]
            for name, expected in whole.arrays().items():
                found = torch.cat([getattr(part, name) for part in parts])
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_and_recall_are_those_of_the_cpu() -> None:
    generator = np.random.default_rng(0)
    generated = generator.normal(size=(5000, 64)).astype(np.float32) + 100
    reference = generator.normal(size=(3000, 64)).astype(np.float32) * 1.1 + 100
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = precision_recall(generated, reference, device=DEVICE)
    finally:
        torch.set_float32_matmul_precision(before)
    expected = precision_recall(generated, reference)
    # Kernels add up in different orders: a sample may be as near as a neighbour but for rounding.
    assert found.precision == pytest.approx(expected.precision, abs=2 / 5000)
    assert found.recall == pytest.approx(expected.recall, abs=2 / 3000)
    assert 0 < expected.precision < 1
