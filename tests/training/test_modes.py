"""Modes of a model in training: what is kept for the backward pass, and that all is as before after it."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from abridged import families
from abridged.runtime.attention import _softmax
from abridged.training.modes import gelus_in_one_step, hold_in_bf16


def kept(run):
    """Bytes that a forward pass keeps for the backward one."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(found.values())


@pytest.mark.parametrize("name", ["gelu_new", "gelu"])
def test_gelus_keep_their_input_alone_and_say_the_same(name):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, activation_function=name))
    ids, own = torch.randint(64, (2, 32)), [block.mlp.act for block in model.transformer.h]
    wanted, most = model(ids).logits, kept(lambda: model(ids))
    with gelus_in_one_step(model):
        assert all(type(block.mlp.act) is nn.GELU for block in model.transformer.h)
        assert torch.allclose(model(ids).logits, wanted, atol=1e-6)
        least = kept(lambda: model(ids))
    assert [block.mlp.act for block in model.transformer.h] == own
    each = 2 * 32 * 128 * 4  # tokens, width, bytes
    assert most - least >= (2 * 3 * each if name == "gelu_new" else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_softmax_that_keeps_its_result_alone(dtype):
    torch.manual_seed(0)
    scores, weights = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8).to(dtype)
    (wanted,) = torch.autograd.grad((torch.softmax(scores, -1).to(dtype) * weights).sum(), scores)
    found = _softmax(scores, dtype)
    assert torch.equal(found, torch.softmax(scores, -1).to(dtype))
    (gradient,) = torch.autograd.grad((found * weights).sum(), scores)
    assert torch.allclose(gradient, wanted, atol=1e-6 if dtype == torch.float32 else 4e-3)
    assert kept(lambda: _softmax(scores, dtype)) == scores.numel() * dtype.itemsize
    assert torch.autograd.gradcheck(lambda x: _softmax(x, torch.float64), scores.double().detach().requires_grad_())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "t5", "bart", "bert", "blip"])
def test_a_teacher_in_bf16_answers_the_same_where_products_are_in_it(name):
    model, inputs = tiny.build(name).eval(), tiny.inputs(tiny.build(name))
    view, before = families.view(model), sum(p.numel() * p.element_size() for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(**inputs)
        hold_in_bf16(model, view)
        found = model(**inputs)
    tensors = {key: value for key, value in wanted.items() if isinstance(value, torch.Tensor)}
    assert tensors
    assert all(torch.equal(value, found[key]) for key, value in tensors.items())
    assert sum(p.numel() * p.element_size() for p in model.parameters()) < 0.65 * before
