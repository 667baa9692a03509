"""What a training or measuring step reads: what a model is given, what is to be predicted, and what is padding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Examples of the training data, padded to one size.

    Attributes:
        inputs: the arguments of a Hugging Face model's forward, by their names there, whatever they are: token ids and
            masks (B, T), pixels (B, channels, height, width).
        labels: (B, T) int64, `labels[:, t]` is the token, or the token's label, to be predicted from input t; -100
            never counts. Of whole examples, (B,) int64 labels or (B,) float scores.
        index: (B,) int64, number of each example in the training data.
        sparse: whether only some tokens have labels of their own, such as those that were masked; what layers give is
            compared on all that are no padding.
        twins: whether the second half are the examples of the first half, with what happens in them in the other order.
        pooling: (B, T) FP32, what each token counts in the vector of its text, where texts are to become vectors.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    index: Tensor
    twins: bool = False
    sparse: bool = False
    pooling: Tensor | None = None

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        labels: Tensor,
        index: Tensor,
        attention_mask: Tensor | None = None,
        source_ids: Tensor | None = None,
        source_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Batch:
        """A batch of texts.

        Args:
            input_ids: (B, T) int64, what the language model, or an encoder-decoder's decoder, reads.
            attention_mask: (B, T), 0 where padded; None = nothing is padded that could be seen.
            source_ids: (B, S) int64, what the encoder of an encoder-decoder reads; None = there is none.
            source_mask: (B, S) int64, 0 where the source is padded.
            token_types: (B, T) int64, 0 for the first text and 1 for the second; None = the model knows no types.
        """
        before = "" if source_ids is None else "decoder_"
        given = {
            "input_ids": source_ids,
            "attention_mask": source_mask,
            f"{before}input_ids": input_ids,
            f"{before}attention_mask": attention_mask,
            "token_type_ids": token_types,
        }
        return cls({name: value for name, value in given.items() if value is not None}, labels, index)

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """The arguments of a Hugging Face model's forward."""
        return self.inputs

    @property
    def input_ids(self) -> Tensor:
        """(B, T) int64, what a language model or a decoder reads."""
        return self.inputs["decoder_input_ids" if self._decodes else "input_ids"]

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, T) of `input_ids`, 0 where padded."""
        return self.inputs.get("decoder_attention_mask" if self._decodes else "attention_mask")

    @property
    def source_ids(self) -> Tensor | None:
        """(B, S) int64, what an encoder reads where there is a decoder, too; None where that is no text."""
        return self.inputs.get("input_ids") if self._decodes else None

    @property
    def source_mask(self) -> Tensor | None:
        """(B, S) of `source_ids`, 0 where padded."""
        return self.inputs.get("attention_mask") if self._decodes else None

    @property
    def _decodes(self) -> bool:
        return "decoder_input_ids" in self.inputs

    @property
    def tokens(self) -> list[Tensor]:
        """All token ids (B, …) that the model reads; none of a picture."""
        return [value for name, value in self.inputs.items() if name.endswith("input_ids")]

    @property
    def labels_examples(self) -> bool:
        """Whether the labels are of whole examples, not of tokens."""
        return not self.tokens or self.labels.shape != self.input_ids.shape

    def pooled(self, hidden: Tensor) -> Tensor:
        """The vectors (B, d) of the texts, in FP32, of their tokens' last hidden states (B, T, d)."""
        assert self.pooling is not None
        return (self.pooling.unsqueeze(-1) * hidden.float()).sum(1)

    @property
    def counted(self) -> Tensor:
        """(B, T) bool: the tokens that enter the losses; of labelled examples, or where only some tokens have labels,
        all but the padding; and (B, 1), true of all that a model makes of them, where they are no texts."""
        if not self.labels_examples and not self.sparse:
            return self.labelled
        if not self.tokens:
            return torch.ones(len(self.index), 1, dtype=torch.bool, device=self.index.device)
        if self.attention_mask is None:
            return torch.ones_like(self.input_ids, dtype=torch.bool)
        return self.attention_mask.bool()

    @property
    def labelled(self) -> Tensor:
        """(B, T) bool: the tokens that have labels."""
        return self.labels != -100

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        inputs = {name: moved(value) for name, value in self.inputs.items()}
        pooling = None if self.pooling is None else moved(self.pooling)
        return replace(self, inputs=inputs, labels=moved(self.labels), index=moved(self.index), pooling=pooling)
