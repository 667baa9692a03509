"""SQuAD: its file, windows with the answer in them, and its scores."""

import json

import numpy as np
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.squad import Question, TokenQuestions, exact_match, load_squad, overlap, squad_scores

TEXT = "One line of a text. Another line, which is longer, of the same text! And a third? Yes."


def question(answer, text=TEXT):
    return Question("Which line?", text, (answer,), text.index(answer))


def write(path, *questions):
    rows = [
        {
            "context": q.paragraph,
            "qas": [
                {
                    "id": "1",
                    "question": q.question,
                    "answers": [{"text": a, "answer_start": q.start} for a in q.answers],
                }
            ],
        }
        for q in questions
    ]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": rows}]}))
    return path


def test_its_file_is_read(tmp_path):
    unanswered = Question("x", TEXT, (), 0)
    assert load_squad(write(tmp_path / "q.json", question("longer"), unanswered)) == [question("longer")]
    with pytest.raises(AbridgedError, match="no question with an answer"):
        load_squad(write(tmp_path / "q.json", unanswered))
    for wrong in ("{", "[]", '{"data": [{}]}'):
        (tmp_path / "q.json").write_text(wrong)
        with pytest.raises(AbridgedError, match="as SQuAD v1.1"):
            load_squad(tmp_path / "q.json")


@pytest.mark.parametrize("answer", ["One line", "longer", "Yes.", "text! And a"])
def test_the_span_is_the_answer(answer, tokenizer):
    found = TokenQuestions.of([question(answer)], tokenizer, 64, training=True)
    (first, last), places = found.labels[0], found.offsets[0]
    assert TEXT[places[first, 0] : places[last, 1]].strip() == answer.strip()
    batch = found.batch(torch.tensor([0]))
    assert batch.labels.tolist() == [[first, last]]
    assert batch.counted.sum() == len(found.ids[0])


def test_long_paragraphs_come_in_windows_and_train_where_the_answer_is(tokenizer):
    long = TEXT * 8 + " The answer is longer here: forty."
    asked = question("forty", long)
    training = TokenQuestions.of([asked], tokenizer, 48, training=True)
    measured = TokenQuestions.of([asked], tokenizer, 48, training=False)
    assert len(training) < len(measured)
    assert (training.labels > 0).all()
    assert len(np.unique(measured.question)) == 1
    for (first, last), places in zip(training.labels, training.offsets, strict=True):
        assert long[places[first, 0] : places[last, 1]].strip() == "forty"
    with pytest.raises(AbridgedError, match="no answer lies within"):
        TokenQuestions.of([Question("Which line?" * 3, long, (long,), 0)], tokenizer, 48, training=True)


def test_scores_by_hand():
    assert exact_match("The Line!", ["a line"]) == 1.0
    assert exact_match("lines", ["line"]) == 0.0
    assert overlap("big red house", ["a red house", "x"]) == pytest.approx(2 * 2 / (3 + 2))
    assert overlap("", ["x"]) == 0.0
    found = squad_scores(["longer", "blue"], [question("longer"), question("line")])
    assert found == {"score": 50.0, "f1": 50.0, "exact_match": 50.0}
