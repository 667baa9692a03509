"""Vectors of sentences: what is measured of them, and that they are those of plain single texts."""

import json

import numpy as np
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.opening import open_data
from abridged.evaluation.sentences import (
    SentenceEncoder,
    agreement,
    found_passages,
    nearest,
    score_agreement,
)
from abridged.evaluation.vectors import unit
from abridged.models.load import load_model
from abridged.tasks import task_for
from abridged.tasks.embeddings import Embeddings, embed
from abridged.tasks.sentence_pictures import sentence_picture
from embedders import embedder, sentences

LINES = sentences(40)


def by_hand(model, tokenizer, text, pooling, normalize=True):
    """The vector of one text, alone and unpadded."""
    ids = torch.tensor([tokenizer(text, truncation=True, max_length=64)["input_ids"]])
    with torch.inference_mode():
        hidden = model(input_ids=ids).last_hidden_state[0]
    found = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling]
    return (found / found.norm() if normalize else found).numpy()


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False), ("lasttoken", True)])
def test_vectors_are_those_of_single_texts_whatever_is_read_with_them(pooling, normalize, tmp_path):
    model, tokenizer = load_model(embedder(tmp_path / "m", pooling, normalize=normalize))
    found = SentenceEncoder(model, tokenizer).encode([f" {line}\n" for line in LINES], None, 7)
    wanted = [by_hand(model, tokenizer, line, pooling, normalize) for line in LINES]
    np.testing.assert_allclose(found.vectors, np.stack(wanted), rtol=1e-4, atol=1e-5)
    assert found.cut == 0


def test_a_decoder_with_the_files_makes_vectors_of_its_last_tokens(tmp_path):
    model, tokenizer = load_model(embedder(tmp_path / "m", "lasttoken", decoder=True))
    assert type(model).__name__ == "LlamaModel"
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    assert isinstance(task_for(model, tokenizer, open_data(tmp_path / "a.txt")), Embeddings)
    wanted = [by_hand(model, tokenizer, line, "lasttoken") for line in LINES[:9]]
    np.testing.assert_allclose(embed(model, tokenizer, LINES[:9]).vectors, np.stack(wanted), rtol=1e-4, atol=1e-5)


def test_a_head_that_the_config_names_and_the_files_lack_is_not_asked_for(tmp_path):
    config = json.loads((embedder(tmp_path / "m") / "config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    model, _ = load_model(tmp_path / "m")
    assert type(model).__name__ == "BertModel"


def test_prompts_length_and_case_are_the_teachers(tmp_path):
    more = {"sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True}}
    model, tokenizer = load_model(embedder(tmp_path / "m", more=more, query="old man "))
    encoder = SentenceEncoder(model, tokenizer)
    plain = encoder.encode(["OLD man red sea"])
    assert np.array_equal(plain.vectors, encoder.encode(["red sea"], "query").vectors)
    assert np.array_equal(plain.vectors, embed(model, tokenizer, ["red sea"], "query").vectors)
    assert embed(model, tokenizer, LINES[:3]).cut == 3
    with pytest.raises(AbridgedError, match="no prompt called 'passage'"):
        embed(model, tokenizer, ["a"], "passage")


@pytest.mark.parametrize(("texts", "message"), [(["a", " "], "a text is empty"), ([], "no texts"), ("a", "a list")])
def test_nothing_has_no_vector(texts, message, tmp_path):
    with pytest.raises(AbridgedError, match=message):
        embed(*load_model(embedder(tmp_path / "m")), texts)


def test_a_language_model_makes_no_vectors(tmp_path):
    with pytest.raises(AbridgedError, match="a GPT2LMHeadModel without modules.json makes no vectors of texts"):
        SentenceEncoder(*load_model("bundled"))


def test_agreement_is_what_a_loop_gives():
    draw = np.random.default_rng(0)
    own, reference = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in draw.normal(size=(2, 40, 6)))
    same = 0
    for i in range(40):
        near = [sorted((j for j in range(40) if j != i), key=lambda j: -x[i] @ x[j])[:10] for x in (own, reference)]
        same += len(set(near[0]) & set(near[1]))
    found = {m.name: m for m in agreement(own, reference)}
    assert found["neighbours"].value == pytest.approx(100 * same / 400)
    assert found["neighbours"].title == "top-10 agreement"
    assert found["cosine"].value == pytest.approx(100 * np.mean([a @ b for a, b in zip(own, reference, strict=True)]))
    assert nearest(reference, 1)[0, 0] != 0
    same = [np.argmax(a) == np.argmax(b) for a, b in zip(_others(own), _others(reference), strict=True)]
    assert found["nearest"].value == pytest.approx(100 * np.mean(same))
    worth = []
    for i in range(40):
        near, right = (
            sorted((j for j in range(40) if j != i), key=lambda j: -x[i] @ x[j])[:10] for x in (own, reference)
        )
        gains = [10 - right.index(j) if j in right else 0 for j in near]
        ideal = sum((10 - rank) / np.log2(rank + 2) for rank in range(10))
        worth.append(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains)) / ideal)
    assert found["ndcg"].value == pytest.approx(100 * np.mean(worth))
    assert {m.name: m.value for m in agreement(own, own)} == pytest.approx(
        {"neighbours": 100, "cosine": 100, "nearest": 100, "ndcg": 100}
    )


