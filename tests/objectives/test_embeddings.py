"""Distillation of the vectors of texts, against plain loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.evaluation.sentences import SentenceEncoder
from abridged.models.load import load_dense, load_tokenizer
from abridged.objectives.base import CachedOutputs, Embeddings, ObjectiveContext, Outputs, StudentForward
from abridged.objectives.settings import EmbeddingDistillation, Hidden
from embedders import embedder, sentences

CONTEXT = ObjectiveContext(32, 32, 128, 6, 16, 2)


def outputs(seed, count=4, width=8):
    draw = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(count, width, generator=draw, dtype=torch.float64), dim=-1)
    return Outputs(text, None, embeddings=Embeddings(text))


def batch(count=4):
    return Batch({"input_ids": torch.zeros(count, 2, dtype=torch.int64)}, torch.zeros(count), torch.arange(count))


def test_distance_and_similarities_are_what_a_loop_gives():
    ours, theirs = outputs(1), outputs(2)
    a, b = ours.embeddings.text.tolist(), theirs.embeddings.text.tolist()

    def dot(x, y):
        return sum(i * j for i, j in zip(x, y, strict=True))

    distance = sum(2 - 2 * dot(x, y) for x, y in zip(a, b, strict=True)) / 4
    divergence = 0.0
    for i in range(4):
        mine, right = ([math.exp(dot(one[i], one[j]) / 0.1) for j in range(4) if j != i] for one in (a, b))
        for p, q in zip(right, mine, strict=True):
            divergence += p / sum(right) * math.log(p / sum(right) / (q / sum(mine))) / 4
    alone = EmbeddingDistillation(similarities=0.0).build(CONTEXT)
    assert float(alone(ours, theirs, batch())) == pytest.approx(distance, rel=1e-5)
    both = EmbeddingDistillation(similarities=0.5, temperature=0.1).build(CONTEXT)
    assert float(both(ours, theirs, batch())) == pytest.approx(distance + 0.5 * divergence, rel=1e-5)
    assert float(both(theirs, theirs, batch())) == pytest.approx(0.0, abs=1e-6)


def test_one_text_alone_is_like_no_other():
    term = EmbeddingDistillation().build(CONTEXT)
    one, other = outputs(1, count=1), outputs(2, count=1)
    wanted = float((one.embeddings.text - other.embeddings.text).square().sum())
    assert float(term(one, other, batch(1))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (outputs(1, width=6), outputs(2), "vectors are 6 wide and the teacher's 8"),
        (Outputs(torch.zeros(1), None), outputs(2), "a model that gives no vectors"),
        (outputs(1), CachedOutputs(), "needs the teacher in memory"),
    ],
)
def test_what_cannot_be_learned_is_said(student, teacher, message):
    with pytest.raises(AbridgedError, match=message):
        EmbeddingDistillation().build(CONTEXT)(student, teacher, batch())


def test_gradients_come_through_pooling_and_padding_counts_for_nothing(tmp_path):
    folder = embedder(tmp_path / "m")
    teacher, student = load_dense(folder), load_dense(folder)
    encoder = SentenceEncoder(student, load_tokenizer(folder))
    tokens = encoder.tokens(["red sea", *sentences(3)])
    given = tokens.batch(torch.arange(4))
    system = StudentForward(student, {"embeddings": EmbeddingDistillation(), "hidden": Hidden()}, CONTEXT)
    _, same = system(given, system.teach(teacher, given))
    assert all(float(value) == pytest.approx(0.0, abs=1e-5) for value in same.values())
    with torch.no_grad():
        student.encoder.layer[0].output.dense.weight.mul_(1.5)
    total, named = system(given, system.teach(teacher, given))
    assert all(float(value) > 1e-6 for value in named.values())
    total.backward()
    assert float(student.embeddings.word_embeddings.weight.grad[tokens.pad].abs().sum()) == 0
    assert float(student.embeddings.word_embeddings.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("combined", [False, True])
def test_vectors_of_a_narrower_student_are_compared_with_all_of_the_teachers(combined):
    units = torch.tensor([5, 0, 3, 6])
    basis = torch.linalg.qr(torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    ours, theirs = outputs(1, width=4), outputs(2)
    wide = torch.zeros(4, 8, dtype=torch.float64)
    for row, vector in zip(wide, ours.embeddings.text, strict=True):
        for j in range(4):
            row += vector[j] * (basis[:, j] if combined else torch.eye(8, dtype=torch.float64)[units[j]])
    context = ObjectiveContext(4, 8, 128, 6, 16, 2, hidden_units=basis if combined else units)
    term = EmbeddingDistillation(similarities=0.5).build(context)
    same = EmbeddingDistillation(similarities=0.5).build(CONTEXT)
    wanted = float(same(Outputs(wide, None, embeddings=Embeddings(wide)), theirs, batch()))
    assert float(term(ours, theirs, batch())) == pytest.approx(wanted, rel=1e-5)
