"""BLIP's text encoder and decoder, whose attention goes through transformers' interface.

That is how the heads are found and cut, and how fused attention and the compiled kernels come in.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import (
    BlipTextLMHeadModel,
    BlipTextModel,
    BlipTextOnlyMLMHead,
    BlipTextSelfAttention,
)

from abridged.models.video.vision import eager_attention_forward


class TextAttention(BlipTextSelfAttention):
    """Self- or cross-attention; which is told by whether there are states of an encoder."""

    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, heads * d), and the probabilities where the implementation has them."""
        across = encoder_hidden_states is not None

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:-1], -1, self.attention_head_size).transpose(1, 2)

        query = heads(self.query(hidden_states))
        cache = past_key_values
        if cache is not None:
            cache = cache.cross_attention_cache if across else cache.self_attention_cache
        if across and cache is not None and past_key_values.is_updated.get(self.layer_idx):
            key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            read = encoder_hidden_states if across else hidden_states
            key, value = heads(self.key(read)), heads(self.value(read))
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
                if across:
                    past_key_values.is_updated[self.layer_idx] = True
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        found, probabilities = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.attention_head_size**-0.5,
            dropout=self.dropout.p if self.training else 0.0,
        )
        return found.reshape(*found.shape[:2], -1), probabilities


class TextModel(BlipTextModel):
    """The text encoder; with states of a video it reads these, too."""

    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config, add_pooling_layer)
        for number, layer in enumerate(self.encoder.layer):
            layer.attention.self = TextAttention(config, False, layer_idx=number)
            layer.crossattention.self = TextAttention(config, True, layer_idx=number)
        self.post_init()


class TextDecoder(BlipTextLMHeadModel):
    """The text decoder, which writes answers."""

    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: BlipTextConfig) -> None:
        super(BlipTextLMHeadModel, self).__init__(config)  # whose own would make an encoder without the interface
        self.bert = TextModel(config)
        self.cls = BlipTextOnlyMLMHead(config)
        self.label_smoothing = config.label_smoothing
        for layer in self.bert.encoder.layer:
            layer.attention.self.is_causal = True  # where there is no padding, transformers makes no mask
        self.post_init()
