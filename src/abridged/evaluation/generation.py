"""Text from a causal language model, piece by piece as it is written.

A loop of our own around the model's forward: what `model.generate` adds to it for all the things that it can do costs
as much time at each token as a small packed model itself. A packed model's keys and values are kept in bf16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.decoders import DecodeStream

from abridged.core.errors import AbridgedError
from abridged.core.text import refuse_half_characters
from abridged.families.kinds import context_of, is_encoder_decoder, is_language_model
from abridged.runtime.decoding import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Pieces:
    """The pieces of a continuation as they come, then how many `tokens` it took and how many `seconds`.

    `seconds` are the model's own: what the reader does between two pieces does not count. Closing it, or leaving the
    loop over it, ends it. `room` is how many tokens the model's context leaves, where they are fewer than were asked.
    """

    def __init__(self, pieces: Generator[str, None, None], room: int | None = None) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self.room = room
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop writing."""
        self._pieces.close()

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second, the reading of the prompt included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def is_cut(self) -> bool:
        """Whether it ended because the model's context was full."""
        return self.tokens == self.room


class Generation(Pieces):
    """What a model in this process writes."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ids: torch.Tensor,
        count: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
        room: int | None = None,
        cache_bits: int = 16,
    ) -> None:
        """Up to `count` tokens after ids (1, T), or the `room` that there is; `choose` takes one from logits
        (vocabulary,). `cache_bits` are those asked for, and then those that the cache has."""
        super().__init__(self._write(model, tokenizer, ids, min(count, room or count), choose), room)
        self.cache_bits = cache_bits

    def _write(
        self, model: Any, tokenizer: Any, ids: torch.Tensor, count: int, choose: Callable[[torch.Tensor], torch.Tensor]
    ) -> Generator[str, None, None]:
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = set(ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends])
        stream = DecodeStream(skip_special_tokens=True)
        written: list[int] = []
        shown = 0
        given: dict[str, Any] = {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}
        while len(written) < count and not (written and written[-1] in ends):
            begun = time.perf_counter()
            with torch.inference_mode():
                out = model(**given)
                logits = out.logits[0, -1].float()
                if not math.isfinite(logits.max()):
                    raise AbridgedError("what the model answers are not numbers (NaN or infinity)")
                written.append(int(choose(logits)))
                if not self.tokens and len(written) < count:
                    steps = isinstance(model.forward, Forward)
                    self.cache_bits = model.forward.narrow(out.past_key_values, self.cache_bits) if steps else 32
            given |= {"input_ids": ids.new_tensor([written[-1:]]), "past_key_values": out.past_key_values}
            piece = stream.step(tokenizer.backend_tokenizer, written[-1])
            self.tokens += 1
            self.seconds += time.perf_counter() - begun
            if piece:
                shown += len(piece)
                yield piece
        # what the stream still holds back is part of a character
        if rest := tokenizer.decode(written, skip_special_tokens=True)[shown:]:
            yield rest


class Sampler:
    """Draws from the likeliest tokens as transformers' warpers do: temperature, then top-k, then top-p."""

    def __init__(self, temperature: float, top_k: int, top_p: float) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """One index into logits (vocabulary,)."""
        if self.temperature == 0:
            return logits.argmax()
        count = min(self.top_k or len(logits), len(logits))
        if count == len(logits) and self.top_p == 1:
            return torch.multinomial(torch.softmax(logits / self.temperature, 0), 1)
        best, indices = torch.topk(logits, count)  # falling
        chances = torch.softmax(best / self.temperature, 0)
        if self.top_p < 1:  # a token stays while those before it come to less than top_p
            chances = torch.where(chances.cumsum(0) - chances < self.top_p, chances, 0.0)
        return indices[torch.multinomial(chances, 1)]


def check_settings(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise AbridgedError for a setting that is out of range."""
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise AbridgedError(
            "generation needs max_new_tokens of at least 1, temperature and top_k of at least 0, and top_p in (0, 1]; "
            f"given {max_new_tokens}, {temperature}, {top_k}, {top_p}"
        )


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int | None = None,
    cache_bits: int = 16,
) -> Generation:
    """Continue `prompt`; iterate over the result to get the text as it is written.

    Args:
        max_new_tokens: tokens to write at most; fewer where the model's positions end (`is_cut` of the result) or its
            end-of-text comes first.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: draw from the k likeliest tokens; 0 draws from all.
        top_p: draw from the fewest likeliest tokens whose probabilities sum to this.
        seed: of torch's generator; the same seed writes the same text. None leaves the generator as it is.
        cache_bits: 16 or 8, of keys and values, where steps are our own on the CPU; `cache_bits` of the result says
            which they are, after the first token.

    Raises:
        AbridgedError: a setting is out of range, or the prompt is empty or leaves no room in the model's positions.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    if cache_bits not in (8, 16):
        raise AbridgedError(f"keys and values are kept in 8 or 16 bits, not in {cache_bits}")
    if is_encoder_decoder(model):
        raise AbridgedError("an encoder-decoder makes one text of another and does not go on with one: use summarize")
    if not is_language_model(model):
        raise AbridgedError(f"a {type(model).__name__} writes no text")
    refuse_half_characters(prompt)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    if ids.numel() == 0:
        if tokenizer.bos_token_id is None:
            raise AbridgedError("the prompt is empty, and the tokenizer has no token to begin with: give some words")
        ids = torch.tensor([[tokenizer.bos_token_id]])
    limit = context_of(model.config)
    room = limit - ids.shape[1]
    if room < 1:
        raise AbridgedError(f"the prompt has {ids.shape[1]} tokens, and the model can continue at most {limit - 1}")
    if int(ids.max()) >= model.config.vocab_size:
        raise AbridgedError(
            f"the tokenizer does not fit the model: token {int(ids.max())} of a vocabulary of {model.config.vocab_size}"
        )
    if seed is not None:
        torch.manual_seed(seed)
    model.eval()
    ids = ids.to(next(iter(model.parameters())).device)
    sampler = Sampler(temperature, top_k, top_p)
    return Generation(
        model, tokenizer, ids, max_new_tokens, sampler, room if room < max_new_tokens else None, cache_bits
    )
