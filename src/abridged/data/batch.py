"""What a training or measuring step reads: token ids, what is to be predicted, and what is padding."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """Examples of the training data, padded to one length.

    Attributes:
        input_ids: (B, T) int64, what the language model, or an encoder-decoder's decoder, reads.
        labels: (B, T) int64, `labels[:, t]` is the token, or the token's label, to be predicted from input t; -100
            never counts. Of whole texts, (B,) int64 labels or (B,) float scores.
        index: (B,) int64, number of each example in the training data.
        attention_mask: (B, T), 0 where padded; None = nothing is padded that could be seen.
        source_ids: (B, S) int64, what the encoder of an encoder-decoder reads; None = there is none.
        source_mask: (B, S) int64, 0 where the source is padded.
        token_types: (B, T) int64, 0 for the first text and 1 for the second; None = the model knows no types.
    """

    input_ids: Tensor
    labels: Tensor
    index: Tensor
    attention_mask: Tensor | None = None
    source_ids: Tensor | None = None
    source_mask: Tensor | None = None
    token_types: Tensor | None = None

    @property
    def counted(self) -> Tensor:
        """(B, T) bool: the tokens that enter the losses; of labelled texts all but the padding."""
        if self.labels.shape == self.input_ids.shape:
            return self.labels != -100
        if self.attention_mask is None:
            return torch.ones_like(self.input_ids, dtype=torch.bool)
        return self.attention_mask.bool()

    @property
    def model_inputs(self) -> dict[str, Any]:
        """The arguments of a Hugging Face model's forward."""
        if self.source_ids is None:
            types = {} if self.token_types is None else {"token_type_ids": self.token_types}
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **types}
        return {
            "input_ids": self.source_ids,
            "attention_mask": self.source_mask,
            "decoder_input_ids": self.input_ids,
            "decoder_attention_mask": self.attention_mask,
        }

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: t.to(device, non_blocking=True) for k, t in tensors.items() if t is not None})
