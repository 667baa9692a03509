"""Two processes that find each other over gloo do what one does."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import isolated
from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.training.processes import attention_for, together
from teachers import make_recipe, write_text


def train_only(model, recipe, data, output, keep):
    """All stages of compress but for packing and measuring; the last training state goes to `keep`."""
    import shutil

    from abridged.training.job import Job
    from abridged.training.opened import Opened
    from abridged.training.stages import Stages

    with Opened(Job(model=model, recipe=recipe, data=data, output=output)) as opened:
        Stages(opened).run()
        if opened.main:
            for name in ("state.safetensors", "metrics.jsonl"):
                shutil.copyfile(opened.work.folder / name, Path(keep) / name)


def prune_only(model, recipe, overrides, data, output, keep):
    """The first stage of a recipe that prunes; each process writes which units it has kept."""
    from accelerate import PartialState

    from abridged.storage.compressed import compressed_of
    from abridged.training.job import Job
    from abridged.training.opened import Opened
    from abridged.training.stages import Stages

    with Opened(Job(model=model, recipe=recipe, overrides=overrides, data=data, output=output)) as opened:
        stages = Stages(opened)
        stages.run_stage(0)
        found = compressed_of(stages.student)
        kept = [{path: ranked.kept for path, ranked in found.heads.items()}, found.hidden_units.tolist()]
        Path(keep, f"{PartialState().process_index}.json").write_text(json.dumps(kept))


class Drawing(torch.nn.Module):
    """Draws a number in each pass, as dropout and the noise of masks do."""

    def __init__(self):
        super().__init__()
        self.weight, self.drawn = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, batch, teacher):
        self.drawn.append(torch.rand(()).item())
        return self.weight.square().sum(), {}


def draw(output, keep):
    """Some steps of a module that draws; each process writes what it has drawn."""
    import numpy as np
    from accelerate import PartialState

    from abridged.core.settings import TrainingSettings
    from abridged.data.blocks import Blocks
    from abridged.training.loop import Run, train
    from abridged.training.workspace import Workspace

    rank = PartialState(cpu=True).process_index
    system, settings = Drawing(), TrainingSettings(steps=3, batch_size=4, compile="no", save_every=100)
    with Workspace(output, main=rank == 0) as work:
        train(Run(system, Blocks(np.zeros(99, dtype=np.int32), 8), settings, work))
    Path(keep, f"{rank}.json").write_text(json.dumps(system.drawn))


def fail_in_one(which):
    """Both processes enter a block; one of them fails in it."""
    import os

    from abridged.core.settings import TrainingSettings
    from abridged.training.processes import make_accelerator

    rank = make_accelerator(TrainingSettings()).process_index
    try:
        with together():
            if rank == which:
                raise AbridgedError("the disk is full")
    except AbridgedError as error:
        print(error)
        os._exit(1)


def steps(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bank", ["position", "vocabulary"])
def test_two_processes_make_the_student_of_one(tmp_path, teacher, bank):
    """The same sequences at each step, half of them in each process: only the order of the sums differs.

    The text is read twice, so that what the bank was given in the first pass counts in the second.
    """
    quantize = {"weights": {"bits": 8}, "embeddings": {"bits": 8}}  # few weights lie where rounding may turn
    objectives = {"logits": {}, "contrastive": {"weight": 0.5, "bank": bank, "dimensions": 8, "temperature": 1.0}}
    options = {"steps": 6, "batch_size": 8, "save_every": 3, "evaluate_every": 3}
    recipe = make_recipe(stages=2, quantize=quantize, objectives=objectives, **options)
    text = write_text(tmp_path / "text.txt", lines=25)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    arguments = (str(teacher), recipe, str(text))
    ended = isolated.call(train_only, *arguments, one / "out", one, folder=one / "process")
    assert ended.code == 0, ended.stderr
    for ended in isolated.call_all(train_only, *arguments, two / "out", two, folder=two / "processes"):
        assert ended.code == 0, ended.stderr

    ours, theirs = steps(one), steps(two)
    assert [(m["event"], m["stage"], m["step"]) for m in theirs] == [(m["event"], m["stage"], m["step"]) for m in ours]
    for a, b in zip(ours, theirs, strict=True):
        tolerance = 1e-4 if a["step"] == 1 and a["stage"] == 0 else 1e-2
        names = a.keys() - {"tokens_per_second", "event"}
        assert [b[n] for n in names] == pytest.approx([a[n] for n in names], rel=tolerance, abs=1e-5)
    before, after = load_file(one / "state.safetensors"), load_file(two / "state.safetensors")
    assert before.keys() == after.keys()
    start = load_file(teacher / "model.safetensors")
    weights = {
        n: n.removeprefix("system.model.").replace(".source", "") for n in before if n.startswith("system.model.")
    }
    weights = {n: original for n, original in weights.items() if n.endswith("source.weight") and ".h." in n}
    assert len(weights) == 8
    for name, original in weights.items():
        moved = (before[name] - start[original].t()).norm()
        assert (before[name] - after[name]).norm() < 0.05 * moved, name
    banks = "system.terms.contrastive.bank"
    rows, scales = ([state[f"{banks}.{part}"] for state in (before, after)] for part in ("rows", "scales"))
    assert torch.equal(*rows)
    assert len(rows[0]) > 50
    torch.testing.assert_close(*scales, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("masks", ["vib", "taylor"])
def test_two_processes_remove_the_same_units(tmp_path, teacher, masks):
    """Each sees other sequences, and so other gradients by which units are ranked."""
    changes = ["stages.*.steps=10", "stages.*.batch_size=4", "budget.parameters=0.6", "stages.*.compile=no"]
    changes += [f"stages.0.methods.prune.masks={masks}", "stages.0.methods.prune.measure=0.3"]
    text = write_text(tmp_path / "text.txt", lines=25)
    arguments = (str(teacher), "vtrans", changes, str(text), tmp_path / "out", tmp_path)
    for ended in isolated.call_all(prune_only, *arguments, folder=tmp_path / "processes"):
        assert ended.code == 0, ended.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second


def test_each_process_draws_numbers_of_its_own(tmp_path):
    """Equal ones would drop the same units, and draw the same noise, on every GPU."""
    for ended in isolated.call_all(draw, tmp_path / "out", tmp_path, folder=tmp_path / "processes"):
        assert ended.code == 0, ended.stderr
    drawn = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert len({number for process in drawn for number in process}) == sum(map(len, drawn))


def test_the_command_line_in_two_processes(tmp_path, teacher, text, recipe_file):
    student = tmp_path / "student"
    arguments = ["compress", teacher, "--recipe", recipe_file(steps=3), "--data", text, "--output", student]
    main, other = isolated.call_all(isolated.command_line, *map(str, arguments), folder=tmp_path / "processes")
    assert (main.code, other.code) == (0, 0), main.stderr + other.stderr
    assert "written to" in main.stdout
    assert other.stdout == ""
    assert (student / "model.safetensors").exists()
    assert not (tmp_path / "student.partial").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 3}, "batch_size 3 does not divide among 2 processes"),
        ({"context": 17}, "training.context is 17, but the model's positions end at 16"),
    ],
)
def test_a_fault_ends_all_processes(tmp_path, teacher, text, recipe_file, changes, sentence):
    arguments = ["compress", teacher, "--recipe", recipe_file(**changes), "--data", text, "--output", tmp_path / "out"]
    for ended in isolated.call_all(isolated.command_line, *map(str, arguments), folder=tmp_path / "processes"):
        assert ended.code == 1
        assert sentence in ended.stderr


def test_a_fault_of_the_main_process_alone_ends_the_others(tmp_path, teacher, text, recipe_file):
    (tmp_path / "out").mkdir()
    arguments = ["compress", teacher, "--recipe", recipe_file(), "--data", text, "--output", tmp_path / "out"]
    began = time.monotonic()
    main, other = isolated.call_all(isolated.command_line, *map(str, arguments), folder=tmp_path / "processes")
    assert (main.code, other.code) == (1, 1)
    assert "exists already" in main.stderr
    assert "another process of this run has stopped" in other.stderr
    assert time.monotonic() - began < isolated.TIMEOUT / 2


@pytest.mark.parametrize("which", [0, 1])
def test_whoever_fails(tmp_path, which):
    ended = isolated.call_all(fail_in_one, which, folder=tmp_path)
    assert [e.code for e in ended] == [1, 1]
    assert ended[which].stdout == "the disk is full\n"
    assert ended[1 - which].stdout == "another process of this run has stopped, and says why\n"


def test_alone_it_lets_faults_through():
    with pytest.raises(ZeroDivisionError), together():
        raise ZeroDivisionError
    with together():
        pass


@pytest.mark.slow
def test_accelerate_launch(tmp_path, teacher, text, recipe_file):
    import subprocess
    import sys

    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "abridged"]
    arguments = ["compress", teacher, "--recipe", recipe_file(steps=3), "--data", text, "--output", tmp_path / "out"]
    ended = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written to") == 1
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("tokens", "source", "bf16", "fused"),
    [
        (16, None, True, False),
        (16, 32, True, False),
        (16, None, False, True),
        (200, None, True, True),
        (16, 200, True, True),
    ],
)
def test_short_texts_in_bf16_on_a_cpu_go_without_fused_attention(tokens, source, bf16, fused):
    ids = torch.zeros(2, tokens, dtype=torch.long)
    source_ids = None if source is None else torch.zeros(2, source, dtype=torch.long)
    batch = Batch.of(input_ids=ids, labels=ids, index=torch.arange(2), source_ids=source_ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), attention_for(batch):
        assert torch.backends.cuda.flash_sdp_enabled() is fused
