"""Soft-label distillation and the weights of its tokens."""

import pytest
import torch
import torch.nn.functional as F

from abridged.core.errors import AbridgedError
from abridged.objectives.base import CachedOutputs, TopLogits, outputs_of
from abridged.objectives.logits import LogitDistillation, tsld_weights
from abridged.objectives.settings import Logits


def divergences(student, teacher, batch):
    log_q = student(batch.input_ids).logits.log_softmax(-1)
    log_p = teacher(batch.input_ids).logits.log_softmax(-1).detach()
    return (log_p.exp() * (log_p - log_q)).sum(-1), log_p


def test_uniform_is_the_mean_over_tokens_that_count(student, teacher, batch):
    losses, _ = divergences(student, teacher, batch)
    term = LogitDistillation(Logits())
    value = term(outputs_of(student, batch), outputs_of(teacher, batch), batch)
    torch.testing.assert_close(value, losses[batch.counted].mean())


def test_tsld_weighs_tokens_by_the_teachers_loss(student, teacher, batch):
    losses, log_p = divergences(student, teacher, batch)
    expected = []
    for b in range(3):
        counted = batch.counted[b]
        cross_entropy = F.nll_loss(log_p[b][counted], batch.labels[b][counted], reduction="none")
        weights = torch.softmax(cross_entropy / 2.0, 0)
        expected.append((weights * losses[b][counted]).sum())
    term = LogitDistillation(Logits(token_weights="tsld", tsld_temperature=2.0))
    value = term(outputs_of(student, batch), outputs_of(teacher, batch), batch)
    torch.testing.assert_close(value, torch.stack(expected).mean())


def test_tsld_without_anything_that_counts():
    counted = torch.tensor([[True, True], [False, False]])
    weights = tsld_weights(torch.tensor([[1.0, 1.0], [2.0, 3.0]]), counted)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 0.0, 0.0]))


def top_of(teacher, batch, k):
    log_p = teacher(batch.input_ids).logits.log_softmax(-1).detach()
    top, indices = log_p.topk(k)
    rest = log_p.scatter(-1, indices, -torch.inf).logsumexp(-1)
    label = log_p.gather(-1, batch.labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return CachedOutputs(TopLogits(top, indices, rest, label))


@pytest.mark.parametrize("token_weights", ["uniform", "tsld"])
def test_cached_top_logits_stand_in_for_the_teacher(student, teacher, batch, token_weights):
    term = LogitDistillation(Logits(token_weights=token_weights))
    exact = term(outputs_of(student, batch), outputs_of(teacher, batch), batch)
    whole = term(outputs_of(student, batch), top_of(teacher, batch, 10), batch)
    part = term(outputs_of(student, batch), top_of(teacher, batch, 3), batch)
    torch.testing.assert_close(whole, exact)  # 10 of 11: the rest is one entry
    assert 0 < part < exact  # lumping outcomes together can only lower a divergence


def test_cache_without_logits(student, batch):
    with pytest.raises(AbridgedError, match="holds no logits"):
        LogitDistillation(Logits())(outputs_of(student, batch), CachedOutputs(), batch)
