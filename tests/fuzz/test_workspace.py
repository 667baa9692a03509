"""Runs killed at their operations on files, and damaged between: the right result, or one sentence; nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzing import SECONDS, SEED

#: Seeds of what once failed, one a file.
REGRESSIONS = Path(__file__).parents[1] / "regressions"
RUNS = 200  #: where no time is given


def tried(folder, seeds, seconds=200.0, every=0):
    """In a process of its own that has loaded little, since it is forked for every run."""
    report = folder / "report.json"
    asked = (str(folder / "place"), str(report), list(seeds), seconds, every)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"import killed_workspace; killed_workspace.trials(*{asked!r})"]
    subprocess.run(command, env=environment, check=True, timeout=seconds + 120)
    return json.loads(report.read_text())


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_operation(tmp_path, every):
    found = tried(tmp_path, [32], every=every)  # one step, over what is there
    assert found["wrong"] == {}
    assert found["count"] > 60


def test_what_once_failed(tmp_path):
    seeds = [json.loads(path.read_text())["seed"] for path in sorted(REGRESSIONS.glob("workspace-*.json"))]
    assert tried(tmp_path, [*seeds, 3])["wrong"] == {}


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_killed_and_damaged_at_random(tmp_path):
    first = 1000 + SEED
    found = tried(tmp_path, range(first, first + (5000 if SECONDS else RUNS)), SECONDS or 600.0)
    for seed, wrong in found["wrong"].items():
        REGRESSIONS.mkdir(exist_ok=True)
        (REGRESSIONS / f"workspace-{seed}.json").write_text(json.dumps({"seed": int(seed), "wrong": wrong}, indent=1))
    print(f"{found['count']:,} runs")
    assert found["wrong"] == {}
