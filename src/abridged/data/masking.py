"""A text as windows in which tokens are masked: what BERT is pre-trained on.

Source: Devlin et al., "BERT", NAACL 2019, arXiv:1810.04805, section 3.1 and appendix A.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.blocks import specials_around, tokenize
from abridged.data.padding import PaddedTexts, rectangle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Share of a window's tokens that are to be predicted, and of these the shares that become the mask, or another token.
PREDICTED, MASKED, REPLACED = 0.15, 0.8, 0.1


@dataclass(frozen=True)
class MaskedTexts(PaddedTexts):
    """Windows of a text with their special tokens. Which tokens are masked is drawn anew at each visit."""

    mask: int
    ordinary: np.ndarray  #: ids that may stand in the place of a token: all but special ones
    own: list[np.ndarray]  #: (tokens,) bool of each window: the text's own tokens

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase, context: int) -> MaskedTexts:
        """Cut a text into windows of `context` tokens, special ones included; the last one is what is left.

        Raises:
            AbridgedError: the tokenizer has no mask, the text no tokens, or there is no room beside special tokens.
        """
        if tokenizer.mask_token_id is None:
            raise AbridgedError("a model that fills masks needs a tokenizer with a mask token")
        before, after = specials_around(tokenizer)
        window = context - len(before) - len(after)
        if window < 1:
            raise AbridgedError(f"a context of {context} has no room beside the special tokens")
        tokens = tokenize(tokenizer, text)
        if not len(tokens):
            raise AbridgedError("the text has no tokens to mask")
        ids = [
            np.concatenate([before, tokens[start : start + window], after]).astype(np.int64)
            for start in range(0, len(tokens), window)
        ]
        own = [np.arange(len(row)) - len(before) for row in ids]
        types = [np.zeros_like(row) for row in ids] if "token_type_ids" in tokenizer.model_input_names else None
        return cls(
            ids=ids,
            types=types,
            labels=np.zeros(len(ids), dtype=np.int64),
            pad=tokenizer.pad_token_id or 0,
            mask=tokenizer.mask_token_id,
            ordinary=np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids),
            own=[(place >= 0) & (place < len(place) - len(before) - len(after)) for place in own],
        )

    @property
    def same_length(self) -> bool:
        return len(set(map(len, self.ids))) == 1

    def batch(self, index: Tensor) -> Batch:
        """The windows at `index` with tokens masked, and the labels of these."""
        random = np.random.default_rng(int(torch.randint(2**31, (1,))))
        rows, labels = zip(*(self._masked(i, random) for i in index.tolist()), strict=True)
        found = super().batch(index)
        inputs = {**found.inputs, "input_ids": rectangle(rows, self.pad)}
        return replace(found, inputs=inputs, labels=rectangle(labels, -100), sparse=True)

    def _masked(self, number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(tokens,) a window as the model reads it, and the ids of the tokens that it is to predict, else -100."""
        ids, places = self.ids[number].copy(), np.flatnonzero(self.own[number])
        chosen = random.choice(places, max(1, round(PREDICTED * len(places))), replace=False)
        labels = np.full(len(ids), -100, dtype=np.int64)
        labels[chosen] = ids[chosen]
        draw = random.random(len(chosen))
        ids[chosen[draw < MASKED]] = self.mask
        others = chosen[(draw >= MASKED) & (draw < MASKED + REPLACED)]
        ids[others] = random.choice(self.ordinary, len(others))
        return ids, labels
