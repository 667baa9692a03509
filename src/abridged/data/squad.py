"""Questions on paragraphs, whose answers are spans of them: SQuAD v1.1 from its JSON, and its two scores.

Source: Rajpurkar et al., "SQuAD", EMNLP 2016, arXiv:1606.05250.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.text import parse_json, read_text
from abridged.data.dataset import Dataset
from abridged.data.padding import PaddedTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SQUAD = "squad"  #: the name of the task
TRAIN, TEST = "train-v1.1.json", "dev-v1.1.json"
HELD_OUT = 0.02  #: of the training part, in whole paragraphs, to choose models by
#: Words of a paragraph that one window shares with the next.
STRIDE = 64


@dataclass(frozen=True)
class Question:
    """A question, the paragraph that answers it, and answers as people marked them."""

    question: str
    paragraph: str
    answers: tuple[str, ...]
    start: int  #: where the first answer begins in the paragraph, in characters


def load_squad(path: str | Path) -> list[Question]:
    """Read questions from a file of SQuAD v1.1; those without an answer are left out.

    Raises:
        AbridgedError: it cannot be read, or is not such a file.
    """
    path = Path(path).expanduser()
    try:
        articles = parse_json(read_text(path))["data"]
        found = [
            Question(
                asked["question"].strip(),
                paragraph["context"],
                tuple(answer["text"] for answer in asked["answers"]),
                asked["answers"][0]["answer_start"],
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
            if asked["answers"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise AbridgedError(f"cannot read {path} as SQuAD v1.1: {error}") from error
    if not found:
        raise AbridgedError(f"{path} has no question with an answer")
    return found


@dataclass(frozen=True)
class QuestionData(Dataset):
    """Three parts; some whole paragraphs of the training part are held out to choose models by."""

    kind: ClassVar[str] = "questions"
    holds: ClassVar[str] = "questions on paragraphs"

    name: str
    train: list[Question]
    validation: list[Question]
    test: list[Question]
    task: str | None = SQUAD

    @property
    def words(self) -> str:
        paragraphs = dict.fromkeys(question.paragraph for question in self.train)
        return "\n".join([*paragraphs, *(question.question for question in self.train)])

    def as_questions(self) -> QuestionData:
        return self


def load_questions(folder: Path) -> QuestionData:
    """Read a folder with the two files of SQuAD v1.1.

    Raises:
        AbridgedError: one of them is missing or cannot be read.
    """
    for name in (TRAIN, TEST):
        if not (folder / name).is_file():
            raise AbridgedError(f"the folder {folder} has no {name}")
    questions = load_squad(folder / TRAIN)
    paragraphs = list(dict.fromkeys(q.paragraph for q in questions))
    held = set(paragraphs[-max(1, round(HELD_OUT * len(paragraphs))) :])
    return QuestionData(
        name=SQUAD,
        train=[q for q in questions if q.paragraph not in held],
        validation=[q for q in questions if q.paragraph in held],
        test=load_squad(folder / TEST),
    )


@dataclass(frozen=True)
class TokenQuestions(PaddedTexts):
    """Windows of paragraphs behind their questions; `labels` are (windows, 2), first and last token of the answer.

    They are 0, 0 where it is not in the window. In training, windows without the whole answer are left out; for
    measuring all are there.
    """

    offsets: list[np.ndarray]  #: (tokens, 2) where in the paragraph a token lies; -1, -1 for what is none of it
    question: np.ndarray  #: (windows,) which question

    @classmethod
    def of(
        cls, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, context: int, training: bool
    ) -> TokenQuestions:
        """Tokenise questions and paragraphs; each window has at most `context` tokens."""
        found = tokenizer(
            [q.question for q in questions],
            [q.paragraph for q in questions],
            truncation="only_second",
            max_length=context,
            stride=min(STRIDE, context // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids, types, spans, offsets, numbers = [], [], [], [], []
        for row, number in enumerate(found["overflow_to_sample_mapping"]):
            asked = questions[number]
            second = np.array([part == 1 for part in found.sequence_ids(row)])
            places = np.where(second[:, None], np.array(found["offset_mapping"][row], dtype=np.int64), -1)
            end = asked.start + len(asked.answers[0])
            first = np.flatnonzero(second & (places[:, 0] <= asked.start) & (places[:, 1] > asked.start))
            last = np.flatnonzero(second & (places[:, 0] < end) & (places[:, 1] >= end))
            whole = len(first) > 0 and len(last) > 0
            if training and not whole:
                continue
            ids.append(np.asarray(found["input_ids"][row], dtype=np.int64))
            if "token_type_ids" in found:
                types.append(np.asarray(found["token_type_ids"][row], dtype=np.int64))
            spans.append((first[0], last[-1]) if whole else (0, 0))
            offsets.append(places)
            numbers.append(number)
        if not ids:
            raise AbridgedError(f"no answer lies within {context} tokens: give more questions or a longer context")
        labels = np.array(spans, dtype=np.int64)
        return cls(ids, types or None, labels, tokenizer.pad_token_id or 0, offsets, np.array(numbers))


def normalised(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: lower case, without articles and punctuation."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where an answer is one of the right ones, else 0."""
    return float(any(normalised(answer) == normalised(one) for one in right))


def overlap(answer: str, right: Sequence[str]) -> float:
    """The best F1 of an answer's words against those of a right one."""
    return max(_f1(normalised(answer), normalised(one)) for one in right)


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    both = sum((Counter(words) & Counter(right)).values())
    return 2 * both / (len(words) + len(right))


def squad_scores(answers: Sequence[str], questions: Sequence[Question]) -> Measured:
    """`exact_match` and `f1` in per cent, and `score`, which is F1."""
    exact = 100 * float(np.mean([exact_match(a, q.answers) for a, q in zip(answers, questions, strict=True)]))
    f1 = 100 * float(np.mean([overlap(a, q.answers) for a, q in zip(answers, questions, strict=True)]))
    named = [Measurement("f1", f1, "F1"), Measurement("exact_match", exact, "exact match")]
    return Measured([Measurement("score", f1, headline=True), *named])
