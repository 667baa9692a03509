"""A run from a job to a directory: fine-tuning by a recipe, a teacher's answers from disk, two runs in one process."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch

import abridged
import teachers
from abridged.core.errors import AbridgedError
from abridged.core.record import environment
from abridged.data.text import load_text
from abridged.models.load import load_model
from abridged.recipe import PLANNED, Recipe
from abridged.training import opened as opened_module
from abridged.training import stages
from abridged.training.job import Job
from abridged.training.loop import Trainer
from abridged.training.offline_teacher import OfflineTeacher
from abridged.training.opened import Opened

EIGHT_BITS = {  # few weights lie where rounding may turn
    "weights": {"bits": 8},
    "embeddings": {"bits": 8},
    "activations": {"bits": None},
}


def losses(directory):
    """The loss at each step that was logged."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "train"]


def test_a_run_from_cached_answers_makes_the_same_student(tmp_path, teacher, text, monkeypatch):
    """All entries of the vocabulary are cached, so that only FP16 tells the two apart."""
    whole = stages.cache_teacher
    monkeypatch.setattr(stages, "cache_teacher", lambda *given, **named: whole(*given, **named, top_k=300))
    answered_by, train = [], Trainer.train

    def watched(self):
        answered_by.append(type(self.run.targets))
        train(self)

    monkeypatch.setattr(Trainer, "train", watched)
    objectives = {"logits": {"temperature": 2.0}, "contrastive": {"weight": 0.1, "dimensions": 8}}
    recipe = teachers.make_recipe(quantize=EIGHT_BITS, objectives=objectives, learning_rate=1e-2)
    plain = abridged.compress(teacher, recipe, text, tmp_path / "plain")
    cached = abridged.compress(teacher, recipe, text, tmp_path / "cached", teacher_cache=tmp_path / "answers")
    assert answered_by[1] is OfflineTeacher
    assert answered_by[0] is not OfflineTeacher
    assert json.loads((tmp_path / "answers" / "context-16" / "cache.json").read_text())["temperature"] == 2.0
    ours, theirs = losses(tmp_path / "plain"), losses(tmp_path / "cached")
    assert theirs == pytest.approx(ours, rel=5e-3)
    assert ours[-1] != pytest.approx(ours[0], rel=2e-2)  # something was learned that could have differed
    before, after = (record["metrics"]["student"]["perplexity"] for record in (plain, cached))
    assert after == pytest.approx(before, rel=2e-3)
    assert cached["metrics"]["teacher"] == plain["metrics"]["teacher"]  # loaded again to be measured


def test_a_teacher_held_in_bf16_makes_the_same_student(tmp_path, teacher, text, monkeypatch):
    """Where products are in bf16. What is measured in the end is the teacher as it came."""
    recipe = teachers.make_recipe(stages=2, objectives={"logits": {}}, mixed_precision="bf16", compile="no")
    held, hold = [], stages.hold_in_bf16

    def watched(model, view):
        hold(model, view)
        held.append({parameter.dtype for parameter in model.parameters()})

    monkeypatch.setattr(stages, "hold_in_bf16", watched)
    one = abridged.compress(teacher, recipe, text, tmp_path / "one")
    assert held == [{torch.bfloat16, torch.float32}]  # once for both stages
    monkeypatch.setattr(stages, "hold_in_bf16", lambda model, view: None)
    two = abridged.compress(teacher, recipe, text, tmp_path / "two")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert one["metrics"] == two["metrics"]
    monkeypatch.setattr(stages, "hold_in_bf16", watched)
    abridged.compress(teacher, recipe, text, tmp_path / "no", overrides=["stages.*.mixed_precision=no"])
    assert len(held) == 1


def test_answers_of_the_teacher_before_are_not_cached(tmp_path, teacher, text):
    recipe = teachers.make_recipe(stages=2, steps=1)
    recipe["stages"][1]["teacher"] = "previous"
    with pytest.raises(AbridgedError, match="a stage asks for the previous one's"):
        abridged.compress(teacher, recipe, text, tmp_path / "out", teacher_cache=tmp_path / "answers")


