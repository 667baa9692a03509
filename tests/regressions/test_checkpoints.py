"""Mutations of checkpoints that once failed."""

import json
from pathlib import Path

import pytest

from mutations import Trials

KEPT = sorted((Path(__file__).parent / "checkpoints").glob("*.json"))


@pytest.fixture(scope="module")
def trials(teacher, tmp_path_factory):
    return Trials(teacher, tmp_path_factory.mktemp("trials"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_it_is_refused_or_the_originals(trials, path):
    assert trials.wrong(json.loads(path.read_text())) is None
