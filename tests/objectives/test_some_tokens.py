"""Losses of models that label tokens or fill masks: over those that have labels, layers over all that are there."""

import pytest
import torch
import torch.nn.functional as F

import tiny
from abridged.data.batch import Batch
from abridged.objectives.base import ObjectiveContext, StudentForward
from abridged.objectives.settings import Attention, Hidden, Labels, Logits

NAMES = ["bert-tokens", "bert-masked", "modernbert-masked"]


def batch_of(model, labelled=True):
    ids = tiny.inputs(model)["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    labels = torch.full_like(ids, -100)
    if labelled:
        labels[0, 2], labels[0, 5], labels[1, 4] = 1, 2, 0
    batch = Batch.of(ids, labels, torch.arange(len(ids)), attention_mask=mask)
    batch.sparse = True
    return batch


def losses(name, objectives, batch=None):
    teacher, student = tiny.build(name), tiny.build(name, seed=1)
    batch = batch_of(student) if batch is None else batch
    context = ObjectiveContext(64, 64, tiny.TOKENS, len(batch.index), batch.input_ids.shape[1], 2)
    forward = StudentForward(student, objectives, context)
    total, values = forward(batch, forward.teach(teacher, batch))
    forward.close()
    return total, values, student, teacher, batch


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_logits_are_of_the_tokens_that_have_labels(name):
    total, values, student, teacher, batch = losses(name, {"labels": Labels(), "logits": Logits(temperature=2.0)})
    ours, theirs = (model(**batch.model_inputs).logits for model in (student, teacher))
    wanted = F.cross_entropy(ours.flatten(0, 1), batch.labels.flatten())
    torch.testing.assert_close(values["labels"], wanted.detach())
    log_q, log_p = ((x[batch.labelled] / 2).log_softmax(-1) for x in (ours, theirs))
    torch.testing.assert_close(values["logits"], 4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean().detach())
    weight = student.base_model.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(total, weight)
    wanted = wanted + 4 * F.kl_div(log_q, log_p.detach(), reduction="batchmean", log_target=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, weight)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["bert-tokens", "bert-masked"])
def test_layers_are_compared_on_all_tokens_that_are_no_padding(name):
    _, values, student, teacher, batch = losses(name, {"hidden": Hidden(), "attention": Attention(loss="mse")})
    there = batch.attention_mask.bool()
    both = [model(**batch.model_inputs, output_hidden_states=True).hidden_states for model in (student, teacher)]
    wanted = torch.stack([(a - b).square().mean(-1)[there].mean() for a, b in zip(*both, strict=True)]).mean()
    torch.testing.assert_close(values["hidden"], wanted.detach())
    assert values["attention"] > 0


@pytest.mark.parametrize("name", ["bert-tokens", "bert-masked"])
def test_a_batch_without_labels_costs_nothing(name):
    batch = batch_of(tiny.build(name), labelled=False)
    total, *_ = losses(name, {"labels": Labels(), "logits": Logits()}, batch)
    assert total.item() == 0
    total.backward()
