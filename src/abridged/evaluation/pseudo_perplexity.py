"""How well a model that fills masks knows a text: its pseudo-perplexity.

Source: Salazar et al., "Masked Language Model Scoring", ACL 2020, arXiv:1910.14659, section 2.3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured
from abridged.core.modes import evaluating
from abridged.core.progress import counter
from abridged.data.masking import MaskedTexts
from abridged.data.padding import mask_of, rectangle
from abridged.evaluation.perplexity import perplexities
from abridged.families.logits import run_head_on

#: Tokens that are masked, one at a time, where nobody says how many: each takes a pass over its whole window.
MASKED = 1_024
#: Tokens that are read at once.
_READ = 8_192


@torch.inference_mode()
def pseudo_perplexity(model: Any, windows: MaskedTexts, words: int, limit: int = MASKED) -> Measured:
    """exp of the mean of -log p of a token where it alone is masked in its window.

    Args:
        words: of the whole text, which those of the masked tokens are a share of.
        limit: tokens to mask at most, spread evenly over the text.

    Returns:
        `perplexity` per token and `word_perplexity` per word; `tokens` (those masked), `tokens_in_all`, `words` and
        `context` (the longest window).

    Raises:
        AbridgedError: what the model answers are no numbers.
    """
    places = np.array([(i, place) for i, own in enumerate(windows.own) for place in np.flatnonzero(own)])
    every = len(places)
    if limit < every:
        places = places[np.linspace(0, every - 1, limit).round().astype(np.int64)]
    total, at_once = 0.0, max(1, _READ // windows.context)
    with counter("pseudo-perplexity") as show, evaluating(model) as device:
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            rows = [windows.ids[i].copy() for i, _ in some]
            true = torch.tensor([row[place] for row, (_, place) in zip(rows, some, strict=True)], device=device)
            for row, (_, place) in zip(rows, some, strict=True):
                row[place] = windows.mask
            ids = rectangle(rows, windows.pad)
            chosen = torch.zeros_like(ids, dtype=torch.bool)
            chosen[torch.arange(len(some)), torch.from_numpy(some[:, 1].copy())] = True
            inputs = {"input_ids": ids, "attention_mask": mask_of(rows, ids)}
            if windows.types is not None:
                inputs["token_type_ids"] = torch.zeros_like(ids)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            logits = run_head_on(model, inputs, chosen.to(device))[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, true, reduction="sum"))
            if not math.isfinite(total):
                raise AbridgedError("what the model answers are not numbers (NaN or infinity)")
            show(min(start + at_once, len(places)), len(places))
    of_them = max(1, round(words * len(places) / every))
    return Measured(
        perplexities(total, len(places), of_them, "pseudo-perplexity"),
        tokens=len(places),
        tokens_in_all=every,
        words=of_them,
        context=windows.context,
    )
