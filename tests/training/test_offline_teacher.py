"""A teacher's answers on disk stand in for the teacher."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from abridged.core.errors import AbridgedError
from abridged.data.blocks import Blocks
from abridged.models.load import weights_hash
from abridged.objectives.base import ObjectiveContext, StudentForward, outputs_of
from abridged.objectives.settings import Contrastive, Logits
from abridged.training import offline_teacher
from abridged.training.offline_teacher import OfflineTeacher, cache_teacher

VOCABULARY, CONTEXT = 50, 8


def gpt2(seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def teacher():
    return gpt2(1)


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(offline_teacher, "_SHARD_TOKENS", 4 * CONTEXT)  # 11 blocks: shards of 4, 4, and 3
    return Blocks(np.random.default_rng(0).integers(0, VOCABULARY, 11 * CONTEXT + 3).astype(np.int32), CONTEXT)


def batch_of(blocks, *index):
    return blocks.batch(torch.tensor(index))


def quiet_cache(*args, **kwargs):
    cache_teacher(*args, show=False, batch_size=3, **kwargs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_answers_are_the_teachers(tmp_path, teacher, blocks, temperature):
    quiet_cache(teacher, blocks, tmp_path, top_k=5, temperature=temperature)
    batch = batch_of(blocks, 10, 0, 5)
    cached = OfflineTeacher(tmp_path, blocks, weights_hash(teacher))(batch)
    outputs = outputs_of(teacher, batch)
    logits = teacher(batch.input_ids).logits.detach()
    log_p = (logits / temperature).log_softmax(-1)
    top, indices = log_p.topk(5)
    near = {"rtol": 1e-3, "atol": 1e-3}
    assert torch.equal(cached.top_logits.indices, indices)
    torch.testing.assert_close(cached.top_logits.log_probabilities, top, **near)
    torch.testing.assert_close(cached.top_logits.log_rest.exp(), 1 - top.exp().sum(-1), **near)
    label = logits.log_softmax(-1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(cached.top_logits.label_log_probability, label, **near)
    torch.testing.assert_close(cached.last_hidden, outputs.last_hidden.detach(), **near)


@pytest.mark.parametrize("token_weights", ["uniform", "tsld"])
def test_training_loss_without_the_teacher(tmp_path, teacher, blocks, token_weights):
    objectives = {"logits": Logits(token_weights=token_weights), "contrastive": Contrastive(dimensions=8)}
    parts = frozenset().union(*(objective.cached_parts() for objective in objectives.values()))
    quiet_cache(teacher, blocks, tmp_path, parts=parts, top_k=VOCABULARY)
    system = StudentForward(gpt2(0), objectives, ObjectiveContext(16, 16, VOCABULARY, len(blocks), CONTEXT, 1))
    batch = batch_of(blocks, 3, 7)
    loss, _ = system(batch, OfflineTeacher(tmp_path, blocks)(batch))
    expected, _ = system(batch, system.teach(teacher, batch))
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)


def test_only_the_parts_that_are_asked_for(tmp_path, teacher, blocks):
    quiet_cache(teacher, blocks, tmp_path, parts={"top_logits"}, top_k=4)
    assert OfflineTeacher(tmp_path, blocks)(batch_of(blocks, 1)).last_hidden is None
    with pytest.raises(AbridgedError, match="no last_hidden"):
        quiet_cache(teacher, blocks, tmp_path, parts={"top_logits", "last_hidden"}, top_k=4)


def test_goes_on_where_it_was_interrupted(tmp_path, teacher, blocks, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    quiet_cache(teacher, blocks, whole)
    calls = []

    def answers(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return original(*args)

    original = offline_teacher._answers
    monkeypatch.setattr(offline_teacher, "_answers", answers)
    with pytest.raises(KeyboardInterrupt):
        quiet_cache(teacher, blocks, broken)
    with pytest.raises(AbridgedError, match="lacks 1 of 3 shards"):
        OfflineTeacher(broken, blocks)
    calls.clear()
    quiet_cache(teacher, blocks, broken)
    assert len(calls) == 1
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in broken.iterdir()}


def test_other_teacher_text_or_settings_are_refused(tmp_path, teacher, blocks):
    quiet_cache(teacher, blocks, tmp_path, top_k=4)
    other_text = Blocks(np.roll(blocks.tokens, 1), CONTEXT)
    for arguments, settings, word in (
        ((gpt2(2), blocks), {"top_k": 4}, "teacher"),
        ((teacher, other_text), {"top_k": 4}, "data"),
        ((teacher, blocks), {"top_k": 5}, "top_k 4, not 5"),
        ((teacher, blocks), {"top_k": 4, "temperature": 2.0}, "temperature"),
    ):
        with pytest.raises(AbridgedError, match=word):
            quiet_cache(*arguments, tmp_path, **settings)
    with pytest.raises(AbridgedError, match="with data"):
        OfflineTeacher(tmp_path, other_text)
    with pytest.raises(AbridgedError, match="with teacher"):
        OfflineTeacher(tmp_path, blocks, weights_hash(gpt2(2)))


def test_temperature_of_the_objective_is_checked(tmp_path, teacher, blocks):
    quiet_cache(teacher, blocks, tmp_path, parts={"top_logits"})
    context = ObjectiveContext(16, 16, VOCABULARY, len(blocks), CONTEXT, 1)
    batch = batch_of(blocks, 0)
    with pytest.raises(AbridgedError, match="temperature 1.0, but"):
        StudentForward(gpt2(0), {"logits": Logits(temperature=2.0)}, context)(
            batch, OfflineTeacher(tmp_path, blocks)(batch)
        )


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"shard_blocks": 0, "parts": []}', '{"shard_blocks": 4, "parts": ["x"]}', "\x00"]
)
def test_damaged_description(tmp_path, blocks, content):
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(AbridgedError, match="damaged"):
        OfflineTeacher(tmp_path, blocks)


def test_newer_version(tmp_path, teacher, blocks):
    quiet_cache(teacher, blocks, tmp_path)
    description = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(description | {"version": 2}))
    with pytest.raises(AbridgedError, match="version 2"):
        OfflineTeacher(tmp_path, blocks)


def test_missing_cache(tmp_path, blocks):
    with pytest.raises(AbridgedError, match="holds no teacher cache"):
        OfflineTeacher(tmp_path / "nowhere", blocks)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_shard(tmp_path, teacher, blocks, keep):
    quiet_cache(teacher, blocks, tmp_path)
    shard = tmp_path / "targets-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    offline = OfflineTeacher(tmp_path, blocks)
    offline(batch_of(blocks, 0))
    with pytest.raises(AbridgedError, match="targets-00001.safetensors is damaged"):
        offline(batch_of(blocks, 5))


def test_folder_that_cannot_be_written(tmp_path, teacher, blocks):
    (tmp_path / "file").write_text("")
    with pytest.raises(AbridgedError, match="cannot write the teacher cache"):
        quiet_cache(teacher, blocks, tmp_path / "file")
