"""Vectors of sentences, how near they are to another model's, and how well their cosines are what people say."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
from abridged.evaluation.retrieval import AMONG
from abridged.evaluation.scores import spearman
from abridged.evaluation.vectors import quantized, recall, shortened, top, unit
from abridged.families.kinds import context_of
from abridged.families.logits import run_body
from abridged.models.sentence import SentenceSettings, sentence_settings_of

#: Neighbours of a sentence that are compared.
NEIGHBOURS = 10
#: Similarities that are in memory at once.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class VectorSettings:
    """How vectors are made and stored.

    Attributes:
        kind: "float32", or one of `abridged.evaluation.vectors.KINDS`.
        dimensions: numbers that are kept, the first ones; None = all.
        batch_size: texts that are read at once.
    """

    kind: str = "float32"
    dimensions: int | None = None
    batch_size: int = 32

    @property
    def loses(self) -> bool:
        """Whether less is stored than was made."""
        return self.kind != "float32" or self.dimensions is not None

    def stored(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, d) FP32 as they are stored: cut to their first `dimensions` and given length 1 again, where that
        is asked for; then float32, float16 or int8 (n, d), or bits as uint8 (n, d / 8).

        Raises:
            AbridgedError: there are not so many.
        """
        vectors = shortened(vectors, self.dimensions)
        return vectors if self.kind == "float32" else quantized(vectors, self.kind)


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
    def query_prompt(self) -> str | None:
        """The prompt of what is searched by, as sentence-transformers' `encode_query` takes it; None: there is none."""
        return "query" if "query" in self.settings.prompts else None

    @property
    def passage_prompt(self) -> str | None:
        """The prompt of what is found, as `encode_document` takes it."""
        return next((name for name in ("document", "passage", "corpus") if name in self.settings.prompts), None)

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
    """(n, count) the numbers of the vectors (n, d) of length 1 that are most like each but itself, most like first.

    Some are compared with all at a time, so that no (n, n) array exists.
    """
    every = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    count = min(count, len(vectors))
    found = np.empty((len(vectors), count), dtype=np.int64)
    rows = max(1, _AT_ONCE // max(1, len(vectors)))
    for start in range(0, len(vectors), rows):
        similarity = every[start : start + rows] @ every.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        found[start : start + rows] = similarity.topk(count).indices.numpy()
    return found


def agreement(own: np.ndarray, reference: np.ndarray) -> list[Measurement]:
    """How near vectors (n, d) are to those of a reference, both of length 1.

    Of each sentence's nearest `NEIGHBOURS` by the reference (of few sentences, the nearer half of the others) the mean
    share that is among as many of its own; how often its nearest is the same; and nDCG, for which the reference's
    nearest counts most and the last of them 1. And the mean cosine, where both are equally wide.
    """
    count = max(1, min(NEIGHBOURS, (len(own) - 1) // 2))
    ours, theirs = nearest(own, count), nearest(reference, count)
    found = (ours[:, :, None] == theirs[:, None, :]) @ np.arange(theirs.shape[1], 0, -1)  # what each of ours is worth
    ndcg = ndcg_of(found, np.arange(count, 0, -1))
    cosine = []
    if own.shape == reference.shape:
        mean = 100 * float((own * reference).sum(1).mean())
        cosine = [Measurement("cosine", mean, "cosine to the teacher's", headline=True)]
    return [
        Measurement("neighbours", 100 * float((found > 0).mean()), f"top-{count} agreement", headline=True),
        *cosine,
        Measurement("nearest", 100 * float((ours[:, 0] == theirs[:, 0]).mean()), "nearest the same"),
        Measurement("ndcg", 100 * float(ndcg.mean()), f"nDCG@{count} by the teacher's"),
    ]


def found_passages(
    queries: np.ndarray, passages: np.ndarray, relevant: Sequence[Mapping[int, float]]
) -> list[Measurement]:
    """How well passages (n, d) that were judged are found by queries (q, d), vectors of length 1: the mean share of the
    relevant ones among the best 1, 5 and 10 (recall), and nDCG@10.

    Args:
        relevant: of each query, how relevant a passage is, by number; those that are not named are not.
    """
    most = min(max(AMONG), len(passages))
    shares: dict[int, list[float]] = {k: [] for k in AMONG}
    ndcg = []
    for number, judged in enumerate(relevant):
        order = top(passages @ queries[number], most).tolist()
        worth = np.array([judged.get(passage, 0.0) for passage in order])
        for k in AMONG:
            shares[k].append(float((worth[:k] > 0).sum()) / len(judged))
        ndcg.append(float(ndcg_of(worth[None, :NEIGHBOURS], np.array(sorted(judged.values(), reverse=True)))[0]))
    recalls = [Measurement(f"recall_at_{k}", 100 * float(np.mean(shares[k])), f"R@{k}") for k in AMONG]
    return [Measurement("ndcg_at_10", 100 * float(np.mean(ndcg)), f"nDCG@{NEIGHBOURS}", headline=True), *recalls]


def ndcg_of(found: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(n,) normalised discounted cumulative gain (Järvelin and Kekäläinen, TOIS 2002) of what is found, in order.

    Args:
        found: (n, k) how relevant each is.
        best: (m,) what is relevant at all, most first: the ideal.
    """
    k = found.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    most = float((best[:k] * discount[: len(best[:k])]).sum())
    gained: np.ndarray = (found * discount).sum(1) / most
    return gained


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
    settings: VectorSettings | None = None,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Write the vectors of a file's texts to a .npy file, as `VectorSettings.stored` has them, which is there whole or
    not at all.

    Args:
        show: called with how many are done, of how many.

    Returns:
        `texts`, `width`, `cut`, `texts_per_second`; and where vectors lose some, what `recall` says of the first part.

    Raises:
        AbridgedError: see `SentenceEncoder.encode`; the file changed while it was read; the disk does not let it.
    """
    settings = settings or VectorSettings()
    done, cut, began = 0, 0, time.perf_counter()
    kept: dict[str, float] = {}
    with written_file(output) as temporary:
        vectors: np.memmap | None = None
        for some in texts.chunks():
            found = encoder.encode(some, prompt, settings.batch_size)
            stored = settings.stored(found.vectors)
            if vectors is None:
                shape = (len(texts), stored.shape[1])
                vectors = np.lib.format.open_memmap(temporary, mode="w+", dtype=stored.dtype, shape=shape)
                if settings.loses:
                    kept = recall(unit(found.vectors), settings.kind, settings.dimensions)
                width = settings.dimensions or int(found.vectors.shape[1])
            if done + len(some) > len(texts):
                break
            vectors[done : done + len(some)] = stored
            done, cut = done + len(some), cut + found.cut
            show(done, len(texts))
        if vectors is None or done != len(texts):
            raise AbridgedError(f"{texts.path} changed while it was read")
        vectors.flush()
        del vectors
    note_cut(cut, done, encoder.limit)
    return {"texts": done, "width": width, "cut": cut, "texts_per_second": done / seconds_since(began), **kept}