def test_two_runs_in_one_process_measure_each_its_own_teacher(tmp_path, teacher, text):
    """The same weights, on texts and in contexts of their own."""
    other = teachers.write_text(tmp_path / "other.txt", lines=400)
    for number, (data, context) in enumerate([(text, 16), (text, 8), (other, 8)]):
        recipe = teachers.make_recipe(quantize=EIGHT_BITS, steps=0, context=context)
        record = abridged.compress(teacher, recipe, data, tmp_path / f"{number}")
        (tmp_path / "test.txt").write_text(load_text(data).test)
        alone = abridged.evaluate(teacher, tmp_path / "test.txt", context=context)
        assert record["metrics"]["teacher"]["perplexity"] == pytest.approx(alone["perplexity"], rel=5e-3)
        assert record["metrics"]["teacher"]["context"] == context


def test_finetuning_by_a_recipe_without_methods_is_finetuning(tmp_path, teacher, text):
    settings = {**teachers.TRAINING, "learning_rates": {}}
    stage = {"methods": {}, "objectives": {"labels": {}}, "training": settings}
    abridged.finetune(teacher, text, tmp_path / "recipe", recipe={"name": "own", "stages": [stage]})
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    overrides += ["schedule=linear", "weight_decay=0", "keep=last"]
    abridged.finetune(teacher, text, tmp_path / "plain", overrides=overrides)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("recipe", "plain")]
    assert weights[0] == weights[1]
    assert losses(tmp_path / "recipe")[-1] < losses(tmp_path / "recipe")[0]


def test_finetuning_from_a_teacher_as_well_as_labels(tmp_path, teacher, text):
    """The model as it came is whom its own copy learns from: at first they say the same."""
    settings = {**teachers.TRAINING, "learning_rates": {}, "dropout": 0}
    stage = {"methods": {}, "objectives": {"labels": {}, "logits": {}}, "training": settings}
    abridged.finetune(teacher, text, tmp_path / "out", recipe={"name": "own", "stages": [stage]})
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    distances = [line["logits"] for line in lines if line["event"] == "train"]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[-1] > 1e-6


def test_finetuning_by_a_recipe_with_methods_is_stored_packed(tmp_path, text):
    """From a description, which no `compress` takes: nothing there could teach."""
    import yaml

    described = {"architecture": "gpt2", "tokenizer": {"vocab_size": 300}}
    described["model"] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(described))
    recipe = teachers.make_recipe(objectives={"labels": {}}, learning_rate=1e-2, steps=20)
    record = abridged.finetune(tmp_path / "model.yaml", text, tmp_path / "out", recipe=recipe)
    assert record["size"]["ratio"] > 4
    assert record["metrics"]["student"]["perplexity"] < record["metrics"]["teacher"]["perplexity"]
    model, _ = load_model(tmp_path / "out")
    assert model.hf_quantizer is not None
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_compressing_with_nothing_that_compresses_is_refused_before_any_work(tmp_path, text):
    recipe = {"name": "empty", "stages": [{"methods": {}, "objectives": {"labels": {}}}]}
    with pytest.raises(AbridgedError, match="recipe empty has no methods"):
        abridged.compress("no-such-model", recipe, text, tmp_path / "out")


def test_a_job_gives_every_stage_its_seed():
    job = Job(model="m", data="d", output="o", recipe="vtrans", seed=7, overrides=["stages.0.steps=3"])
    recipe = job.loaded_recipe()
    assert [stage.training.seed for stage in recipe.stages] == [7, 7]
    assert recipe.stages[0].training.steps == 3
    assert [stage.training.seed for stage in Recipe.load("vtrans").stages] == [0, 0]


def test_a_dtype_that_weights_are_not_stored_in():
    with pytest.raises(AbridgedError, match="float32 or float16, not int8"):
        Job(model="m", data="d", output="o", dtype="int8")


