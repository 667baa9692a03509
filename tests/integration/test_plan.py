"""A size that somebody names, through the command line: planned, compressed, told."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import isolated
from abridged.recipe import Recipe
from teachers import make_recipe


@pytest.fixture
def run(tmp_path, teacher, text):
    """run(verb, *more, stop=…) -> how the command ended, on a tiny teacher and its text."""
    count = iter(range(100))

    def run(verb, *more, model=teacher, **launch):
        arguments = [verb, model, "--data", text, *more]
        return isolated.abridged(*arguments, folder=tmp_path / f"process-{next(count)}", **launch)

    return run


@pytest.fixture
def frame(tmp_path):
    """A recipe that may be planned, of six steps; rounding to nearest, which has the fewest forms."""
    path, simple = tmp_path / "frame.yaml", {"bits": 4, "quantizer": "minmax", "granularity": "per_channel"}
    quantize = {"weights": simple, "embeddings": simple, "activations": {"bits": None}}
    path.write_text(yaml.safe_dump(make_recipe(objectives={"logits": {}}, quantize=quantize)))
    return path


def test_a_plan_is_printed_written_and_carried_out(run, frame, tmp_path):
    planned = run("plan", "--size", "20kB", "--recipe", frame, "--tokens", 400, "--output", tmp_path / "plan.yaml")
    assert planned.code == 0, planned.stderr
    table = [line for line in planned.stdout.splitlines() if " MB " in line]
    assert len(table) >= 10
    assert sum("<- planned" in line for line in table) == 1
    assert (tmp_path / "plan.svg").read_text().startswith("<svg xmlns=")
    recipe = Recipe.load(tmp_path / "plan.yaml")
    assert 0 < recipe.expected.file_bytes <= 20 * 2**10

    again = run("plan", "--size", "20kB", "--recipe", frame, "--tokens", 400, "--output", tmp_path / "plan.yaml")
    assert again.code == 1
    assert "exists" in again.stderr

    output = tmp_path / "small"
    ended = run("compress", "--recipe", tmp_path / "plan.yaml", "--output", output, "--set", "stages.0.steps=0")
    assert ended.code == 0, ended.stderr
    size = (output / "model.safetensors").stat().st_size
    assert size == recipe.expected.file_bytes
    record = json.loads((output / "abridged.json").read_text())
    rise = math.log(record["metrics"]["student"]["perplexity"] / record["metrics"]["teacher"]["perplexity"])
    told = f"planned {size:,} bytes and a loss of {recipe.expected.loss:.4f} nats a token before training"
    assert f"{told}; became {size:,} bytes and {rise:.4f}" in ended.stdout
    page = (output / "report.html").read_text()
    assert "Planned, and what came of it" in page
    assert f"{size:,}" in page


def made(run, plan, output, **given):
    """Bytes of the file that a plan's recipe makes, without training."""
    stages = range(len(Recipe.load(plan).stages))
    steps = [word for stage in stages for word in ("--set", f"stages.{stage}.steps=0")]
    ended = run("compress", "--recipe", plan, "--output", output, *steps, **given)
    assert ended.code == 0, ended.stderr
    return (output / "model.safetensors").stat().st_size


def test_a_plan_within_a_limit_of_memory_says_what_it_takes_here(run, frame, tmp_path):
    plan = tmp_path / "plan.yaml"
    given = ["plan", "--size", "20kB", "--recipe", frame, "--tokens", 100, "--output", plan]
    planned = run(*given, "--memory", "1GB")
    assert planned.code == 0, planned.stderr
    assert planned.stdout.splitlines()[0].split()[-1] == "memory"
    recipe = Recipe.load(plan)
    assert recipe.expected.tokens_per_second is None
    assert 0 < recipe.expected.memory < 2**30
    refused = run(*given, "--memory", "1kB", "--overwrite")
    assert refused.code == 1
    assert "of memory on this machine: the least is" in refused.said[-1]
    assert Recipe.load(plan) == recipe


