"""The page of the architecture and the contract that `make lint` holds name the same floors in the same order."""

import re
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
ROOT = Path(__file__).parents[1]


def test_the_table_of_floors_is_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = [layer.replace(" | ", ", ") for layer in contracts[0]["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("<!-- floors -->")[2].partition("<!-- /floors -->")[0]
    told = [row.partition("|")[0].replace("`", "").strip() for row in re.findall(r"^\| (`.*)$", table, re.MULTILINE)]
    assert told == held
