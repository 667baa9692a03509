"""Weights that stay on disk: what comes out is what the whole model gives, and no more than one block has values."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import abridged
import isolated
from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods.pruning.masked import ATTRIBUTE
from abridged.models.load import load_dense
from abridged.models.streamed import Weights
from abridged.recipe import Recipe
from abridged.storage.compressed import compressed_of
from abridged.training import plan
from abridged.training.plan import check_frozen
from abridged.training.runners import Frozen, Whole
from abridged.training.state import unique_state
from abridged.training.workspace import Workspace
from isolated import Stop
from texts import pass_of, saved

PRUNE = {"budget": {"parameters": 0.6}, "measure": 0.3, "reconstruct": True, "hidden": "components", "fit_tokens": 100}
TRAINING = {
    "steps": 5,
    "batch_size": 4,
    "freeze_weights": True,
    "learning_rates": {"mask": 0.05, "gain": 5e-3},
    "compile": "no",
    "save_every": 2,
}


def stage_of(runner, prune=PRUNE, **training):
    objectives = {"logits": {"weight": 1.0}}
    stage = {"runner": runner, "methods": {"prune": prune}, "objectives": objectives}
    return Recipe.load({"name": "t", "stages": [{**stage, "training": {**TRAINING, **training}}]}).stages[0]


class Carried:
    """A stage carried out by a runner: the student, and its masks as they were trained."""

    def __init__(self, directory, model, stage, folder, look=lambda student: None):
        view, weights = families.view(model), None
        teacher, self.student = model, copy.deepcopy(model)
        if stage.runner == "frozen":
            weights = Weights(directory)
            teacher, self.student = (weights.on_demand(copy.deepcopy(weights.model), view.blocks) for _ in range(2))
        self.student.config.use_cache = False
        runner = {"whole": Whole, "frozen": Frozen}[stage.runner]

        class Looked(runner):
            def finish(own, student, methods):
                masks = getattr(student, ATTRIBUTE)
                self.masks = {name: one.detach().clone() for name, one in masks.named_parameters()}
                super().finish(student, methods)

        with Workspace(folder, main=True) as work:
            of = {"validate": lambda student: None, "teacher": teacher.requires_grad_(False), "weights": weights}
            given = pass_of(model, stage, work, **of)
            look(self.student)
            Looked(given).run(self.student)


def far(one, other):
    """The largest difference between two sets of tensors, over the largest number of each."""
    assert one.keys() == other.keys()
    return max(
        float((tensor.float() - other[name].float()).abs().max() / other[name].float().abs().max().clamp_min(1e-6))
        for name, tensor in one.items()
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "opt", "bart"])
def test_masks_cut_and_fit_are_those_of_the_whole_model(name, tmp_path):
    directory, model = saved(name, tmp_path)
    found = {
        runner: Carried(directory, model, stage_of(runner, mixed_precision="no"), tmp_path / runner)
        for runner in ("whole", "frozen")
    }
    assert far(found["frozen"].masks, found["whole"].masks) < 1e-5
    whole, frozen = (found[runner].student for runner in ("whole", "frozen"))
    assert far(frozen.state_dict(), whole.state_dict()) < 1e-5
    assert compressed_of(frozen).shapes == compressed_of(whole).shapes
    assert compressed_of(frozen).unquantized_dtype == "float32"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_files_in_half_precision(tmp_path, precision):
    """Masks are those of the same weights in FP32, and what is cut is kept in 16 bits."""
    directory, model = saved("llama", tmp_path)
    model.to(torch.bfloat16).save_pretrained(directory)
    model = load_dense(directory)
    more = {"mixed_precision": precision}
    whole = Carried(directory, model, stage_of("whole", gradient_checkpointing=True, **more), tmp_path / "whole")
    frozen = Carried(directory, model, stage_of("frozen", **more), tmp_path / "frozen")
    assert far(frozen.masks, whole.masks) < 1e-5
    assert compressed_of(frozen.student).shapes == compressed_of(whole.student).shapes
    assert compressed_of(frozen.student).unquantized_dtype == "bfloat16"
    assert frozen.student.get_submodule("model.layers.0.mlp.down_proj").weight.dtype == torch.bfloat16
    assert far(frozen.student.state_dict(), whole.student.state_dict()) < (0.02 if precision == "no" else 0.2)


def test_one_block_has_values_at_a_time_and_nothing_of_them_is_kept(tmp_path):
    directory, model = saved("llama", tmp_path)
    blocks, most, saw = families.view(model).blocks, 0, 0

    def look(student):
        def count(module, given):
            nonlocal most, saw
            held = [path for path in blocks if not student.get_submodule(path).mlp.up_proj.weight.is_meta]
            most, saw = max(most, len(held)), saw + 1
            assert student.training or not torch.is_grad_enabled()
            if student.training:
                inner = [n for n in unique_state(student) if "layers" in n and "proj" in n]
                assert len(inner) <= 7  # of the block that runs: a state that is saved between passes has none
                assert [n for n, p in student.named_parameters() if p.requires_grad and ATTRIBUTE not in n] == []

        for path in blocks:
            student.get_submodule(path).mlp.down_proj.register_forward_pre_hook(count)

    Carried(directory, model, stage_of("frozen", {"budget": {"parameters": 0.6}}), tmp_path / "o", look)
    assert (most, saw > 0) == (1, True)


STAGE = {"runner": "frozen", "methods": {"prune": {"budget": {"parameters": 0.5}}}, "objectives": {"logits": {}}}
STEPS = {"training": {"freeze_weights": True}}


def refused(*stages):
    check_frozen(Recipe.load({"name": "t", "stages": list(stages)}), 6_738_415_616)


def test_what_the_runner_does_not_do_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda: 16 * 2**30)
    with pytest.raises(AbridgedError, match=r"trains all weights, which takes about 87.9 GB of memory, and 16.0"):
        refused({**STAGE, **STEPS}, {**STAGE, "methods": {}})
    with pytest.raises(AbridgedError, match="prunes in its first stage"):
        refused({**STAGE, **STEPS, "methods": {"lora": {}}})
    with pytest.raises(AbridgedError, match=r"methods\.quantize has no place in the runner frozen"):
        refused({**STAGE, **STEPS}, {**STAGE, **STEPS, "methods": {"quantize": {}}})
    with pytest.raises(AbridgedError, match="of all stages, or of none"):
        refused({**STAGE, **STEPS}, {**STAGE, "runner": "whole"})
    with pytest.raises(AbridgedError, match="learns from the original teacher alone"):
        refused({**STAGE, **STEPS}, {**STAGE, **STEPS, "teacher": "previous"})
    refused({**STAGE, **STEPS}, {**STAGE, **STEPS, "methods": {"lora": {}}})
    refused({**STAGE, **STEPS}, {**STAGE, "methods": {}, "training": {"steps": 0}})


ADAPTED = [
    "--recipe", "faster-vtrans-lora", "--set", "stages.*.runner=frozen", "--set", "stages.*.steps=4",
    "--set", "stages.*.batch_size=4", "--set", "stages.*.context=16", "--set", "fit_tokens=128",
    "--set", "stages.*.data_share=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory, text):
    """A folder of parts, so that a run measures what `evaluate` does."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_text(text.read_text()[: 4000 if part == "train" else 500])
    return folder


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, teacher, data):
    """Those of compress, for a teacher in bf16."""
    directory = shutil.copytree(teacher, tmp_path_factory.mktemp("half") / "teacher")
    load_dense(teacher).to(torch.bfloat16).save_pretrained(directory)
    return ["compress", directory, "--data", data, *ADAPTED]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arguments):
    return isolated.student_of(*arguments, folder=tmp_path_factory.mktemp("uninterrupted"))


def test_masks_and_adapters_become_an_ordinary_checkpoint(uninterrupted, data):
    """It answers as it was measured, and lies in the type of its teacher."""
    account = json.loads((uninterrupted / "abridged.json").read_text())
    stored = load_file(uninterrupted / "model.safetensors")
    assert {one.dtype for one in stored.values() if one.numel()} == {torch.bfloat16}
    again = abridged.evaluate(uninterrupted, data=data, context=16)
    assert again["perplexity"] == pytest.approx(account["metrics"]["student"]["perplexity"], rel=1e-5)


POINTS = {
    "while masks are trained": Stop("abridged.training.loop:Trainer.step", 3),
    "before the cut": Stop("abridged.methods.pruning.fitting:cut"),
    "while adapters are trained": Stop("abridged.training.loop:Trainer.step", 7),
}


@pytest.mark.parametrize(
    "point", [p if p == "while adapters are trained" else pytest.param(p, marks=pytest.mark.slow) for p in POINTS]
)
def test_killed_and_resumed(tmp_path, arguments, uninterrupted, point):
    student = isolated.killed_and_resumed(arguments, tmp_path, POINTS[point])
    assert (student / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
