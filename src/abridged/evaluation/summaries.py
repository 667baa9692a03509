"""Summaries by beam search, and how near they come to what people wrote: ROUGE, lengths and repetition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.modes import evaluating
from abridged.core.progress import seconds_since
from abridged.core.text import refuse_half_characters
from abridged.data.pairs import Pair, Specials, TokenPairs
from abridged.families.kinds import context_of, is_encoder_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUGE = ("rouge1", "rouge2", "rougeL")
#: transformers' own defaults, which say nothing of what a model was made for.
_UNSAID = {"num_beams": (None, 1), "max_length": (None, 20), "no_repeat_ngram_size": (None, 0)}


@dataclass(frozen=True)
class SearchSettings:
    """How a summary is searched for. What is None is as the model's generation config has it, else the usual.

    Attributes:
        beams: hypotheses kept (usual: 4).
        max_new_tokens: tokens written at most (usual: 64).
        no_repeat_ngram_size: runs of so many tokens occur once at most (usual: 3); 0 allows all.
        length_penalty: exponent of the length that a hypothesis' log probability is divided by (usual: 1).
        batch_size: documents at once; they are sorted by length, so that little is padded.
    """

    beams: int | None = None
    max_new_tokens: int | None = None
    no_repeat_ngram_size: int | None = None
    length_penalty: float | None = None
    batch_size: int = 16

    def arguments(self, model: PreTrainedModel) -> dict[str, Any]:
        """The arguments of `model.generate`."""
        own = model.generation_config
        assert own is not None

        def choose(asked: Any, key: str, usual: Any) -> Any:
            said = getattr(own, key, None)
            return asked if asked is not None else usual if said in _UNSAID.get(key, (None,)) else said

        beams = choose(self.beams, "num_beams", 4)
        arguments = {
            "num_beams": beams,
            "max_new_tokens": choose(self.max_new_tokens, "max_length", 64),
            "no_repeat_ngram_size": choose(self.no_repeat_ngram_size, "no_repeat_ngram_size", 3),
            "do_sample": False,
        }
        if beams > 1:
            arguments |= {"length_penalty": choose(self.length_penalty, "length_penalty", 1.0), "early_stopping": True}
        room = context_of(model.config) - 1
        return arguments | {"max_new_tokens": min(arguments["max_new_tokens"], room)}


@dataclass(frozen=True)
class Summaries:
    """What a model wrote.

    Attributes:
        texts: one for each document, in the documents' order.
        tokens: written in all, special ones not counted.
        cut: documents that were longer than the model's positions and lost their ends.
        seconds: the model's own.
    """

    texts: list[str]
    tokens: int
    cut: int
    seconds: float


@torch.inference_mode()
def summarize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    settings: SearchSettings | None = None,
    show: Callable[[int], None] = lambda done: None,
) -> Summaries:
    """Let an encoder-decoder write a summary of each document; an empty one has an empty summary.

    Args:
        show: called with the number of documents done.

    Raises:
        AbridgedError: the model is no encoder-decoder.
    """
    if not is_encoder_decoder(model):
        raise AbridgedError(
            f"a {model.config.model_type} goes on with a text and does not make one of another: use an encoder-decoder"
        )
    refuse_half_characters(*documents)
    settings = settings or SearchSettings()
    specials = Specials.of(tokenizer, model.config)
    given = [i for i, document in enumerate(documents) if document.strip()]
    texts = [""] * len(documents)
    if not given:
        return Summaries(texts, 0, 0, 0.0)
    pairs = [Pair(documents[i].strip(), "-") for i in given]
    examples = TokenPairs.of(pairs, tokenizer, specials, context_of(model.config), 8)
    by_length = sorted(range(len(given)), key=lambda i: -len(examples.sources[i]))
    arguments = settings.arguments(model)
    tokens, seconds = 0, 0.0
    with evaluating(model) as device:
        for start in range(0, len(by_length), settings.batch_size):
            index = torch.tensor(by_length[start : start + settings.batch_size])
            batch = examples.batch(index).to(device)
            begun = time.perf_counter()
            written = model.generate(batch.source_ids, attention_mask=batch.source_mask, **arguments)
            seconds += seconds_since(begun)
            for number, ids in zip(index.tolist(), written.tolist(), strict=True):
                kept = [i for i in ids if i not in tokenizer.all_special_ids]
                texts[given[number]] = tokenizer.decode(kept).strip()
                tokens += len(kept)
            show(min(start + settings.batch_size, len(by_length)))
    return Summaries(texts, tokens, examples.source_cut, seconds)


def rouge(summaries: Sequence[str], pairs: Sequence[Pair]) -> Measured:
    """ROUGE F1 of summaries in per cent (Lin 2004, by the package rouge-score, with stemming), and plain figures.

    Returns:
        `rouge1`, `rouge2`, `rougeL` against the target; `best_reference`, the same against whichever of target and
        further references is nearest, where there are any; `words` and `reference_words`, means of the summaries and
        targets; `repeated`, share of the summaries' word pairs that occurred before in the same one; `empty`, how
        many summaries have no word.

    Raises:
        AbridgedError: rouge-score is not installed.
    """
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    own, best = dict.fromkeys(ROUGE, 0.0), dict.fromkeys(ROUGE, 0.0)
    for text, pair in zip(summaries, pairs, strict=True):
        for key, score in scorer.score(pair.target, text).items():
            own[key] += 100 * score.fmeasure / len(pairs)
        if pair.references:
            for key, score in scorer.score_multi([pair.target, *pair.references], text).items():
                best[key] += 100 * score.fmeasure
    several = sum(bool(pair.references) for pair in pairs)
    further: dict[str, Any] = {}
    if several:
        further = {"best_reference": {key: value / several for key, value in best.items()}, "with_references": several}
    bigrams = [list(zip(words, words[1:], strict=False)) for words in (text.lower().split() for text in summaries)]
    return Measured(
        [Measurement(key, value, key.replace("rouge", "ROUGE-"), headline=True) for key, value in own.items()],
        **further,
        words=sum(len(text.split()) for text in summaries) / len(pairs),
        reference_words=sum(len(pair.target.split()) for pair in pairs) / len(pairs),
        repeated=1 - sum(len(set(some)) for some in bigrams) / max(1, sum(map(len, bigrams))),
        empty=sum(not text for text in summaries),
    )


def has_rouge() -> bool:
    """Whether the package that computes ROUGE is installed."""
    return find_spec("rouge_score") is not None


def require_rouge() -> None:
    """Raise AbridgedError unless `has_rouge`."""
    if not has_rouge():
        raise AbridgedError("ROUGE needs the package rouge-score: pip install 'abridged[summaries]'")
