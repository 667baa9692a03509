"""Tags of words as a task: which are the model's, what is measured, what is found in a text."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.opening import open_data
from abridged.data.tagged import Tagged
from abridged.data.tokenizer import learn_tokenizer
from abridged.evaluation.entities import entity_scores
from abridged.families.kinds import LabelSet
from abridged.tasks import task_for
from abridged.tasks.token_classification import TokenClassification, _found, find_entities, marked_text, word_logits

TAGS = ("B-LOC", "I-LOC", "O")
SENTENCES = "the sea is near New York\nParis is old\n" * 10
CONLL = "the O\nsea O\nis O\nnear O\nNew B-LOC\nYork I-LOC\n\nParis B-LOC\nis O\nold O\n\n" * 10


def model_of(tags=TAGS):
    """A small BERT that labels tokens."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=64, initializer_range=0.3)
    for key, value in LabelSet(tags, tokens=True).settings().items():
        setattr(config, key, value)
    return BertForTokenClassification(config).eval()


def tokenizer_of():
    return learn_tokenizer(SENTENCES, 300, 64, encoder=True)


def task_of(path, content=CONLL, model=None):
    path.write_text(content)
    return task_for(model or model_of(), tokenizer_of(), open_data(path))


def test_what_is_measured_is_what_the_model_says_word_by_word(tmp_path):
    model, tokenizer = model_of(), tokenizer_of()
    task = task_of(tmp_path / "a.conll")
    assert isinstance(task, TokenClassification)
    found = task.evaluate(model, None, None)
    predicted, true = [], []
    for one in task.data.to_evaluate:
        tags = []
        for place in range(len(one.words)):
            before = " ".join(one.words[:place])
            ids = tokenizer(one.text)["input_ids"]
            at = len(tokenizer(before)["input_ids"]) - 1  # special tokens are around that, too
            at += place > 0 and tokenizer.decode(ids[at]).strip() == ""  # a space alone is no word's token
            with torch.no_grad():
                tags.append(TAGS[int(model(torch.tensor([ids])).logits[0, at].argmax())])
        predicted.append(tags)
        true.append(one.tags)
    wanted = entity_scores(predicted, true)
    assert found["f1"] == wanted["f1"]
    assert found["accuracy"] == wanted["accuracy"]
    assert found["texts"] == 20
    assert len(set(sum(predicted, []))) > 1
    assert task.evaluate(model, None, None, limit=3)["texts"] == 3


def test_words_that_are_cut_off_are_not_found(tmp_path):
    task = task_of(tmp_path / "a.conll")
    examples = task.examples(TrainingSettings(context=6))
    long = ["New York" in one.text for one in task.data.train]
    assert 0 < examples.cut == sum(long) < len(examples)
    assert f"{sum(long)} of {len(long)} texts are longer than the context and lose their ends" in task.notes
    logits = word_logits(model_of(), examples, len(examples))
    assert [np.isnan(rows[-1]).all() for rows in logits] == long
    assert not any(np.isnan(rows[0]).any() for rows in logits)
    found = task.evaluate(model_of(), 6, None)
    assert found["words"] == 90
    assert found["texts_cut"] == 10


def test_tags_are_the_models_by_name_and_others_are_refused(tmp_path):
    task = task_of(tmp_path / "a.conll", model=model_of(tuple(reversed(TAGS))))
    assert task.ids == {"O": 0, "I-LOC": 1, "B-LOC": 2}
    with pytest.raises(
        AbridgedError, match="has the tag 'B-LOC', and the model's tags are B-PER, O: fine-tune a model"
    ):
        task_of(tmp_path / "a.conll", model=model_of(("B-PER", "O")))
    (tmp_path / "a.txt").write_text(SENTENCES)
    text = open_data(tmp_path / "a.txt")
    with pytest.raises(AbridgedError, match="words with tags are wanted"):
        task_for(model_of(), tokenizer_of(), text)
    with pytest.raises(AbridgedError, match="fewer than two different tags"):
        task_of(tmp_path / "b.conll", "a O\n\nb O\n").data.check_to_learn()


def test_parts_of_speech_are_measured_by_how_many_are_right(tmp_path):
    task = task_of(tmp_path / "a.conll", CONLL.replace("O\n", "NOUN\n").replace("B-LOC", "X").replace("I-LOC", "X"),
                   model_of(("NOUN", "X")))  # fmt: skip
    found = task.evaluate(model_of(("NOUN", "X")), None, None)
    assert {m.name for m in found.measurements} == {"accuracy", "score"}
    assert found.headline.value == found["accuracy"]


def test_samples_are_what_the_student_reads_worst(tmp_path):
    task, model = task_of(tmp_path / "a.conll"), model_of()
    groups = task.samples({"teacher": model, "student": model})
    found = dict(zip([one.text for one in task.data.test], task._tags(model, task._of("test", 64), 20), strict=False))
    wrong = [sum(map(str.__ne__, found[one.text], one.tags)) for one in task.data.test]
    assert len(groups) == len(wrong) == 2
    assert [group.prompt for group in groups] == [
        task.data.test[i].text for i in sorted(range(2), key=lambda i: -wrong[i])
    ]
    said = {sample.name: sample.text for sample in groups[0].samples}
    assert "[" in said["reference"]
    assert said["teacher"] == said["student"]


def test_entities_have_their_characters():
    model, tokenizer = model_of(), tokenizer_of()
    model.classifier.bias.data[0] = 100.0  # every word is a place
    text = "  the sea,  near New   York"
    (found,), cut = find_entities(model, tokenizer, [text])
    assert cut == 0
    assert [one["text"] for one in found] == ["the", "sea", ",", "near", "New", "York"]
    assert all(text[one["start"] : one["end"]] == one["text"] and one["label"] == "LOC" for one in found)
    assert all(one["probability"] == pytest.approx(1) for one in found)
    assert find_entities(model, tokenizer, []) == ([], 0)
    assert find_entities(model, tokenizer, ["", text])[0] == [[], found]
    assert find_entities(model, tokenizer, ["sea " * 100, text])[1] == 1
    with pytest.raises(AbridgedError, match="takes a list"):
        find_entities(model, tokenizer, text)


def test_words_of_one_entity_are_told_as_they_stand_in_the_text():
    logits = np.zeros((6, 3), dtype=np.float32)
    logits[:4, 2], logits[4, 0], logits[5, 1] = 9.0, np.log(2), np.log(8)
    (found,) = _found(Tagged.of_text("  the sea,  near New   York"), logits, dict(enumerate(TAGS)))
    assert (found["text"], found["label"], found["start"], found["end"]) == ("New   York", "LOC", 17, 27)
    assert found["probability"] == pytest.approx((0.5 + 0.8) / 2)
    logits[5] = np.nan  # cut off
    assert _found(Tagged.of_text("a b, c d e"), logits, dict(enumerate(TAGS)))[0]["text"] == "d"
    assert marked_text(["in", "New", "York", "."], ["O", "B-LOC", "I-LOC", "O"]) == "in [New York LOC] ."
