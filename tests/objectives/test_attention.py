"""Attention distillation."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives.base import Outputs, StudentForward, outputs_of
from abridged.objectives.layers import AttentionDistillation
from abridged.objectives.settings import Attention, Hidden


def bart(seed, encoder_layers=2):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 32, "init_std": 0.3}
    layers = {"encoder_layers": encoder_layers, "decoder_layers": 1, "max_position_embeddings": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
    return BartForConditionalGeneration(BartConfig(**sizes, **layers, **heads)).eval()


@pytest.fixture
def pairs():
    torch.manual_seed(1)
    ids, source = torch.randint(4, 32, (2, 6)), torch.randint(4, 32, (2, 9))
    labels = ids.clone()
    labels[1, 4:] = -100
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    return Batch.of(ids, labels, torch.arange(2), source_ids=source, source_mask=mask)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_mean_over_layers_heads_and_rows_that_count(loss, student, teacher, batch):
    ours, theirs = (outputs_of(model, batch, attentions=True) for model in (student, teacher))
    value = AttentionDistillation(Attention(loss=loss, layers={1: 0}))(ours, theirs, batch)
    q, p = (t.transpose(1, 2)[batch.counted] for t in (ours.attentions[1], theirs.attentions[0]))
    divergence = torch.special.xlogy(p, p) - p * q.clamp_min(1e-30).log() if loss == "kl" else (p - q).square()
    torch.testing.assert_close(value, divergence.sum(-1).mean())


def test_nothing_is_lost_against_oneself_and_gradients_reach_the_weights(student, teacher, batch):
    theirs = outputs_of(teacher, batch, attentions=True)
    assert abs(AttentionDistillation(Attention())(theirs, theirs, batch).item()) < 1e-6
    AttentionDistillation(Attention())(outputs_of(student, batch, attentions=True), theirs, batch).backward()
    assert student.transformer.h[0].attn.c_attn.weight.grad.abs().max() > 0


def test_padding_counts_neither_in_the_encoder_nor_in_the_decoder(pairs, context):
    settings = {"attention": Attention(), "hidden": Hidden()}
    system = StudentForward(bart(0), settings, context)
    teacher = bart(1, encoder_layers=4)
    before = system(pairs, system.teach(teacher, pairs))[1]
    assert set(before) == {"attention", "hidden"}
    source = pairs.source_ids.clone()
    other = Batch.of(pairs.input_ids.clone(), pairs.labels, pairs.index, None, source, pairs.source_mask)
    other.source_ids[0, 5:] = 7
    other.input_ids[1, 5:] = 9
    after = system(other, system.teach(teacher, other))[1]
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_what_is_compared_of_an_encoder_decoder(pairs):
    found = outputs_of(bart(0), pairs, attentions=True, hidden_states=True)
    assert found.encoder_layers == 2
    assert [tuple(a.shape[1:]) for a in found.attentions] == [(2, 9, 9), (2, 9, 9), (2, 6, 6), (2, 6, 9)]
    assert [h.shape[1] for h in found.hidden_states] == [9, 9, 9, 6, 6]


def test_other_heads_and_layers_that_are_not_there(student, teacher, batch):
    ours, theirs = (outputs_of(model, batch, attentions=True) for model in (student, teacher))
    with pytest.raises(AbridgedError, match="attention.layers has 2: 0"):
        AttentionDistillation(Attention(layers={2: 0}))(ours, theirs, batch)
    fewer = Outputs(theirs.last_hidden, theirs.head, attentions=tuple(a[:, :1] for a in theirs.attentions))
    with pytest.raises(AbridgedError, match="the student has 2, the teacher 1"):
        AttentionDistillation(Attention())(ours, fewer, batch)
    with pytest.raises(AbridgedError, match="needs the teacher in memory"):
        AttentionDistillation(Attention())(ours, None, batch)
