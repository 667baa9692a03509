"""Prune on a whole model: what each moment of a stage does to it."""

import pytest
import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods import METHODS
from abridged.methods.pruning.masked import ATTRIBUTE
from abridged.recipe import Recipe
from abridged.storage.compressed import compressed_of
from pruned import IDS, answer, build, parts

KINDS = ("vib", "l0", "magnitude", "taylor", "random")


def train(model, method, steps=12):
    """A stage that only matches the model's own logits."""
    attached = method.build(model, families.view(model), lambda model: None)
    expected = answer(model)
    learned = [p for group in attached.parameter_groups().values() for p in group]
    optimizer = torch.optim.AdamW(learned or [torch.nn.Parameter(torch.zeros(1))], lr=0.2, weight_decay=0.0)
    sizes = []
    for step in range(steps):
        model.train()
        attached.step(step / steps)
        added = attached.penalties()
        out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        loss = (out.logits - expected).square().mean() + sum(v for v in added.values() if v.requires_grad)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sizes.append(float(added["size"]))
    return attached.finish().account()["prune"], sizes


def test_units_that_stay_are_not_drowned_by_noise_when_the_others_are_measured():
    model = build("gpt2")
    method = METHODS["prune"](budget={"parameters": 0.7}, structures=("heads", "ffn"), measure=0.3)
    facts, sizes = train(model, method)
    assert torch.isfinite(torch.tensor(sizes)).all()
    assert torch.isfinite(answer(model)).all()
    assert facts["hidden"][0] == facts["hidden"][1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_ends_at_the_budget(kind):
    model = build("gpt2")
    total = sum(p.numel() for p in model.parameters())
    facts, sizes = train(model, METHODS["prune"](budget={"parameters": 0.5}, masks=kind))
    left = sum(p.numel() for p in model.parameters())
    assert 0.49 * total < left <= 0.5 * total
    assert facts["reached"] == left
    assert facts["before"] == total
    assert sizes[0] > 0.9
    assert sizes[-1] < sizes[0]
    assert getattr(model, ATTRIBUTE, None) is None
    assert torch.isfinite(answer(model)).all()
    assert len(compressed_of(model).hidden_units) == facts["hidden"][0] == families.view(model).hidden_size


@pytest.mark.parametrize("kind", ["vib", "l0"])
def test_the_published_training_ends_at_the_budget(kind):
    """Masks that start alike, and multipliers that rise."""
    model = build("gpt2")
    total = sum(p.numel() for p in model.parameters())
    method = METHODS["prune"](budget={"parameters": 0.5}, masks=kind, measure=0, constraint="lagrangian")
    facts, sizes = train(model, method, steps=60)
    assert sizes[-1] < 0.8
    assert 0.49 * total < sum(p.numel() for p in model.parameters()) <= 0.5 * total


@pytest.mark.parametrize("kind", ["vib", "l0"])
def test_the_threshold_meets_the_budget_at_every_step(kind):
    model = build("bert-tokens")
    method = METHODS["prune"](budget={"parameters": 0.4}, masks=kind, measure=0.2, warmup=0.4)
    attached = method.build(model, families.view(model), lambda model: None)
    for progress, wanted in ((0.0, 1.0), (0.1, 1.0), (0.3, 0.85), (0.5, 0.55), (0.6, 0.4), (0.9, 0.4)):
        model.train()(input_ids=IDS).logits.square().mean().backward()
        attached.step(progress)
        assert float(attached.penalties()["size"]) == pytest.approx(wanted, abs=0.01)


def test_masks_start_from_what_the_loss_depends_on():
    """Nothing is removed while it is measured; then units without any say come last, and others as they matter."""
    model = build("gpt2")
    dead, weak = parts(model, "ffn")[:2]
    outputs = [model.get_submodule(path) for path in (dead, weak)]
    with torch.no_grad():
        outputs[0].weight[: len(outputs[0].weight) // 2] = 0  # inner units that nothing reads
        outputs[1].weight[0] *= 100
    before = answer(model.eval())
    method = METHODS["prune"](budget={"parameters": 0.5}, measure=0.5)
    attached = method.build(model, families.view(model), lambda model: None)
    masks = getattr(model, ATTRIBUTE, None)
    assert torch.allclose(answer(model.eval()), before, atol=1e-5)
    for progress in (0.0, 0.2, 0.4, 0.5):
        model.train()
        attached.step(progress)
        (model(input_ids=IDS).logits - 1).square().mean().backward()
    scores = masks.mask.score().detach()
    half = len(outputs[0].weight) // 2
    assert scores[masks.places[dead]][:half].max() < scores[masks.places[dead]][half:].min()
    assert scores[masks.places[weak]].argmax() == 0


def test_a_stage_that_ends_while_measuring_removes_by_what_was_measured():
    model = build("gpt2")
    total = sum(p.numel() for p in model.parameters())
    method = METHODS["prune"](budget={"parameters": 0.5}, measure=0.9)
    facts, sizes = train(model, method, steps=3)
    assert sizes == [1.0, 1.0, 1.0]
    assert 0.49 * total < sum(p.numel() for p in model.parameters()) <= 0.5 * total
    assert facts["expected_share"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", ["magnitude", "taylor", "random"])
def test_what_is_cut_is_what_was_trained_without(kind):
    """Masks of zeros and ones have come down to the budget before the stage ends: the cut changes nothing more."""
    model = build("bert-tokens")
    method = METHODS["prune"](budget={"parameters": 0.6}, masks=kind)
    attached = method.build(model, families.view(model), lambda model: None)
    for progress in (0.0, 0.3, 0.6, 0.9):
        attached.step(progress)
        model.train()(input_ids=IDS).logits.square().mean().backward()
    before = answer(model.eval())
    attached.finish()
    assert torch.allclose(answer(model), before, atol=1e-4)


def test_untrained_is_by_magnitude_and_needs_no_step():
    model = build("llama")
    total = sum(p.numel() for p in model.parameters())
    method = METHODS["prune"](budget={"parameters": 0.7}).untrained()
    attached = method.build(model, families.view(model), lambda model: None)
    attached.finish()
    assert 0.69 * total < sum(p.numel() for p in model.parameters()) <= 0.7 * total


def test_masks_that_were_not_done_are_said():
    facts, _ = train(build("gpt2"), METHODS["prune"](budget={"parameters": 0.3}, constraint="lagrangian"), steps=2)
    assert any("not done" in note for note in facts["notes"])


def test_where_masks_shut_every_block_one_attention_stays():
    """Without any, each token would be read by itself."""
    model = build("gpt2")
    attentions = parts(model, "attention")
    method = METHODS["prune"](budget={"parameters": 0.2})
    attached = method.build(model, families.view(model), lambda model: None)
    masks = getattr(model, ATTRIBUTE, None)
    with torch.no_grad():
        masks.mask.log_alpha[list(masks.gates.values())] = 20.0
        for path in parts(model, "ffn") + parts(model, "attention"):
            masks.mask.log_alpha[masks.places[path]] = 20.0
    facts = attached.finish().account()["prune"]
    (left,) = (path for path, (kept, _) in facts["parts"].items() if kept)
    assert left in attentions
    assert torch.isfinite(answer(model)).all()


def test_quantisation_over_masks_is_refused():
    model = build("gpt2")
    method = METHODS["prune"](budget={"parameters": 0.5})
    attached = method.build(model, families.view(model), lambda model: None)
    METHODS["quantize"](activations={"bits": None}).build(model, families.view(model), lambda model: None)
    with pytest.raises(AbridgedError, match="prune in a stage before"):
        attached.step(0.0)


def test_budgets_that_cannot_be_are_refused_before_training():
    model = build("gpt2")
    with pytest.raises(AbridgedError, match="smallest possible"):
        METHODS["prune"](budget={"parameters": 1e-4}).build(model, families.view(model), lambda model: None)


def test_budget_is_short_for_every_method_that_has_one():
    recipe = Recipe.load("vtrans", ["budget.bytes=40MB"])
    assert recipe.stages[0].methods["prune"].budget.measure == "bytes"
    assert recipe.stages[0].methods["prune"].budget.value == 40 * 2**20
    assert Recipe.load(recipe) == recipe
    with pytest.raises(AbridgedError, match="unknown key"):
        Recipe.load("quantgpt-2-2-8", ["budget.parameters=0.3"])
    with pytest.raises(AbridgedError, match="cannot be read"):
        Recipe.load("vtrans", ["budget.parameters=-1"])
