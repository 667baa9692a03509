"""Vectors of sentences, how near they are to another model's, and how well their cosines are what people say."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abridged.core.atomic import written_file
from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measurement
from abridged.core.modes import evaluating
from abridged.core.progress import seconds_since
from abridged.core.text import refuse_half_characters
from abridged.data.sentences import TokenTexts
from abridged.data.text_files import TextFile
from abridged.evaluation.scores import spearman
from abridged.families.kinds import context_of
from abridged.families.logits import run_body
from abridged.models.sentence import SentenceSettings, sentence_settings_of

#: Neighbours of a sentence that are compared.
NEIGHBOURS = 10


@dataclass(frozen=True)
class Encoded:
    """Vectors (n, d) in FP32, and how many of their texts were longer than the model reads."""

    vectors: np.ndarray
    cut: int


class SentenceEncoder:
    """A model that makes vectors of texts, its tokenizer, and what its files say of it.

    Attributes:
        limit: tokens that it reads of a text.
        width: numbers in a vector.

    Raises:
        AbridgedError: the model makes no vectors.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: SentenceSettings | None = None) -> None:
        settings = settings or sentence_settings_of(model)
        if settings is None:
            raise AbridgedError(
                f"a {type(model).__name__} without modules.json makes no vectors of texts: give an encoder, or a model "
                "of sentence-transformers"
            )
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        limits = (int(tokenizer.model_max_length), context_of(model.config), settings.max_length)
        self.limit = min(limit for limit in limits if limit is not None)

    @property
    def note(self) -> str | None:
        """What is assumed of a model that came without a word on it."""
        if not self.settings.assumed:
            return None
        return (
            "note: the model has no modules.json: its vectors are taken to be the mean of the tokens' last hidden "
            "states, given length 1"
        )

    def tokens(self, texts: Sequence[str], prompt: str | None = None, limit: int | None = None) -> TokenTexts:
        """Texts as the model reads them, behind the prompt of that name, or the one that it always has.

        Raises:
            AbridgedError: there are none, or no such prompt; a text is nothing but spaces, or holds half a character.
        """
        if not texts:
            raise AbridgedError("there are no texts to make vectors of")
        refuse_half_characters(*texts)
        found = [text.strip() for text in texts]
        if not all(found):
            raise AbridgedError("a text is empty: there is nothing to make a vector of")
        return TokenTexts.of(
            [text.lower() for text in found] if self.settings.lower else found,
            self.tokenizer,
            min(limit or self.limit, self.limit),
            self.settings.pooling,
            self.settings.prompt(prompt),
            self.settings.pool_prompt,
        )

    def encode(self, texts: Sequence[str], prompt: str | None = None, batch_size: int = 32) -> Encoded:
        """The vectors of texts, as their model's files say; see `tokens`."""
        tokens = self.tokens(texts, prompt)
        return Encoded(sentence_vectors(self.model, tokens, batch_size, self.settings.normalize), tokens.cut)


@torch.inference_mode()
def sentence_vectors(model: Any, texts: TokenTexts, batch_size: int = 32, normalize: bool = True) -> np.ndarray:
    """(n, d) FP32 of texts, of length 1 if `normalize`; read in batches of about one length."""
    order = np.argsort([len(ids) for ids in texts.ids], kind="stable")
    found: np.ndarray | None = None
    with evaluating(model) as device:
        for start in range(0, len(texts), batch_size):
            index = torch.from_numpy(order[start : start + batch_size].copy())
            batch = texts.batch(index).to(device)
            vectors = batch.pooled(run_body(model, batch.model_inputs, return_dict=True).last_hidden_state)
            vectors = torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors
            found = np.empty((len(texts), vectors.shape[1]), dtype=np.float32) if found is None else found
            found[index.numpy()] = vectors.cpu().numpy()
    assert found is not None
    return found


def nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """(n, count) the numbers of the vectors (n, d) of length 1 that are most like each but itself, most like first."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    found: np.ndarray = np.argsort(-similarity, 1, kind="stable")[:, :count]
    return found


def agreement(own: np.ndarray, reference: np.ndarray) -> list[Measurement]:
    """How near vectors (n, d) are to those of a reference, both of length 1: the mean share of each sentence's nearest
    `NEIGHBOURS` that are the same (of few sentences, the nearer half of the others), and the mean cosine."""
    count = max(1, min(NEIGHBOURS, (len(own) - 1) // 2))
    ours, theirs = nearest(own, count), nearest(reference, count)
    same = np.mean([len(set(a) & set(b)) / count for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)])
    return [
        Measurement("neighbours", 100 * float(same), f"top-{count} agreement", headline=True),
        Measurement("cosine", 100 * float((own * reference).sum(1).mean()), "cosine to the teacher's", headline=True),
    ]


def score_agreement(firsts: np.ndarray, seconds: np.ndarray, scores: np.ndarray) -> Measurement:
    """Spearman's correlation, in per cent, of the cosines of vectors (n, d) of length 1 with scores (n,) that people
    gave: how STS is measured (Reimers and Gurevych, EMNLP 2019, arXiv:1908.10084, section 4.1)."""
    cosines = (firsts * seconds).sum(1, dtype=np.float64)
    return Measurement("spearman", spearman(cosines, scores), "Spearman", headline=True)


def note_cut(cut: int, count: int, limit: int) -> None:
    """Say on standard error how many of `count` texts were longer than is read of them."""
    if cut:
        print(f"note: {cut:,} of {count:,} texts are longer than {limit:,} tokens and lost their ends", file=sys.stderr)


def write_vectors(
    encoder: SentenceEncoder,
    texts: TextFile,
    output: Path,
    prompt: str | None = None,
    batch_size: int = 32,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Write the vectors of a file's texts to a .npy file, (n, d) FP32, which is there whole or not at all.

    Args:
        show: called with how many are done, of how many.

    Returns:
        `texts`, `width`, `cut`, `texts_per_second`.

    Raises:
        AbridgedError: see `SentenceEncoder.tokens`; the file changed while it was read; the disk does not let it.
    """
    done, cut, began = 0, 0, time.perf_counter()
    with written_file(output) as temporary:
        vectors: np.memmap | None = None
        for some in texts.chunks():
            found = encoder.encode(some, prompt, batch_size)
            if vectors is None:
                shape = (len(texts), found.vectors.shape[1])
                vectors = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            if done + len(some) > len(texts):
                break
            vectors[done : done + len(some)] = found.vectors
            done, cut = done + len(some), cut + found.cut
            show(done, len(texts))
        if vectors is None or done != len(texts):
            raise AbridgedError(f"{texts.path} changed while it was read")
        vectors.flush()
        width = int(vectors.shape[1])
        del vectors
    note_cut(cut, done, encoder.limit)
    return {"texts": done, "width": width, "cut": cut, "texts_per_second": done / seconds_since(began)}
