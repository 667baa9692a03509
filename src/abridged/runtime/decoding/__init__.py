"""One token after another with little between the kernels: what a packed model's `forward` does in `generate`.

Hugging Face's modules cost more time at each token than the packed weights do. So a step of one token, the plain case
of generation on a CPU, goes straight from kernel to kernel, with keys and values appended in place; everything else
(prompts, padding, training, tracing, hooks, other devices) goes the stock way. Both give the same logits but for
rounding, and both keep the same cache, so they may take turns.

How a token passes a model is found by watching it (`describe`), said as data (`spec`), and compared with the model's
own steps before it is used (`prepared`).
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from abridged.core.errors import AbridgedError
from abridged.core.hardware import give_back_memory
from abridged.runtime import kernels, micro_batches
from abridged.runtime.attention import ON_KERNELS
from abridged.runtime.decoding.cache import Appending, in_8_bits
from abridged.runtime.decoding.prepared import Prepared
from abridged.runtime.fused import fuse_gelu
from abridged.runtime.prompt import prompt_of

if TYPE_CHECKING:
    from abridged.storage.view import View

#: What `forward` may be given in a step; anything else that is not None or False goes the stock way.
_KNOWN = {
    "input_ids",
    "past_key_values",
    "attention_mask",
    "position_ids",
    "use_cache",
    "return_dict",
    "logits_to_keep",
}


class Forward:
    """Stands in for a model's `forward`."""

    def __init__(self, model: Any, context: int | None = None) -> None:
        """context: tokens that the model's positions reach, where they end."""
        self.model, self.context = model, context
        self._prepared: Prepared | None = None
        self._cache: weakref.ref[Any] | None = None
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))
        self.__code__ = type(model).forward.__code__  # torch.export names a graph by it

    def __reduce__(self) -> tuple[type, tuple[Any, int | None]]:
        """What is prepared points into this process's memory."""
        return Forward, (self.model, self.context)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return type(self.model).forward(self.model, *args, **kwargs)
        try:
            return self._step(kwargs) if not args and self._is_step(kwargs) else self._stock(args, kwargs)
        except IndexError as error:
            if reason := self._out_of_range(*args, **kwargs):
                raise AbridgedError(reason) from error
            raise

    def _stock(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return type(self.model).forward(self.model, *args, **kwargs)

    def _step(self, kwargs: dict[str, Any]) -> Any:
        cache = kwargs["past_key_values"]
        # in the text of the last step nobody is taken to change the model
        going_on = self._cache is not None and self._cache() is cache
        prepared = self._prepared if going_on and self._prepared is not None else self.prepared()
        if prepared.steps is None or not (going_on or Appending.fits(cache, prepared.steps.windows)):
            return self._stock((), kwargs)
        self._cache = weakref.ref(cache)
        return prepared.steps(kwargs["input_ids"], cache)

    def _out_of_range(self, *args: Any, **kwargs: Any) -> str | None:
        """What a table of tokens or positions has no row for."""
        given = self.__signature__.bind(*args, **kwargs).arguments
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        vocabulary = self.model.config.get_text_config().vocab_size
        if ids is not None and len(strange := ids[(ids < 0) | (ids >= vocabulary)]):
            return f"token {int(strange[0])} is none of the {vocabulary} of the model's vocabulary"
        length = (given["inputs_embeds"] if ids is None else ids).shape[1]
        seen = 0 if cache is None else cache.get_seq_length()
        length += seen or (0 if (prompt := prompt_of(self.model)) is None else len(prompt))
        if self.context is None or length <= self.context:
            return None
        return f"the text has {length} tokens, and the model's positions end after {self.context}"

    def _is_step(self, kwargs: dict[str, Any]) -> bool:
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        if ids is None or cache is None or ids.shape[-1] != 1 or ids.dim() != 2 or kwargs.get("use_cache") is False:
            return False
        if any(value is not None and value is not False for key, value in kwargs.items() if key not in _KNOWN):
            return False
        if torch.is_grad_enabled() or self.model.training:
            return False
        config = self.model.config
        if config.output_attentions or config.output_hidden_states or kwargs.get("return_dict") is False:
            return False
        length = Appending.length(cache)
        if not length or cache.layers[0].keys.shape[0] != ids.shape[0]:
            return False
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        plain = mask is None or (mask.dim() == 2 and mask.shape[1] == length + 1 and bool(mask.all()))
        return plain and (positions is None or bool((positions == length).all()))

    def prepared(self) -> Prepared:
        """The steps, or why there are none; made anew where the model has been moved or changed."""
        if self._prepared is None or not self._prepared.intact():
            self._prepared = Prepared(self.model)
            give_back_memory()  # what was made on the way of some models is a tenth of them
        return self._prepared

    def narrow(self, cache: Any, bits: int = 16) -> int:
        """Keep a cache in bf16, whose reading takes half the time, or in 8 bits, where nothing but steps will follow.

        Returns its bits: 8 there are only where a step is one call into the library, and 32 where steps are none, or
        round what they read.
        """
        steps = self.prepared().steps
        if steps is None or not Appending.length(cache) or steps.quantized_attention:
            return 32
        if not Appending.fits(cache, steps.windows):
            return 32
        small = bits == 8 and steps.at_once(len(cache.layers[0].keys))
        for layer in cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                setattr(layer, name, in_8_bits(held) if small else held.to(torch.bfloat16))
        return 8 if small else 16


def why_slow(model: Any) -> str | None:
    """Why a loaded decoder takes transformers' own steps in `generate`; None where it takes the fast ones."""
    if not isinstance(model.forward, Forward):
        return "the compiled kernels are not in use, or the model is none that goes on with a text in one place"
    return model.forward.prepared().reason


def install(model: Any, view: View | None) -> None:
    """Let a packed model on the CPU use what the compiled kernels have: steps of one token, GELU on the way, attention,
    beams, and large batches in portions.

    view: what the model is made of, where that is known.
    """
    if kernels.kernels() is None or getattr(model, "hf_device_map", None):
        return
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ON_KERNELS)
    if view is not None:
        fuse_gelu(model, view)
        micro_batches.install(model, view)
    if model.config.is_encoder_decoder:
        model._reorder_cache = reorder_beams
    elif model.can_generate() and "past_key_values" in inspect.signature(type(model).forward).parameters:
        model.forward = Forward(model, view.context if view is not None and view.positions else None)


def reorder_beams(cache: Any, beams: Tensor) -> Any:
    """Let a cache follow its beams (B,), as `generate` asks in beam search.

    The beams of a document share what the decoder sees of it, so that keys and values across stay as they are;
    transformers copies them at every token.
    """
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    own.reorder_cache(beams)
    return cache
