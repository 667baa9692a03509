"""What a run is said to take before it begins."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.blocks import Blocks
from abridged.recipe import Recipe
from abridged.training import plan
from abridged.training.plan import (
    Work,
    activation_bytes,
    check_whole,
    describe,
    memory_of_frozen,
    memory_of_stage,
    seconds_per_token,
    training_bytes,
)

CONFIG = GPT2Config(vocab_size=64, n_positions=64, n_embd=64, n_layer=3, n_head=4, resid_pdrop=0, attn_pdrop=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(CONFIG).eval()


def blocks(context=32):
    return Blocks(torch.randint(0, 64, (1000,)).numpy().astype("int32"), context)


def kept(model, tokens):
    """Bytes that autograd really keeps for the backward pass, parameters left out."""
    seen, sizes = {p.data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in seen and tensor.data_ptr() not in seen:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.transformer(torch.randint(0, 64, (tokens // 32, 32)))
    return sum(sizes.values())


def test_activations_are_of_the_size_that_autograd_keeps(model):
    predicted = activation_bytes(families.view(model), 256)
    assert 0.5 < predicted / kept(model, 256) < 3


def test_a_pass_in_pieces_and_checkpoints_need_less(model):
    view = families.view(model)
    assert activation_bytes(view, 128) == activation_bytes(view, 256) // 2
    assert activation_bytes(view, 256, checkpointing=True) < activation_bytes(view, 256) / 2
    assert training_bytes(view, 1000, 0, teacher=True) - training_bytes(view, 1000, 0, teacher=False) == 4000


def test_what_a_stage_reads():
    work = Work.of(TrainingSettings(steps=7, batch_size=8, gradient_accumulation=4), blocks())
    assert work == Work(7, 8 * 32, 2 * 32)


@pytest.mark.parametrize(
    ("share", "sentence"),
    [(0.6, "gradient_accumulation=2"), (0.13, "gradient_accumulation=8"), (0.05, r"context=\d+ with gradient_acc")],
)
def test_too_little_memory_names_what_would_fit(model, monkeypatch, share, sentence):
    view, settings = families.view(model), TrainingSettings(batch_size=8)
    work = Work(10, 8 * 32, 8 * 32)
    fixed, all_of_it = (training_bytes(view, 10_000, tokens, teacher=True) for tokens in (0, work.tokens))
    assert memory_of_stage(view, 10_000, settings, work, teacher=True) == all_of_it
    monkeypatch.setattr(plan, "free_memory", lambda: int(fixed + share * (all_of_it - fixed)))
    with pytest.raises(AbridgedError, match=sentence):
        memory_of_stage(view, 10_000, settings, work, teacher=True)


def test_a_model_that_is_itself_too_large(model, monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda: 10_000)
    with pytest.raises(AbridgedError, match="the model, its gradients and the optimiser"):
        memory_of_stage(families.view(model), 10_000, TrainingSettings(), Work(1, 64, 64), teacher=True)


def test_a_model_that_does_not_fit_twice(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda: 24 * 2**30)
    check_whole(3 * 2**30)
    with pytest.raises(AbridgedError, match=r"take 50.2 GB in FP32, and 24.0 GB are free: .*runner=frozen' prunes"):
        check_whole(6_738_415_616)


def test_what_weights_on_disk_need(model, monkeypatch):
    """What a cut leaves in its two bytes, and the fit's arithmetic, which fewer tokens make smaller."""
    view = families.view(model)
    stage = {"runner": "frozen", "objectives": {"logits": {}}, "training": {"freeze_weights": True}}

    def needed(tokens=1000, budget=0.5):
        prune = {"budget": {"parameters": budget}, "reconstruct": True, "fit_tokens": tokens}
        recipe = Recipe.load({"name": "t", "stages": [{**stage, "methods": {"prune": prune}}]})
        return memory_of_frozen(view, recipe, 10_000_000, Work(1, 64, 64), bytes_each=2)

    loose = sum(m.rows * m.columns for m in view.whole if m.layer is None)
    assert needed(budget=0.9) - needed() == pytest.approx(0.4 * (2 * 10_000_000 + 4 * loose), rel=1e-3)
    assert needed(2000) > needed(1000)
    monkeypatch.setattr(plan, "free_memory", lambda: 100)
    with pytest.raises(AbridgedError, match="fewer methods.prune.fit_tokens take less"):
        needed()


def test_without_training_there_is_no_optimiser(model):
    work = Work(0, 64, 64)
    assert memory_of_stage(families.view(model), 10_000, TrainingSettings(), work, teacher=True) == 80_000
    lines = describe("tiny", model.config, 200_000, "a-text: a text", [work], 2**31, 0.0)
    assert lines[-1] == "work: no training, about 2.0 GB of memory"


def test_time_is_told_from_as_many_examples_as_a_step_reads_or_a_long_enough_pass(model, monkeypatch):
    examples, read = blocks(), []
    taken = iter([0.05, 0.04, 0.1, 0.06])  # of one example, and of three

    def pass_of(model, batch):
        read.append(len(batch.index))
        return next(taken)

    monkeypatch.setattr(plan, "_seconds_of_pass", pass_of)
    settings = TrainingSettings(batch_size=6, gradient_accumulation=2)
    assert seconds_per_token(model, examples, settings) == pytest.approx(4 * 0.06 / (3 * examples.context))
    assert read == [1, 1, 3, 3]
    taken = iter([0.5, 0.3])
    assert seconds_per_token(model, examples, settings) == pytest.approx(4 * 0.3 / examples.context)


def test_three_lines(model):
    per_token = seconds_per_token(model, blocks(), TrainingSettings())
    assert 0 < per_token < 1
    lines = describe("tiny", model.config, 200_000, "a-text: a text", [Work(10, 256, 64)], 2**31, 0.01)
    assert lines == [
        "model: tiny, gpt2, 0.2M parameters, 1 MB in FP32",
        "data: a-text: a text",
        "work: 10 steps of 256 tokens, about 2.0 GB of memory and 26 s of training on this machine",
    ]
