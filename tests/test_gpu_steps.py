"""The steps that are measured on a GPU: each is done once for a device, and one that cannot be done stops no other."""

import subprocess
import sys

import pytest

from abridged.core.errors import AbridgedError
from scripts import benchmark


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """run(*words) -> (steps that were called, exit status), of four that do nothing."""
    gpu = benchmark("gpu")
    called = []

    def step(name, error=None):
        def run(bench):
            called.append(name)
            if error is not None:
                raise error
            return {"seconds": 1.0}

        return name, run

    every = [
        step("one"),
        step("left", gpu.Left("glue is not there")),
        step("failing", AbridgedError("no")),
        step("broken", subprocess.CalledProcessError(2, "python")),
        step("two"),
    ]
    monkeypatch.setattr(gpu, "plan", lambda: iter(every))

    def run(*words):
        called.clear()
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--work", str(tmp_path), *words])
        with pytest.raises(SystemExit) as end:
            gpu.main()
        return [*called], end.value.code

    return run


def test_it_goes_on_where_the_rows_stop(steps, capsys):
    assert steps() == (["one", "left", "failing", "broken", "two"], 1)
    assert "left (glue is not there)" in capsys.readouterr().out
    assert steps() == (["left", "failing", "broken"], 1)


def test_some_steps(steps):
    assert steps("--only", "t*") == (["two"], 0)
    assert steps("--only", "t*") == ([], 0)


def test_rows_of_another_device_do_not_count(steps, monkeypatch):
    assert steps("--only", "one") == (["one"], 0)
    monkeypatch.setattr(benchmark("gpu"), "describe", lambda: {"gpu": "NVIDIA Nothing"})
    assert steps("--only", "one") == (["one"], 0)


def test_every_step_has_a_name_of_its_own():
    names = [name for name, _ in benchmark("gpu").plan()]
    assert len(names) == len({*names})
