"""Which tokens of a text are masked, and by what."""

import numpy as np
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.masking import MaskedTexts
from abridged.data.tokenizer import learn_tokenizer

TEXT = "One line of a text. Another line, which is longer, of the same text! And a third? Yes.\n" * 200


def test_shares_of_what_is_masked_are_berts(tokenizer):
    found = MaskedTexts.of(TEXT, tokenizer, 32)
    torch.manual_seed(0)
    batches = [found.batch(torch.arange(len(found) - 1)) for _ in range(20)]
    read = torch.cat([batch.input_ids for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    chosen = labels != -100
    assert (chosen.sum(1) == 4).all()  # round(0.15 * 30)
    masked = (read == tokenizer.mask_token_id)[chosen].float().mean()
    kept = (read == labels)[chosen].float().mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)
    whole = torch.from_numpy(np.stack(found.ids[:-1])).repeat(20, 1)
    assert torch.equal(read[~chosen], whole[~chosen])
    assert torch.equal(labels[chosen], whole[chosen])
    assert not chosen[:, [0, -1]].any()
    assert (whole[:, 0] == tokenizer.bos_token_id).all()
    others = read[chosen & (read != labels) & (read != tokenizer.mask_token_id)]
    assert not np.isin(others.numpy(), tokenizer.all_special_ids).any()


def test_what_is_masked_is_drawn_anew_and_from_torchs_generator(tokenizer):
    found = MaskedTexts.of(TEXT, tokenizer, 32)
    torch.manual_seed(3)
    first, second = (found.batch(torch.arange(4)).labels for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(found.batch(torch.arange(4)).labels, first)
    assert not torch.equal(first, second)


def test_windows_hold_all_of_the_text_and_a_short_one_has_a_mask_too(tokenizer):
    found = MaskedTexts.of(TEXT[:500], tokenizer, 16)
    tokens = tokenizer(TEXT[:500], add_special_tokens=False)["input_ids"]
    assert np.concatenate([ids[own] for ids, own in zip(found.ids, found.own, strict=True)]).tolist() == tokens
    short = MaskedTexts.of("a", tokenizer, 16).batch(torch.tensor([0]))
    assert short.labelled.sum() == 1
    assert short.counted.sum() == 3


def test_a_tokenizer_without_a_mask_and_windows_without_room_are_refused(tokenizer):
    with pytest.raises(AbridgedError, match="a tokenizer with a mask token"):
        MaskedTexts.of(TEXT, learn_tokenizer(TEXT, 300, 64), 16)
    with pytest.raises(AbridgedError, match="has no room"):
        MaskedTexts.of(TEXT, tokenizer, 2)
    with pytest.raises(AbridgedError, match="no tokens to mask"):
        MaskedTexts.of("", tokenizer, 16)
