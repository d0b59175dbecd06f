"""Text encoders on a GPU, where texts of one length are encoded together."""

from collections.abc import Callable
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