def _others(x):
    return x @ x.T - 9 * np.eye(len(x))


def test_neighbours_are_the_same_whatever_is_in_memory_at_once(monkeypatch):
    draw = np.random.default_rng(0)
    vectors = unit(draw.normal(size=(50, 8)))
    whole = nearest(vectors, 5)
    right = np.argsort(-_others(vectors), 1)[:, :5]
    assert np.array_equal(whole, right)
    for room in (1, 50 * 7, 50 * 49):
        monkeypatch.setattr("abridged.evaluation.sentences._AT_ONCE", room)
        assert np.array_equal(nearest(vectors, 5), right)
    assert nearest(vectors[:2], 9).tolist() == [[1, 0], [0, 1]]


def test_judged_passages_are_found_as_a_loop_says():
    draw = np.random.default_rng(0)
    queries, passages = unit(draw.normal(size=(6, 8))), unit(draw.normal(size=(30, 8)))
    relevant = [{int(p): float(draw.integers(1, 4)) for p in draw.choice(30, 1 + q, replace=False)} for q in range(6)]
    found = {m.name: m.value for m in found_passages(queries, passages, relevant)}
    for k in (1, 5, 10):
        shares = []
        for query, judged in zip(queries, relevant, strict=True):
            best = sorted(range(30), key=lambda p: -(passages[p] @ query))[:k]
            shares.append(sum(p in judged for p in best) / len(judged))
        assert found[f"recall_at_{k}"] == pytest.approx(100 * np.mean(shares))
    gains = []
    for query, judged in zip(queries, relevant, strict=True):
        best = sorted(range(30), key=lambda p: -(passages[p] @ query))[:10]
        ideal = sorted(judged.values(), reverse=True)[:10]
        sums = [
            sum(worth / np.log2(i + 2) for i, worth in enumerate(some))
            for some in ([judged.get(p, 0) for p in best], ideal)
        ]
        gains.append(sums[0] / sums[1])
    assert found["ndcg_at_10"] == pytest.approx(100 * np.mean(gains))
    best = [{int(np.argmax(passages @ query)): 1.0} for query in queries]
    assert {m.name: m.value for m in found_passages(queries, passages, best)}["ndcg_at_10"] == pytest.approx(100)


