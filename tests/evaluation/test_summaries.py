"""Summaries by beam search, and ROUGE."""

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.data.pairs import Pair
from abridged.evaluation import summaries as module
from abridged.evaluation.summaries import SearchSettings, rouge, summarize
from abridged.models.load import load_dense, load_tokenizer
from teachers import FABLES

SEARCH = SearchSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def documents():
    return [pair.source for pair in open_data(FABLES).as_pairs().train]


def test_the_same_summaries_in_any_batch(bart, documents):
    one = summarize(*bart, documents, SearchSettings(max_new_tokens=12, batch_size=1))
    many = summarize(*bart, documents, SearchSettings(max_new_tokens=12, batch_size=8))
    assert one.texts == many.texts
    assert one.cut == many.cut == sum(len(bart[1](d)["input_ids"]) > 64 for d in documents)
    assert one.tokens == many.tokens > 0


def test_they_are_what_generate_writes(bart, documents):
    model, tokenizer = bart
    ids = tokenizer(documents[0], return_tensors="pt", truncation=True, max_length=64)["input_ids"]
    written = model.generate(
        ids, num_beams=4, max_new_tokens=12, no_repeat_ngram_size=3, length_penalty=1.0, early_stopping=True
    )
    expected = tokenizer.decode(written[0], skip_special_tokens=True).strip()
    assert summarize(model, tokenizer, documents[:1], SEARCH).texts == [expected]


def test_empty_documents_have_empty_summaries(bart, documents):
    seen = []
    found = summarize(*bart, ["", documents[0], " \n"], SEARCH, seen.append)
    assert found.texts[0] == found.texts[2] == ""
    assert found.texts[1] == summarize(*bart, documents[:1], SEARCH).texts[0]
    assert seen == [1]
    assert summarize(*bart, ["", ""], SEARCH).texts == ["", ""]


def test_what_is_asked_goes_before_what_the_model_says_and_that_before_the_usual(bart):
    model, _ = bart
    assert SearchSettings().arguments(model) == {
        "num_beams": 4, "max_new_tokens": 63, "no_repeat_ngram_size": 3, "do_sample": False,
        "length_penalty": 1.0, "early_stopping": True,
    }  # fmt: skip
    own = model.generation_config
    was = own.num_beams, own.max_length, own.length_penalty
    own.num_beams, own.max_length, own.length_penalty = 6, 40, 2.0
    try:
        said = SearchSettings(max_new_tokens=7).arguments(model)
        assert (said["num_beams"], said["max_new_tokens"], said["length_penalty"]) == (6, 7, 2.0)
        assert SearchSettings(beams=1).arguments(model)["max_new_tokens"] == 40
        assert "length_penalty" not in SearchSettings(beams=1).arguments(model)
    finally:
        own.num_beams, own.max_length, own.length_penalty = was


def test_a_language_model_writes_no_summaries(teacher):
    model = load_dense(teacher)
    with pytest.raises(AbridgedError, match="a gpt2 goes on with a text"):
        summarize(model, load_tokenizer(teacher), ["a"])


def test_rouge_by_hand():
    pairs = [Pair("x", "the cat sat down", ("a cat sat",)), Pair("x", "one two three")]
    found = rouge(["the cat sat", "four five six"], pairs)
    # first: 3 of 4 words recalled, 3 of 3 right: F1 = 6/7; second: nothing
    assert found["rouge1"] == pytest.approx(100 * (6 / 7) / 2)
    assert found["rouge2"] == pytest.approx(100 * (2 * 2 / (2 + 3)) / 2)
    assert found["rougeL"] == pytest.approx(found["rouge1"])
    # of the one pair with several references, the target is nearer than "a cat sat" (2 of 3)
    assert found["with_references"] == 1
    assert found["best_reference"]["rouge1"] == pytest.approx(100 * 6 / 7)
    assert (found["words"], found["reference_words"], found["repeated"], found["empty"]) == (3.0, 3.5, 0.0, 0)


def test_repetition_and_empty_summaries():
    found = rouge(["a b a b a b", ""], [Pair("x", "a b")] * 2)
    assert found["repeated"] == pytest.approx(1 - 2 / 5)
    assert found["empty"] == 1


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(AbridgedError, match=r"pip install 'abridged\[summaries\]'"):
        rouge(["a"], [Pair("x", "a")])


def test_dropout_is_as_it_was(bart, documents):
    model, tokenizer = bart
    model.train()
    with torch.random.fork_rng():
        summarize(model, tokenizer, documents[:1], SEARCH)
    assert model.training
    model.eval()
