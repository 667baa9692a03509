"""Random runs in a workspace, killed at random operations on files, and damaged between: functions of a seed."""

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from abridged.core.errors import AbridgedError
from abridged.training.workspace import Workspace
from killed import Operations, contents, forked

#: Of a seed, how many operations its run takes when nothing happens to it, and what it makes.
_UNDISTURBED: dict[int, tuple[int, Any]] = {}
_REFUSED, _NOTHING = 3, "nothing is left to resume"


def run(output: Path, seed: int, **options: bool) -> None:
    """Sums up some numbers, keeping the best, and publishes what has come of it: all that a training run asks for."""
    draw = random.Random(seed)
    steps, save, keep = draw.randint(1, 5), draw.randint(1, 3), draw.randint(1, 3)
    try:
        with Workspace(output, **options) as work:
            work.check_same_run({"seed": seed})
            found = work.load_state() if work.resume else None
            total, done = (found[0]["total"], found[1]["step"]) if found else (torch.zeros(3), 0)
            if not found:
                work.save_state({"total": total}, {"stage": 0, "step": 0})
            work.forget_metrics_after(0, done)
            for step in range(done + 1, steps + 1):
                total = 3 * total + torch.tensor([float(seed % 97), step, 1])
                work.log({"event": "train", "stage": 0, "step": step})
                if step % keep == 0:
                    work.save_best(0, {"total": total})
                if step % save == 0:
                    work.save_state({"total": total}, {"stage": 0, "step": step})
            best = work.load_best(0)
            made = {"total": total} if best is None else {"total": total, "best": best["total"]}
            work.finished.mkdir(parents=True)
            save_file(made, work.finished / "model.safetensors")
            (work.finished / "abridged.json").write_text("{}")
            shutil.copyfile(work.folder / "metrics.jsonl", work.finished / "metrics.jsonl")
            work.publish()
    except AbridgedError as error:
        print(error)
        raise SystemExit(_REFUSED) from None


def damage(folder: Path, draw: random.Random) -> str:
    """Change one file of a workspace; returns what was done, or "" where there is none."""
    files = sorted(path for path in folder.glob("*") if path.is_file() and path.name != "lock")
    if not files:
        return ""
    path, how = draw.choice(files), draw.choice(("flip", "cut", "remove"))
    held = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    elif how == "cut":
        path.write_bytes(held[: draw.randrange(len(held) + 1)])
    elif held:
        held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
        path.write_bytes(held)
    return f"{how} {path.name}"


def trial(operations: Operations, output: Path, seed: int, at: int | None = None) -> tuple[list[str], int]:
    """One run, killed up to three times, or once at operation `at`, and then brought to its end.

    Returns what was wrong, and the operations of the undisturbed run.
    """
    draw, story = random.Random(seed), []
    overwrite, folder = draw.random() < 0.5, output.with_name(f"{output.name}.partial")

    def prepare() -> None:
        shutil.rmtree(output.parent, ignore_errors=True)
        output.parent.mkdir(parents=True)
        if overwrite:
            output.mkdir()
            (output / "abridged.json").write_text("{}")
            (output / "metrics.jsonl").write_text("")
            (output / "precious").write_text("old")

    def counted(kill: int, note: Path | None = None, **options: bool) -> None:
        with operations.count(kill) as seen:
            run(output, seed, **options)
        if note is not None:
            note.write_text(str(len(seen)))

    prepare()
    good = contents(output) if overwrite else None
    if seed not in _UNDISTURBED:
        note = output.parent.with_name("operations")
        code, said = forked(partial(counted, 0, note, overwrite=overwrite))
        if code:
            return [f"undisturbed: {code} {said}"], 0
        _UNDISTURBED[seed] = int(note.read_text()), contents(output)
        prepare()
    total, wanted = _UNDISTURBED[seed]
    first, damaged, wrong = True, "", []
    for kill in [at] if at else [*(draw.randint(1, total) for _ in range(draw.randint(1, 3))), 0, 0]:
        options = {"overwrite": overwrite} if first else {"resume": True}
        code, said = forked(partial(counted, kill, **options))
        there = contents(output)
        story.append(f"{options} killed at {kill}: {code} {said[-200:]} {damaged}")
        if code not in (0, _REFUSED, -signal.SIGKILL):
            wrong.append("another end than any that a person may meet")
        if overwrite and there != wanted and good not in (there, contents(folder / "replaced")):
            wrong.append("what was there is gone")
        if code == 0 or there == wanted:
            break
        if code == _REFUSED:
            begun = overwrite and there == good and _NOTHING in said
            if not damaged and not begun:
                wrong.append("refused")
            first, damaged = True, damaged if begun else ""
            if not begun:  # a damaged run is begun anew
                overwrite = True
            continue
        first = False
        if at is None and draw.random() < 0.3:
            damaged = damage(folder, draw) or damaged
    else:
        code, said = forked(partial(counted, 0, resume=True) if not first else partial(counted, 0, overwrite=overwrite))
        if code == _REFUSED and not wrong:
            code, said = forked(partial(counted, 0, overwrite=True))
        story.append(f"at last: {code} {said[-200:]}")
    if contents(output) != wanted:
        wrong.append("another result")
    return [f"seed {seed}: {one}; {story}" for one in wrong], total


def trials(place: str, report: str, seeds: list[int], seconds: float, every: int) -> None:
    """Trials (see `trial`) of `seeds`, at every `every`-th operation unless that is 0, for so many seconds at most."""
    output, began, count, wrong = Path(place) / "here" / "out", time.monotonic(), 0, {}
    operations = Operations(output.parent)
    for seed in seeds:
        found, total = trial(operations, output, seed, 1 if every else None)
        for at in range(1 + every, total + 1, every) if every else ():
            found += trial(operations, output, seed, at)[0]
        count += total if every else 1
        if found:
            wrong[seed] = found
        if time.monotonic() - began > seconds:
            break
    Path(report).write_text(json.dumps({"wrong": wrong, "count": count}))
