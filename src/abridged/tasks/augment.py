"""More training texts from those there are: words replaced by what a masked language model, or its embedding, proposes.

Source: Jiao et al., "TinyBERT", Findings of EMNLP 2020, arXiv:1909.10351, appendix "Data Augmentation".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from abridged.core.cache import cache_folder
from abridged.core.errors import AbridgedError
from abridged.core.text import lines_of
from abridged.data.labelled import Labelled
from abridged.families.kinds import context_of

if TYPE_CHECKING:
    from abridged.core.settings import Augmentation

_WORD = re.compile(r"\w+|[^\w\s]")
_MASKED_AT_ONCE = 32


class Proposals(Protocol):
    """What could stand in place of a word."""

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        """For each word of a text, other words that could be there; none where there are none."""
        ...


class Neighbours:
    """The words whose embeddings are nearest to a word's own, by cosine, whatever the text.

    Stands in for TinyBERT's GloVe vectors: the embedding of a model's vocabulary, as far as its entries are words.
    """

    def __init__(self, model: Any, tokenizer: Any, count: int) -> None:
        weight = model.get_input_embeddings().weight.detach().float()
        whole = [(i, word) for i, word in enumerate(_whole_words(tokenizer)[: len(weight)]) if word is not None]
        self.words = [word for _, word in whole]
        self.places = {word: i for i, word in enumerate(self.words)}
        self.vectors = torch.nn.functional.normalize(weight[[i for i, _ in whole]], dim=-1)
        self.count = count
        self._known: dict[str, list[str]] = {}

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        return [self._of(word.lower()) for word in words]

    def _of(self, word: str) -> list[str]:
        if word not in self._known:
            place = self.places.get(word)
            among = min(self.count + 1, len(self.words))
            near = [] if place is None else (self.vectors @ self.vectors[place]).topk(among).indices.tolist()
            self._known[word] = [self.words[i] for i in near if i != place][: self.count]
        return self._known[word]


class Masked:
    """What a masked language model expects where a word is hidden from it; a word of several pieces has none."""

    def __init__(self, model: Any, tokenizer: Any, count: int) -> None:
        if tokenizer.mask_token_id is None or not type(model).__name__.endswith("ForMaskedLM"):
            raise AbridgedError("augmenting by masks needs a masked language model and its tokenizer")
        self.model, self.tokenizer, self.count = model.eval(), tokenizer, count
        self.words = _whole_words(tokenizer)

    @torch.inference_mode()
    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        places = [i for i, word in enumerate(words) if word.isalnum() and self._is_one_piece(word)]
        found: list[list[str]] = [[] for _ in words]
        for start in range(0, len(places), _MASKED_AT_ONCE):
            some = places[start : start + _MASKED_AT_ONCE]
            hidden = [" ".join([*words[:i], self.tokenizer.mask_token, *words[i + 1 :]]) for i in some]
            limit = context_of(self.model.config)
            inputs = self.tokenizer(hidden, return_tensors="pt", padding=True, truncation=True, max_length=limit)
            logits = self.model(**inputs).logits
            for row, place in enumerate(some):
                at = (inputs["input_ids"][row] == self.tokenizer.mask_token_id).nonzero()
                if len(at) == 1:  # else it was cut off
                    proposed = [self.words[i] for i in logits[row, at[0, 0]].topk(self.count * 2).indices.tolist()]
                    found[place] = [w for w in proposed if w is not None and w != words[place].lower()][: self.count]
        return found

    def _is_one_piece(self, word: str) -> bool:
        return len(self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def _whole_words(tokenizer: Any) -> list[str | None]:
    """The word that each vocabulary entry is, or None for a part of one, a special token or a sign."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    marked = any(piece.startswith("Ġ") for piece in pieces[:2000])  # byte-level: beginnings are marked, else parts
    words = []
    for piece in pieces:
        word = piece.removeprefix("Ġ")
        begins = piece.startswith("Ġ") == marked and not piece.startswith("##")
        words.append(word.lower() if begins and word.isalpha() and word.isascii() and len(word) > 1 else None)
    return words


def augment(
    rows: Sequence[Labelled],
    proposals: Proposals,
    variants: int,
    probability: float = 0.4,
    seed: int = 0,
    show: Callable[[int], None] = lambda done: None,
) -> list[Labelled]:
    """The rows, and after each up to `variants` further ones in which words are replaced, all different.

    Args:
        probability: of each word that has proposals to be replaced by one of them.
        show: called with how many rows are done.
    """
    random = np.random.default_rng(seed)
    grown: list[Labelled] = []
    for number, row in enumerate(rows, 1):
        texts = [text for text in (row.first, row.second) if text is not None]
        split = [_WORD.findall(text) for text in texts]
        proposed = [proposals(words) for words in split]
        seen = {tuple(texts)}
        grown.append(row)
        for _ in range(variants):
            both = zip(split, proposed, strict=True)
            changed = tuple(_changed(words, options, probability, random) for words, options in both)
            if changed not in seen:
                seen.add(changed)
                grown.append(Labelled(changed[0], changed[1] if row.second is not None else None, row.label))
        show(number)
    return grown


def _changed(words: list[str], options: list[list[str]], probability: float, random: np.random.Generator) -> str:
    draws = random.random(len(words))
    picked = [
        str(random.choice(choice)) if choice and draw < probability else word
        for word, choice, draw in zip(words, options, draws, strict=True)
    ]
    return " ".join(picked)


def augmented(
    rows: Sequence[Labelled], settings: Augmentation, model: str | Path, seed: int, show: bool = True
) -> list[Labelled]:
    """`augment` by the settings of a recipe, kept in a cache: the same texts are not augmented twice.

    Args:
        model: whose embedding or masked head makes the proposals, where the settings name none.

    Raises:
        AbridgedError: the model cannot make such proposals, or the cache cannot be written.
    """
    from abridged.core.atomic import write_atomically
    from abridged.core.progress import progress

    source = settings.model or str(model)
    asked = [settings.model_dump(), source, seed, [asdict(row) for row in rows]]
    path = cache_folder("augmented") / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]}.jsonl"
    if path.exists():
        return [Labelled(**json.loads(line)) for line in lines_of(path.read_text(encoding="utf-8"))]
    with progress("augment", len(rows), show=show) as update:
        proposals = proposals_of(settings, source)
        grown = augment(rows, proposals, settings.variants, settings.probability, seed, update)
    write_atomically(path, "".join(json.dumps(asdict(row)) + "\n" for row in grown))
    return grown


def write_rows(rows: Sequence[Labelled], path: Path) -> None:
    """Write labelled texts as a .tsv that `open_data` reads, all or nothing; tabs and line ends in them become spaces.

    Raises:
        AbridgedError: it cannot be written.
    """
    from abridged.core.atomic import write_atomically

    pairs = bool(rows) and rows[0].second is not None
    lines = [["text", "second", "label"] if pairs else ["text", "label"]]
    lines += [[row.first, *([row.second or ""] if pairs else ()), str(row.label)] for row in rows]
    write_atomically(path, "".join("\t".join(re.sub(r"[\t\r\n]", " ", c) for c in cells) + "\n" for cells in lines))


def proposals_of(settings: Augmentation, source: str | Path) -> Proposals:
    """What makes the proposals that the settings ask for."""
    from abridged.models.load import load_base, load_masked, load_tokenizer

    tokenizer: Any = load_tokenizer(source)
    if settings.by == "masks":
        return Masked(load_masked(source), tokenizer, settings.candidates)
    return Neighbours(load_base(source), tokenizer, settings.candidates)
