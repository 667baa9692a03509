"""Pseudo-perplexity against one token after the other, by hand."""

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM

from abridged.core.errors import AbridgedError
from abridged.data.masking import MaskedTexts
from abridged.evaluation.pseudo_perplexity import pseudo_perplexity
from abridged.models.load import load_tokenizer
from teachers import write_bert

TEXT = "a dull plot and a bright scene in the old town by the sea\n" * 3


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("bert"), TEXT * 20)
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_pretrained(folder).eval(), load_tokenizer(folder)


def by_hand(model, windows, places):
    total = 0.0
    for i, place in places:
        ids = torch.from_numpy(windows.ids[i].copy())
        true = int(ids[place])
        ids[place] = windows.mask
        with torch.no_grad():
            total -= model(input_ids=ids[None]).logits[0, place].log_softmax(-1)[true].item()
    return total / len(places)


def test_each_token_alone_is_masked(masked):
    model, tokenizer = masked
    windows = MaskedTexts.of(TEXT, tokenizer, 16)
    places = [(i, place) for i, own in enumerate(windows.own) for place in own.nonzero()[0]]
    found = pseudo_perplexity(model.train(), windows, words=45)
    model.eval()
    assert found["perplexity"] == pytest.approx(math.exp(by_hand(model, windows, places)), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(
        math.exp(by_hand(model, windows, places) * len(places) / 45), rel=1e-4
    )
    assert found.facts == {"tokens": len(places), "tokens_in_all": len(places), "words": 45, "context": 16}
    assert {m.title for m in found.measurements} == {"pseudo-perplexity"}


def test_a_limit_is_spread_over_the_text(masked):
    model, tokenizer = masked
    windows = MaskedTexts.of(TEXT, tokenizer, 16)
    places = [(i, place) for i, own in enumerate(windows.own) for place in own.nonzero()[0]]
    found = pseudo_perplexity(model, windows, words=45, limit=3)
    some = [places[0], places[round((len(places) - 1) / 2)], places[-1]]
    assert found["perplexity"] == pytest.approx(math.exp(by_hand(model, windows, some)), rel=1e-4)
    assert found["tokens"] == 3
    assert found["words"] == round(45 * 3 / len(places))


def test_no_numbers_are_said_so(masked):
    model, tokenizer = masked
    broken = AutoModelForMaskedLM.from_config(model.config).eval()
    broken.bert.embeddings.word_embeddings.weight.data.fill_(math.nan)
    with pytest.raises(AbridgedError, match="not numbers"):
        pseudo_perplexity(broken, MaskedTexts.of(TEXT, tokenizer, 16), words=45)