VERBS = {
    "compress": lambda **named: abridged.compress("no/model", "best-2-2-8", "nowhere.txt", **named),
    "finetune": lambda **named: abridged.finetune("no/model", "nowhere.txt", **named),
    "trim": lambda **named: abridged.trim("no/model", "nowhere.txt", **named),
}


@pytest.mark.parametrize("verb", VERBS)
def test_where_the_output_goes_is_asked_before_anything_is_read(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("")
    for output, words in (("", "no name of its own"), (".", "no name"), ("photos", "abridged did not write that")):
        with pytest.raises(AbridgedError, match=words):
            VERBS[verb](output=output, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "one.jpg"]


def test_model_and_data_are_not_replaced(tmp_path, teacher, text):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(teacher, model)
    data.mkdir()
    shutil.copy(text, data / "text.txt")
    for place in (model, data):
        (place / "abridged.json").write_text("{}")  # as if abridged had written it
    before = sorted(tmp_path.rglob("*"))
    calls = (
        lambda output: abridged.compress(model, "best-2-2-8", data, output, overwrite=True),
        lambda output: abridged.finetune(model, data / "text.txt", output, overwrite=True),
        lambda output: abridged.trim(model, data, output, overwrite=True),
        lambda output: abridged.trim("bundled", "wikitext-2", output, also=data / "text.txt", overwrite=True),
    )
    for call in calls:
        for output in (model, data) if call is not calls[3] else (data,):
            with pytest.raises(AbridgedError, match="is, or has in it,"):
                call(output)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(AbridgedError, match="the teacher cache .* would be in the output"):
        abridged.compress(model, "best-2-2-8", data, tmp_path / "new", teacher_cache=tmp_path / "new" / "cache")


def test_what_decides_the_result_is_the_same_when_a_run_goes_on(tmp_path, teacher, text, monkeypatch, capsys):
    data = tmp_path / "text.txt"
    shutil.copy(text, data)
    job = Job(model=teacher, recipe=teachers.make_recipe(), data=data, output=tmp_path / "out")
    with Opened(job) as opened:
        opened.work.save_state({}, {"stage": 0})
    goes_on = replace(job, resume=True)

    def refused(job, words):
        with pytest.raises(AbridgedError, match=rf"cannot resume .*: its {words} differ"):
            Opened(job).__enter__()

    with Opened(goes_on):
        pass
    refused(replace(goes_on, teacher_cache=tmp_path / "answers"), "teacher cache")
    refused(replace(goes_on, kind="finetune"), "kind")
    versions = environment()
    monkeypatch.setattr(opened_module, "environment", lambda: copy.deepcopy(versions))
    versions["versions"]["torch"] = "1.0"
    with Opened(goes_on):
        assert "note: the run was begun with torch" in capsys.readouterr().err
    versions["versions"]["abridged"] = "9.9"
    refused(goes_on, r"version \(.*\)")
    versions["versions"]["abridged"] = abridged.__version__
    changed = data.read_text()
    data.write_text(changed[:-8] + "zz zzzz\n")  # at the end, which no stage trains on
    refused(goes_on, "validation or test text")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_generators_do_not_take_is_refused_at_once(seed):
    with pytest.raises(AbridgedError, match="seed must be between 0 and 4294967295"):
        Job(model="m", data="d", output="o", seed=seed)


def test_a_job_has_something_to_do():
    with pytest.raises(AbridgedError, match="give a recipe, or a size"):
        Job(model="m", data="d", output="o")
    with pytest.raises(AbridgedError, match="a size is for compressing"):
        Job(kind="finetune", model="m", data="d", output="o", size="40MB")
    with pytest.raises(AbridgedError, match="speed and prune: these are limits of a plan, which needs a size"):
        Job(model="m", data="d", output="o", recipe=PLANNED, speed="2x", prune=True)
    assert Job(model="m", data="d", output="o", size="40MB").loaded_recipe().name == PLANNED