def test_the_picture_says_what_is_kept_and_what_is_worst():
    draw = np.random.default_rng(0)
    teacher = unit(draw.normal(size=(30, 8)))
    student = teacher.copy()
    student[3] = teacher[7]  # taken for the same
    texts = [f"sentence {i}" for i in range(30)]
    found = sentence_picture(texts, {"teacher": teacher, "student": student})
    assert {found.worst[0].first, found.worst[0].second} & {"sentence 3"}
    named = [text for pair in found.worst for text in (pair.first, pair.second)]
    assert len(named) == len(set(named))
    assert found.worst[0].cosines["student"] - found.worst[0].cosines["teacher"] == pytest.approx(
        max((student @ student.T - teacher @ teacher.T).ravel(), key=abs), abs=1e-6
    )
    near, own = nearest(teacher, 10), nearest(student, 10)
    assert found.kept["student"].tolist() == [len(set(a) & set(b)) for a, b in zip(near, own, strict=True)]
    assert found.own.sum() == sum(j in near[i] or i in near[j] for i in range(30) for j in range(i))
    assert sentence_picture(texts[:2], {"teacher": teacher[:2], "student": student[:2]}) is None


def test_scores_are_compared_by_rank():
    firsts = np.eye(3)
    seconds = np.array([[0.9, 0, 0], [0, 0.5, 0], [0, 0, 0.7]])
    assert score_agreement(firsts, seconds, np.array([5.0, 1.0, 1.5])).value == pytest.approx(100)
    assert score_agreement(firsts, seconds, np.array([1.0, 5.0, 1.5])).value == pytest.approx(-100)


def task_of(folder, path, task=None):
    model, tokenizer = load_model(folder)
    return task_for(model, tokenizer, open_data(path, None, task)), model


def test_a_bare_encoder_makes_vectors_and_what_is_assumed_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    task, model = task_of(embedder(tmp_path / "m", files=False), tmp_path / "a.txt")
    assert isinstance(task, Embeddings)
    assert "no modules.json" in task.notes[0]
    assert "mean" in task.notes[0]
    assert task.files(task.teacher)["modules.json"][1]["path"] == "1_Pooling"
    with pytest.raises(AbridgedError, match="no pairs with scores"):
        task.evaluate(model, None, None)
    told, _ = task_of(embedder(tmp_path / "n"), tmp_path / "a.txt")
    assert told.notes == []


def test_texts_that_are_cut_are_counted_and_the_teacher_agrees_with_itself(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    task, model = task_of(embedder(tmp_path / "m", max_length=10), tmp_path / "a.txt")
    examples = task.examples(TrainingSettings())
    assert 0 < examples.cut < 38
    assert task.notes == [f"{examples.cut} of 38 texts are longer than 10 tokens and lose their ends"]
    assert task.facts()["texts_cut"] == examples.cut
    found = task.measure(model, "test", TrainingSettings())
    assert found["neighbours"] == found["cosine"] == pytest.approx(100)
    noisy, _ = load_model(tmp_path / "m")
    with torch.no_grad():
        noisy.embeddings.word_embeddings.weight.add_(torch.randn(noisy.embeddings.word_embeddings.weight.shape))
    assert task.validation(noisy, TrainingSettings())()["cosine"] < 99


def test_scored_pairs_are_measured_by_spearman_in_their_own_order(tmp_path):
    model, tokenizer = load_model(embedder(tmp_path / "m"))
    vectors = embed(model, tokenizer, LINES).vectors
    cosines = [float(vectors[i] @ vectors[i + 1]) for i in range(0, 40, 2)]
    rows = [{"a": LINES[2 * i], "b": LINES[2 * i + 1], "s": 2 * cosine} for i, cosine in enumerate(cosines)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_for(model, tokenizer, open_data(tmp_path / "rows.jsonl", ("a", "b", "s"), "stsb"))
    found = task.evaluate(model, None, None)
    assert found["spearman"] == pytest.approx(100)
    assert found.facts == {"pairs": 20, "texts_cut": 0}
    assert task.evaluate(model, None, None, limit=5).facts["pairs"] == 5
    with pytest.raises(AbridgedError, match="one pair with a score"):
        task.evaluate(model, None, None, limit=1)


def test_vectors_of_another_width_are_compared_by_their_neighbours_alone():
    reference = unit(np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    wide = np.concatenate([reference, np.zeros((40, 4), np.float32)], 1)
    found = {one.name: one.value for one in agreement(wide, reference)}
    assert found["neighbours"] == pytest.approx(100)
    assert "cosine" not in found
    assert agreement(wide, wide)[1].name == "cosine"