@pytest.mark.slow
def test_a_plan_that_prunes_is_carried_out_to_the_byte(run, frame, tmp_path):
    """Of so few bytes that no other plan has them."""
    plan = tmp_path / "plan.yaml"
    given = ["plan", "--recipe", frame, "--tokens", 200, "--output", plan]
    smallest = run(*given, "--size", "1kB")
    size = int(re.search(r"\(([\d,]+) bytes\)", smallest.said[-1])[1].replace(",", "")) - 100
    planned = run(*given, "--prune", "--size", f"{size}B")
    assert planned.code == 0, planned.stderr
    recipe = Recipe.load(plan)
    assert "prune" in recipe.stages[0].methods
    assert made(run, plan, tmp_path / "small") == recipe.expected.file_bytes <= size


def test_a_head_of_its_own_that_the_config_calls_tied_is_planned_as_it_is(run, frame, teacher, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(teacher)
    weights = load_file(Path(teacher) / "model.safetensors")
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    own = tmp_path / "own"
    shutil.copytree(teacher, own)
    save_file(weights | {"lm_head.weight": head}, own / "model.safetensors", {"format": "pt"})
    plan = tmp_path / "plan.yaml"
    planned = run("plan", "--size", "26kB", "--recipe", frame, "--tokens", 200, "--output", plan, model=own)
    assert planned.code == 0, planned.stderr
    assert "lm_head" in planned.stdout
    assert made(run, plan, tmp_path / "small", model=own) == Recipe.load(plan).expected.file_bytes


def test_compress_for_a_size_plans_and_goes_on_with_that_plan_after_a_kill(run, frame, tmp_path):
    output = tmp_path / "small"
    given = [
        "compress",
        "--size",
        "20kB",
        "--recipe",
        frame,
        "--output",
        output,
        "--set",
        "stages.0.objectives.logits.weight=2",
    ]
    stop = isolated.Stop("abridged.training.workspace:Workspace.save_state", call=2, when="after")
    killed = run(*given, stop=stop)
    assert killed.code == -9
    kept = json.loads((tmp_path / "small.partial" / "run.json").read_text())["recipe"]
    ended = run(*given, "--resume")
    assert ended.code == 0, ended.stderr
    assert "sensitivity" not in ended.stderr
    record = json.loads((output / "abridged.json").read_text())
    assert record["recipe"] == kept
    assert record["size"]["file_bytes"] == kept["expected"]["file_bytes"] <= 20 * 2**10


def test_what_cannot_be_done_is_said_in_a_sentence(run, frame, tmp_path):
    for size, told in [
        ("1kB", "the smallest that recipe tiny"),
        ("9GB", "needs no compression"),
        ("x", "--size cannot"),
    ]:
        ended = run("plan", "--size", size, "--recipe", frame, "--tokens", 100, "--output", tmp_path / "no.yaml")
        assert ended.code == 1
        assert told in ended.stderr.splitlines()[-1]
        assert not (tmp_path / "no.yaml").exists()
    nothing = run("compress", "--output", tmp_path / "small")
    assert nothing.code == 2
    assert "--size" in nothing.stderr


@pytest.mark.slow
def test_on_the_bundled_teacher_a_plan_is_no_worse_than_one_width_for_all(tmp_path):
    """Untrained, at the bytes of 4 bits for all, on few tokens."""
    import torch

    from abridged import families
    from abridged.core.settings import TrainingSettings
    from abridged.data.opening import open_data
    from abridged.models.described import described
    from abridged.models.load import load_dense, load_tokenizer
    from abridged.planning.make import batches
    from abridged.planning.plan import Planner
    from abridged.planning.sensitivity import Text, stored_so
    from abridged.tasks import task_for

    kind, config = described("bundled")
    planner = Planner(kind, config, families.view_of_config(kind, config), Recipe.load("best-2-2-8"))
    model = load_dense("bundled")
    examples = task_for(model, load_tokenizer("bundled", model), open_data("wikitext-2")).examples(
        TrainingSettings(context=128)
    )
    planner.learn(Text(model, batches(examples, 512)), "interpolated")
    others = Text(model, [examples.batch(torch.arange(5000, 5008))])

    def loss(assignment):
        with stored_so(model, planner.matrices, assignment):
            return others.divergence()

    offered = planner.forms["transformer.wte"]
    four = next(form for form in offered if form.whole and form.bits == 4 and form.weights.group_size is None)
    alike = planner.assess(dict.fromkeys(planner.forms, four))
    planned = planner.at(alike.file_bytes)
    assert planned.file_bytes <= alike.file_bytes
    assert loss(planned.assignment) < loss(alike.assignment)
