"""The paper's numbers stand in one place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lpd.errors import InputError
from lpd.evaluation.generated.published import NUMBERS, ROWS, find_row

ROOT = Path(__file__).parents[4]


def test_the_readmes_table_is_the_papers() -> None:
    lines = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in (ROOT / "README.md").read_text().splitlines()
        if re.match(r"\| LPD-X*L-\d+ ", line)
    ]
    told = [(name, *numbers) for name, _parameters, *numbers in lines]
    assert told == [
        (
            row.model.upper().replace("_", "-"),
            str(row.generation_steps),
            str(row.cfg),
            *(f"{getattr(row, number.key):.{number.decimals}f}" for number in NUMBERS),
        )
        for row in ROWS.values()
    ]


def test_a_row_is_found_by_its_name() -> None:
    assert find_row("lpd_xl_512_48").script == "lpd_xl_res512_steps48.sh"
    with pytest.raises(InputError, match=r"no row 'lpd_m_256_20': choose from lpd_l_256_20"):
        find_row("lpd_m_256_20")


@pytest.mark.slow
def test_nobody_waits_for_torch() -> None:
    code = "import sys, lpd.evaluation.generated.published; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
