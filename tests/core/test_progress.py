"""Progress where nobody watches a terminal: plain lines, soon and seldom."""

import io
import sys

from abridged.core import progress as module
from abridged.core.progress import EVERY, FIRST, Lines, counter, duration, progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_first_line_comes_soon_and_the_others_seldom():
    clock, out = Clock(), io.StringIO()
    lines = Lines("stage 1", out=out, clock=clock)
    for step in range(1, 101):
        clock.now = float(step)
        lines(step, 200, "loss 1.000")
    written = out.getvalue().splitlines()
    assert written[0] == "stage 1: 5 of 200, loss 1.000, 5 s gone, about 195 s left".replace("195 s", "3 min")
    assert len(written) == 1 + int((100 - FIRST) // EVERY)


def test_time_left_counts_what_this_run_has_done():
    clock, out = Clock(), io.StringIO()
    lines = Lines("stage 1", done=90, out=out, clock=clock)
    clock.now = 10.0
    lines(95, 100, "")
    assert out.getvalue() == "stage 1: 95 of 100, 10 s gone, about 10 s left\n"


def test_it_says_how_it_ended_only_where_it_said_anything():
    for seconds, count in ((1.0, 0), (FIRST + 1, 2)):
        clock, out = Clock(), io.StringIO()
        lines = Lines("perplexity", out=out, clock=clock)
        clock.now = seconds
        lines(1, 2, "")
        lines(2, 2, "")
        lines.close()
        assert len(out.getvalue().splitlines()) == count
        assert count == 0 or out.getvalue().endswith(f"2 of 2, {seconds:.0f} s gone\n")


def test_a_job_within_a_job_writes_nothing(capsys, monkeypatch):
    monkeypatch.setattr(module, "FIRST", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with progress("stage 1", 2) as outer:
        with counter("perplexity") as inner:
            inner(1, 3)
        outer(1, loss=2.0, tokens_per_second=1000.0)
    with counter("afterwards") as update:
        update(1, 1)
    written = capsys.readouterr().err
    assert "stage 1: 1 of 2, loss 2.000  1,000 tokens/s" in written
    assert "perplexity" not in written
    assert "afterwards: 1 of 1" in written


def test_durations():
    assert [duration(s) for s in (4.4, 89, 120, 12_000)] == ["4 s", "89 s", "2 min", "3 h 20 min"]
