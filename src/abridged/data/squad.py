"""Questions on paragraphs, whose answers are spans of them: SQuAD v1.1 from its JSON, and its two scores.

Source: Rajpurkar et al., "SQuAD", EMNLP 2016, arXiv:1606.05250.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Words of a paragraph that one window shares with the next.
STRIDE = 64
_ROUND = 8


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
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AbridgedError(f"cannot read {path} as SQuAD v1.1: {error}") from error
    if not found:
        raise AbridgedError(f"{path} has no question with an answer")
    return found


@dataclass(frozen=True)
class TokenQuestions:
    """Windows of paragraphs behind their questions, as token ids, with the span of the answer.

    In training, windows without the whole answer are left out; for measuring all are there.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray] | None
    spans: np.ndarray  #: (windows, 2) int64, first and last token of the answer; 0, 0 where it is not in the window
    offsets: list[np.ndarray]  #: (tokens, 2) where in the paragraph a token lies; -1, -1 for what is none of it
    question: np.ndarray  #: (windows,) which question
    pad: int

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
        return cls(
            ids, types or None, np.array(spans, dtype=np.int64), offsets, np.array(numbers), tokenizer.pad_token_id or 0
        )

    @property
    def context(self) -> int:
        return max(map(len, self.ids))

    @property
    def tokens_in_example(self) -> float:
        return float(np.mean([len(ids) for ids in self.ids]))

    @property
    def same_length(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: torch.Tensor) -> Batch:
        """The windows at `index`, padded to the longest; labels are (B, 2), the answer's first and last token."""
        numbers = index.tolist()
        length = -(-max(len(self.ids[i]) for i in numbers) // _ROUND) * _ROUND
        ids = np.full((len(numbers), length), self.pad, dtype=np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for line, i in enumerate(numbers):
            size = len(self.ids[i])
            ids[line, :size], mask[line, :size] = self.ids[i], 1
            if self.types is not None:
                types[line, :size] = self.types[i]
        return Batch(
            input_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(self.spans[numbers]),
            index=index,
            attention_mask=torch.from_numpy(mask),
            token_types=None if self.types is None else torch.from_numpy(types),
        )

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads them: batches of about one length."""
        return Order(len(self), seed, np.array([len(ids) for ids in self.ids]), batch_size)

    def fingerprint(self) -> str:
        """A hash of all token ids and spans."""
        digest = hashlib.sha256(self.spans.tobytes())
        for row in self.ids:
            digest.update(len(row).to_bytes(4, "little") + row.tobytes())
        return digest.hexdigest()[:16]


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


def squad_scores(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """`exact_match` and `f1` in per cent, and `score`, which is F1."""
    exact = 100 * float(np.mean([exact_match(a, q.answers) for a, q in zip(answers, questions, strict=True)]))
    f1 = 100 * float(np.mean([overlap(a, q.answers) for a, q in zip(answers, questions, strict=True)]))
    return {"score": f1, "f1": f1, "exact_match": exact}
