"""Cutting: a masked model and the smaller one that it is cut to are the same function, in every family."""

import pytest
import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.families.layout import HIDDEN, layout_of
from abridged.methods.pruning.masked import attach, detach
from abridged.methods.quantization.method import Quantize
from abridged.storage.compressed import compressed_of
from pruned import ALL, MODELS, answer, build, cut_to, masked, parts


@pytest.mark.parametrize("blocks", ["all blocks", "blocks removed"])
@pytest.mark.parametrize("name", MODELS)
def test_a_masked_model_is_the_cut_one(name, blocks):
    model = build(name)
    removed = ()
    if blocks == "blocks removed":
        removed = (parts(model, "attention")[0], parts(model, "attention")[-1], parts(model, "ffn")[0])
    before = answer(model)
    masks, kept = masked(model, removed=removed)
    expected = answer(model)
    assert not torch.allclose(expected, before, atol=1e-2)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in masks.parameters())
    cut_to(model, masks, kept)
    assert torch.allclose(answer(model), expected, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < 0.7 * count
    assert compressed_of(model).shapes.parameters == count


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_exactly(name):
    model = build(name)
    layout = layout_of(model, families.view(model))
    total = sum(p.numel() for p in model.parameters())
    assert layout.parameters(layout.full(), dict.fromkeys(layout.axes, 1)) == total
    removed = (parts(model, "attention")[1], parts(model, "ffn")[-1])
    masks, kept = masked(model, removed=removed)
    counts = {name: len(units) for name, units in kept.items()}
    predicted = layout.parameters(counts, {name: float(name not in removed) for name in layout.axes})
    cut_to(model, masks, kept)
    assert predicted == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_view_of_a_cut_model_has_its_sizes(name):
    model = build(name)
    gone = parts(model, "attention")[1]
    masks, kept = masked(model, removed=(gone,))
    cut_to(model, masks, kept)
    view = families.view(model)
    assert view.hidden_size == len(kept[HIDDEN])
    for matrix in view.matrices:
        shape = tuple(model.get_submodule(matrix.name).weight.shape)
        assert (matrix.rows, matrix.columns) == (shape[::-1] if matrix.transposed else shape)
    assert gone not in view.attentions
    assert {part.path: part.units for part in view.parts} == {
        path: len(units) for path, units in kept.items() if path not in (HIDDEN, gone)
    }


def test_a_cut_model_can_be_cut_again():
    model = build("gpt2")
    cut_to(model, *masked(model, share=0.8, removed=(parts(model, "ffn")[0],)))
    masks, kept = masked(model, share=0.7, removed=(parts(model, "attention")[0],), seed=5)
    expected = answer(model)
    total = compressed_of(model).shapes.parameters
    cut_to(model, masks, kept)
    assert torch.allclose(answer(model), expected, atol=1e-5)
    assert compressed_of(model).shapes.parameters == total
    assert len(compressed_of(model).shapes.removed) == 3


def test_every_block_removed_leaves_the_residual_path():
    model = build("llama")
    everything = (*parts(model, "attention"), *parts(model, "ffn"))
    masks, kept = masked(model, removed=everything)
    expected = answer(model)
    cut_to(model, masks, kept)
    assert torch.allclose(answer(model), expected, atol=1e-5)
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert out.shape[1] == 7


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_generation_with_a_cache_is_generation_without(name):
    model = build(name)
    first = parts(model, "attention")[0]
    cut_to(model, *masked(model, removed=(first, parts(model, "attention")[-1])))
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    with_cache = model.generate(ids, use_cache=True, **options)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("name", ["gpt2", "bert", "bart"])
def test_masks_of_ones_change_nothing_and_leave_no_trace(name):
    model = build(name)
    before, names = answer(model), [name for name, _ in model.named_parameters()]
    masks = attach(model, layout_of(model, families.view(model)), "random", ALL)
    assert torch.allclose(answer(model), before, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names
    detach(model, masks)
    assert torch.equal(answer(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_quantised_already_cannot_be_pruned():
    model = build("gpt2")
    Quantize.model_validate({"activations": {"bits": None}}).build(model, families.view(model), lambda model: None)
    with pytest.raises(AbridgedError, match="prune before anything else"):
        layout_of(model, families.view(model))
