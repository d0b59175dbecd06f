"""Text encoders on a GPU, where texts of about the same length are encoded together."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lpd.texts.encoders import TextEncoder

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

TEXTS = ["a red three", "", "a red seven", "b", "c", "x" * 100, "дом"]


@pytest.mark.parametrize("kind", ["t5", "bert", "gemma2", "llama"])
def test_hidden_states_are_nearly_those_of_a_cpu(
    kind: str, text_encoder_folder: Callable[[str], Path]
) -> None:
    folder = text_encoder_folder(kind)
    expected = TextEncoder.from_pretrained(folder, torch.device("cpu"), max_length=24)
    for dtype, tolerance in ((torch.float32, 0.02), (None, 0.3)):
        encoder = TextEncoder.from_pretrained(
            folder, torch.device("cuda", 0), max_length=24, dtype=dtype
        )
        assert encoder.identity == expected.identity
        for one, other in zip(encoder.encode(TEXTS), expected.encode(TEXTS), strict=True):
            assert one.device == torch.device("cpu")
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["t5", "bert", "gemma2", "llama"])
def test_a_batch_of_many_lengths_takes_few_calls(
    kind: str, text_encoder_folder: Callable[[str], Path]
) -> None:
    folder = text_encoder_folder(kind)
    encoder = TextEncoder.from_pretrained(
        folder, torch.device("cuda", 0), max_length=24, dtype=torch.float32
    )
    shapes: list[torch.Size] = []
    embeddings = encoder._model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    texts = ["ab"[count % 2] * count for count in range(1, 100)]
    found = encoder.encode(texts)
    assert [shape[1] for shape in shapes] == [16, 24]
    expected = TextEncoder.from_pretrained(folder, torch.device("cpu"), max_length=24)
    for one, other in zip(found, expected.encode(texts), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_encoding_does_not_wait_for_what_the_device_does_beside_it(
    text_encoder_folder: Callable[[str], Path],
) -> None:
    device = torch.device("cuda", 0)
    encoder = TextEncoder.from_pretrained(text_encoder_folder("llama"), device, max_length=24)
    with ThreadPoolExecutor(1) as pool:  # as batches are prepared
        expected = pool.submit(encoder.encode, TEXTS).result()
        torch.cuda._sleep(10**10)  # some seconds
        found = pool.submit(encoder.encode, TEXTS).result()
        assert not torch.cuda.current_stream(device).query()
    torch.cuda.synchronize(device)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
