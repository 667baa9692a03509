"""Text from a causal language model, piece by piece as it is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from queue import Queue
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import TextStreamer

from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_END = object()


class Generation:
    """The pieces of a continuation as they come, then how many `tokens` it took and how many `seconds`.

    Pieces are whole words, since a token may be a part of a character. Closing it, or leaving the loop over it,
    stops the model at its next token.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, settings: dict[str, Any]
    ) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._queue: Queue[Any] = Queue()
        self._stopped = threading.Event()
        self._work = (model, tokenizer, ids, settings)
        self._pieces = self._stream()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop writing."""
        self._pieces.close()

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second, the reading of the prompt included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def _stream(self) -> Generator[str, None, None]:
        worker = threading.Thread(target=self._run, daemon=True)
        worker.start()
        try:
            while (piece := self._queue.get()) is not _END:
                if isinstance(piece, BaseException):
                    raise piece
                if piece:
                    yield piece
        finally:
            self._stopped.set()
            worker.join()

    def _run(self) -> None:
        model, tokenizer, ids, settings = self._work
        generation = self

        class Streamer(TextStreamer):
            def put(self, value: torch.Tensor) -> None:
                if not self.next_tokens_are_prompt:
                    generation.tokens += value.numel()
                super().put(value)

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                generation._queue.put(text)

        class Stopped(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                return torch.full((len(input_ids),), generation._stopped.is_set(), device=input_ids.device)

        begun = time.perf_counter()
        try:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                stopping_criteria=[Stopped()],
                **settings,
            )
        except BaseException as error:  # handed to the thread that reads
            self._queue.put(error)
        self.seconds = time.perf_counter() - begun
        self._queue.put(_END)


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
) -> Generation:
    """Continue `prompt`; iterate over the result to get the text as it is written.

    Args:
        max_new_tokens: tokens to write at most; fewer where the model's positions or its end-of-text come first.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: draw from the k likeliest tokens; 0 draws from all.
        top_p: draw from the fewest likeliest tokens whose probabilities sum to this.
        seed: of torch's generator; the same seed writes the same text. None leaves the generator as it is.

    Raises:
        AbridgedError: a setting is out of range, or the prompt is empty or leaves no room in the model's positions.
    """
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise AbridgedError(
            "generation needs max_new_tokens of at least 1, temperature and top_k of at least 0, and top_p in (0, 1]; "
            f"given {max_new_tokens}, {temperature}, {top_k}, {top_p}"
        )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    if ids.numel() == 0:
        if tokenizer.bos_token_id is None:
            raise AbridgedError("the prompt is empty, and the tokenizer has no token to begin with: give some words")
        ids = torch.tensor([[tokenizer.bos_token_id]])
    limit = getattr(model.config, "max_position_embeddings", None) or ids.shape[1] + max_new_tokens
    room = limit - ids.shape[1]
    if room < 1:
        raise AbridgedError(f"the prompt has {ids.shape[1]} tokens, and the model can continue at most {limit - 1}")
    if int(ids.max()) >= model.config.vocab_size:
        raise AbridgedError(
            f"the tokenizer does not fit the model: token {int(ids.max())} of a vocabulary of {model.config.vocab_size}"
        )
    settings: dict[str, Any] = {"max_new_tokens": min(max_new_tokens, room), "pad_token_id": tokenizer.eos_token_id}
    if temperature == 0:
        settings |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    else:
        settings |= {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    if seed is not None:
        torch.manual_seed(seed)
    model.eval()
    return Generation(model, tokenizer, ids.to(next(iter(model.parameters())).device), settings)
