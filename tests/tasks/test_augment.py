"""Texts made from others by replacing words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from abridged.core.cache import cache_folder
from abridged.core.errors import AbridgedError
from abridged.core.settings import Augmentation
from abridged.data.labelled import Labelled
from abridged.data.opening import open_data
from abridged.tasks.augment import Masked, Neighbours, augment, augmented, write_rows

WORDS = ["red", "blue", "green", "house", "home", "tent", "big", "large", "huge", "##ly"]
ROWS = [Labelled("a big red house !", None, "x"), Labelled("xyz", None, "y")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A masked BERT whose embedding puts like words side by side, and its tokenizer."""
    folder = tmp_path_factory.mktemp("masked")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "!", *WORDS]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16))
    with torch.no_grad():
        for i in range(len(WORDS)):
            vector = 0.1 * torch.randn(16)
            vector[i // 3] = 1
            model.bert.embeddings.word_embeddings.weight[7 + i] = vector
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def proposals(words):
    options = {"big": ["large", "huge"], "red": ["blue"]}
    return [options.get(word, []) for word in words]


def test_variants_differ_and_keep_what_has_no_proposals():
    grown = augment(ROWS, proposals, variants=20, probability=0.5, seed=0)
    first = [row for row in grown if row.label == "x"]
    assert grown[0] == ROWS[0]
    assert len({row.first for row in first}) == len(first) <= 1 + 3 * 2
    for row in first:
        words = row.first.split()
        assert (words[0], words[3], words[4]) == ("a", "house", "!")
        assert words[1] in ("big", "large", "huge")
        assert words[2] in ("red", "blue")
    assert [row for row in grown if row.label == "y"] == [ROWS[1]]
    assert augment(ROWS, proposals, variants=20, probability=0.5, seed=0) == grown
    assert augment(ROWS, proposals, variants=1, probability=1.0, seed=0)[1].first.split()[2] == "blue"


def test_both_texts_of_a_pair_are_changed():
    grown = augment([Labelled("big", "red", 1.5)], proposals, variants=3, probability=1.0)
    assert {row.second for row in grown[1:]} == {"blue"}
    assert {row.label for row in grown} == {1.5}


def test_neighbours_are_the_nearest_words(saved):
    from abridged.models.load import load_base, load_tokenizer

    found = Neighbours(load_base(saved), load_tokenizer(saved), 2)(["Red", "large", "!", "unknown"])
    assert {*found[0]} == {"blue", "green"}
    assert {*found[1]} == {"big", "huge"}
    assert found[2:] == [[], []]


def test_masks_propose_what_the_model_expects(saved):
    from abridged.models.load import load_masked, load_tokenizer

    model, tokenizer = load_masked(saved), load_tokenizer(saved)
    words = ["a", "big", "house"]
    found = Masked(model, tokenizer, 3)(words)
    ids = tokenizer("a [MASK] house", return_tensors="pt")["input_ids"]
    expected = model(ids).logits[0, 2].argsort(descending=True).tolist()
    likely = [tokenizer.convert_ids_to_tokens(i) for i in expected]
    assert found[1] == [word for word in likely[:6] if word in WORDS[:-1] and word != "big"][:3]
    assert Masked(model, tokenizer, 3)(["notthere"]) == [[]] or tokenizer.unk_token_id is not None
    with pytest.raises(AbridgedError, match="needs a masked language model"):
        Masked(torch.nn.Linear(1, 1), tokenizer, 3)


def test_what_was_made_is_kept_and_made_anew_for_other_settings(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("ABRIDGED_CACHE", str(tmp_path))
    settings = Augmentation(variants=3, probability=0.9)
    first = augmented(ROWS, settings, saved, 0, show=False)
    assert len(list(cache_folder("augmented").iterdir())) == 1
    monkeypatch.setattr("abridged.tasks.augment.augment", None)  # is not called again
    assert augmented(ROWS, settings, saved, 0, show=False) == first
    with pytest.raises(TypeError):
        augmented(ROWS, settings, saved, 1, show=False)


def test_written_rows_are_read_again(tmp_path):
    rows = [Labelled(f'say "{i}"', "b\tc", "yes" if i % 2 else "no") for i in range(20)]
    write_rows(rows, tmp_path / "rows.tsv")
    found = open_data(tmp_path / "rows.tsv").as_labelled()
    plain = [replace(row, second="b c") for row in rows]  # nothing in a .tsv quotes a tab
    assert sorted(found.train + found.validation, key=str) == sorted(plain, key=str)
    assert np.unique([row.label for row in found.train]).tolist() == ["no", "yes"]


def test_the_command(saved, tmp_path, monkeypatch):
    import isolated

    (tmp_path / "own.tsv").write_text("text\tlabel\n" + "a big red house\tyes\na blue tent\tno\n" * 10)
    more = ["--data", tmp_path / "own.tsv", "--output", tmp_path / "more.tsv", "--variants", "2"]
    ended = isolated.abridged(
        "augment", saved, *more, folder=tmp_path / "a", environment={"ABRIDGED_CACHE": str(tmp_path)}
    )
    assert ended.code == 0, ended.stderr
    assert len(open_data(tmp_path / "more.tsv").as_labelled().train) > 18
    again = isolated.abridged("augment", saved, *more, folder=tmp_path / "b")
    assert again.code == 1
    assert "exists already" in again.stderr
