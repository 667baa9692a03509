"""A head that is run on some tokens says of them what the whole model says."""

import pytest
import torch

import tiny
from abridged.families.logits import run_head_on

HEADS = [name for name in tiny.TINY if name.endswith(("-masked", "-tokens"))]


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_some_tokens_are_answered_as_in_the_whole(name):
    model = tiny.build(name)
    model.set_attn_implementation("eager")
    inputs = {"input_ids": tiny.inputs(model)["input_ids"]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][1, 9:] = 0
    chosen = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    chosen[0, [1, 5]] = chosen[1, 3] = True
    wanted = model(**inputs, output_hidden_states=True, output_attentions=True)
    logits, last, found = run_head_on(model, inputs, chosen, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(logits, wanted.logits[chosen])
    torch.testing.assert_close(last, model.base_model(**inputs).last_hidden_state)
    for ours, theirs in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [x.shape for x in found.attentions] == [x.shape for x in wanted.attentions]
    torch.testing.assert_close(model(**inputs).logits, wanted.logits)  # nothing stays behind
    assert run_head_on(model, inputs, torch.zeros_like(chosen))[0].shape == (0, wanted.logits.shape[-1])
