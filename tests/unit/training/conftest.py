"""What the tests of training share."""

import pytest

from lpd.models.lpd import PRESETS


@pytest.fixture(autouse=True)
def _small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that trains in milliseconds."""
    monkeypatch.setitem(PRESETS, "lpd_test", (2, 32, 2))
