"""A learned prompt: vectors that stand before the embeddings of every text that a model reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError

#: What the parameter of the body is called, and the tensor of a file, as in peft's.
NAME = "prompt_embeddings"


def attach_prompt(model: Any, embeddings: Tensor) -> nn.Parameter:
    """Let a model, or the body of one, read every text behind `embeddings` (tokens, hidden); returns the parameter.

    Its config says from then on how many positions that takes (`prompt_tokens`).

    Raises:
        AbridgedError: it has a prompt.
    """
    if prompt_of(model) is not None:
        raise AbridgedError("the model has a prompt, and reads no second one")
    body = model.base_model.get_decoder()  # of OPT a part of it, of most it is itself
    parameter = nn.Parameter(embeddings)
    body.register_parameter(NAME, parameter)
    body.forward = Prompted(body, body.forward)
    keep_room(model.config, len(embeddings))
    return parameter


def keep_room(config: Any, tokens: int) -> None:
    """Leave so many of a model's positions to a prompt, which texts then do without (`families.kinds.context_of`)."""
    (config.get_text_config() if hasattr(config, "get_text_config") else config).prompt_tokens = tokens


def prompt_of(model: Any) -> nn.Parameter | None:
    """The vectors (tokens, hidden) before a model's texts, if there are any."""
    return next((module.get_parameter(NAME) for module in model.modules() if NAME in module._parameters), None)


class Prompted:
    """Stands in for the `forward` of a body: the prompt goes before a text that begins, and comes out no more.

    As with peft's prompt tuning (Lester et al., arXiv:2104.08691, section 2) the prompt has the first positions, and
    the text those behind it. Whoever goes on with a cache, which holds the prompt, need not know of it: masks and
    positions that count the text alone are made to fit.
    """

    def __init__(self, body: Any, forward: Callable[..., Any]) -> None:
        self.body, self._forward = body, forward
        self.__signature__ = inspect.signature(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.__signature__.parameters, args, strict=False)) | kwargs
        prompt = self.body.get_parameter(NAME)
        text = given.get("inputs_embeds")
        cache, read = given.get("past_key_values"), given["input_ids"] if text is None else text
        seen = 0 if cache is None else int(cache.get_seq_length())
        if not seen:
            text = self.body.get_input_embeddings()(read) if text is None else text
            before = prompt.to(text).expand(len(text), -1, -1)
            given |= {"input_ids": None, "inputs_embeds": torch.cat([before, text], 1)}
        if (mask := given.get("attention_mask")) is not None:
            given["attention_mask"] = _mask(mask, len(prompt), seen, read.shape[1])
        if (positions := given.get("position_ids")) is not None:
            given["position_ids"] = _positions(positions, len(prompt), seen)
        made = self._forward(**given)
        return made if seen else without(made, len(prompt))


def _mask(mask: Tensor, tokens: int, seen: int, read: int) -> Tensor:
    """A mask (B, text) with the prompt, which every token sees; `seen` and `read` tokens are in the cache and new."""
    if mask.dim() != 2:
        raise AbridgedError("a model with a prompt takes masks of tokens (B, T), and no other ones")
    if mask.shape[1] != read + max(0, seen - tokens):
        raise AbridgedError("the mask and the cache that a model with a prompt was given are of different texts")
    return torch.cat([mask.new_ones(len(mask), tokens), mask], 1)


def _positions(positions: Tensor, tokens: int, seen: int) -> Tensor:
    """Positions (…, T) of a text, counted from the prompt's first; and before a text that begins, the prompt's."""
    if seen:
        return positions + tokens
    own = torch.arange(tokens, device=positions.device).expand(*positions.shape[:-1], -1)
    return torch.cat([own, positions + tokens], -1)


def without(made: Any, tokens: int) -> Any:
    """What a body gives, of the text alone: states (B, T, hidden), and attention (B, heads, T, prompt and text)."""
    if isinstance(made, tuple):
        return made[0][:, tokens:], *made[1:]
    made.last_hidden_state = made.last_hidden_state[:, tokens:]
    if made.get("hidden_states") is not None:
        made.hidden_states = tuple(states[:, tokens:] for states in made.hidden_states)
    if made.get("attentions") is not None:
        made.attentions = tuple(weights[:, :, tokens:] for weights in made.attentions)
    return made
