"""Mutated checkpoints of every kind, in every verb that reads one: refused in a sentence, or the original's result."""

import json
import os
from pathlib import Path

import pytest

from fuzzing import SEED, seeds
from mutations import Trials, draw

REGRESSIONS = Path(__file__).parents[1] / "regressions" / "checkpoints"
MUTATIONS = 500  #: where no time is given


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_mutated_checkpoints(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    trials, count, failed = Trials(teacher, tmp_path), 0, {}
    for seed in seeds(MUTATIONS):
        trial = draw(seed)
        count += 1
        if wrong := trials.wrong(trial):
            failed[trial["seed"]] = wrong
            path = REGRESSIONS / f"{trial['seed']}.json"
            path.write_text(json.dumps(trial | {"wrong": wrong}, indent=1) + "\n")
    found = {"mutations": count, "refused": trials.refused, "failed": failed, "first_seed": SEED}
    print(f"\ncheckpoints: {count:,} mutations, {trials.refused:,} refused, {len(failed)} failed")
    if report := os.environ.get("ABRIDGED_FUZZ_REPORT"):
        Path(report).write_text(json.dumps(found, indent=1) + "\n")
    assert not failed
