"""scripts/benchmark/attention.py prints a line for every case, with ratios."""

import math
import re

import pytest

from scripts.benchmark import attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_line_for_every_case(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = attention.BenchmarkConfig(
        device="cpu", num_heads=1, head_dim=8, repetitions=1, dtype=dtype
    )
    attention.run(config)
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.search(rf"torch \d.*{dtype}, 1 heads of 8", head)
    cases = [re.search(r"(\d+) passes.* (attention|block) ", line).groups() for line in lines]
    assert cases == [(p, what) for p in ("256", "20", "8") for what in ("attention", "block")]
    for line in lines:
        # "dense mask 1.234 ms (1.00x)" and the same for "no mask"
        timed = re.findall(r"(dense mask|no mask) +(\S+) ms \((\S+)x\)", line)
        assert [name for name, _, _ in timed] == ["dense mask", "no mask"]
        assert all(math.isfinite(float(n)) and float(n) > 0 for _, *ns in timed for n in ns)
        assert float(timed[0][2]) == 1  # the dense mask's ratio to itself


def test_a_seen_pair_is_counted_once() -> None:
    # Three tokens one by one make 6 rows. Context rows see 1, 2 and 3 rows; query rows see the
    # context before them and themselves: 2, 3 and 4.
    assert attention.visible_share((1, 1, 1)) == pytest.approx((1 + 2 + 3 + 2 + 3 + 4) / 36)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="img_size must be 256 or 512, got 300"):
        attention.BenchmarkConfig(img_size=(256, 300))
    with pytest.raises(ValueError, match=r"float16.*choose from bfloat16, float32"):
        attention.BenchmarkConfig(dtype="float16")
    with pytest.raises(ValueError, match="repetitions must be at least 1, got 0"):
        attention.BenchmarkConfig(repetitions=0)
