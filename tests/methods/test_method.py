"""Quantize on a whole model: what it swaps, shares, calibrates, trains and leaves behind."""

import copy

import pytest
import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods import METHODS
from abridged.methods.quantization.activations import LearnedActivation
from abridged.methods.quantization.modules import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from abridged.runtime.activations import DynamicActivation
from abridged.storage.compressed import compressed_of
from abridged.storage.view import Matrix


def prepared(model, calibrate, **settings):
    return METHODS["quantize"](**settings).build(model, families.view(model), calibrate)


def sources(model):
    return {id(m): m for m in model.modules() if isinstance(m, QuantizedWeight)}.values()


def test_every_matrix_is_swapped_and_the_rest_left(model, calibrate):
    wpe = model.transformer.wpe
    prepared(model, calibrate)
    block = model.transformer.h[1]
    assert isinstance(model.transformer.wte, QuantizedEmbedding)
    assert isinstance(model.lm_head, QuantizedLinear)
    assert model.lm_head.source is model.transformer.wte.source
    assert model.transformer.wpe is wpe
    assert all(isinstance(m, QuantizedLinear) for m in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc))
    assert block.attn.c_attn.source.weight.shape == (96, 32)
    assert block.attn.c_attn.source.quantizer.gamma.shape == (3,)
    assert block.mlp.c_fc.input_quantizer.symmetric
    assert not block.mlp.c_proj.input_quantizer.symmetric
    assert isinstance(model.lm_head.input_quantizer, LearnedActivation)
    assert len(sources(model)) == 9


@torch.no_grad()
def test_eight_bits_change_little_and_two_change_much(model, calibrate, ids):
    reference = model(ids).logits
    errors = {}
    for bits in (8, 2):
        student = copy.deepcopy(model)
        weights = {"bits": bits, "initialization": "least_squares"}  # γ = 1 clips at mean|w|: far off at 8 bits
        prepared(student, calibrate, weights=weights, embeddings=weights, activations={"attention": True})
        errors[bits] = ((student(ids).logits - reference).norm() / reference.norm()).item()
    assert errors[8] < 0.05 < errors[2]


@torch.no_grad()
def test_forward_is_the_model_with_quantised_weights(model, calibrate, ids):
    """Put the fake-quantised weights into a stock model: the same logits, so bias and orientation are right."""
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    student = copy.deepcopy(model)
    prepared(student, calibrate, weights={"bits": 4}, activations={"bits": None}, positions=True)
    for matrix in families.view(model).matrices:
        weight = student.get_submodule(matrix.name).source()
        model.get_submodule(matrix.name).weight.copy_(weight.t() if matrix.transposed else weight)
    assert torch.allclose(student(ids).logits, model(ids).logits, atol=1e-5)


def test_null_bits_leave_modules_alone(model, calibrate):
    prepared(model, calibrate, weights={"bits": 4}, embeddings={"bits": None}, activations={"bits": None})
    assert type(model.transformer.wte).__name__ == "Embedding"
    assert type(model.lm_head).__name__ == "Linear"
    assert model.transformer.h[0].mlp.c_fc.input_quantizer is None


def test_exceptions_are_quantised_otherwise_by_part_or_path(model, calibrate):
    exceptions = {"*.h.0.*.c_proj": {"bits": 8}, "attention": {"bits": 4}, "*.h.1.*": {"bits": None}}
    prepared(model, calibrate, exceptions=exceptions)
    blocks = model.transformer.h
    assert blocks[0].mlp.c_proj.source.settings.bits == 8
    assert blocks[0].attn.c_proj.source.settings.bits == 8  # the first that it falls under counts
    assert blocks[0].attn.c_attn.source.settings.bits == 4
    assert blocks[0].mlp.c_fc.source.settings.bits == 2
    assert blocks[1].attn.c_proj.source.settings.bits == 4
    assert type(blocks[1].mlp.c_fc).__name__ == "Conv1D"


def test_exceptions_reach_the_factors_of_a_matrix(model, calibrate):
    kronecker = METHODS["kronecker"](form="low_rank", matrices=["embedding", "ffn"])
    kronecker.build(model, families.view(model), calibrate)
    prepared(model, calibrate, exceptions={"embedding.right": {"bits": 8}, "ffn.left": {"bits": 4}})
    wte, up = model.transformer.wte, model.transformer.h[0].mlp.c_fc
    assert (wte.left.source.settings.bits, wte.right.source.settings.bits) == (2, 8)
    assert model.lm_head.right.source is wte.right.source
    assert (up.left.source.settings.bits, up.right.source.settings.bits) == (4, 2)


def test_a_path_that_begins_as_a_part_is_called_names_its_matrix():
    pooler = Matrix("pooler.dense", "linear", "pooler", None, 4, 4)  # of a BertModel
    assert pooler.is_called("pooler.dense")
    assert pooler.is_called("pooler")
    assert not pooler.is_called("pooler.left")


@pytest.mark.parametrize("pattern", ["pooler", "embedding.right", "*.c_nothing"])
def test_an_exception_that_nothing_falls_under_is_refused(model, calibrate, pattern):
    with pytest.raises(AbridgedError, match="exceptions: the model has no matrix"):
        prepared(model, calibrate, exceptions={pattern: {"bits": 8}})


def test_exceptions_without_training_are_rounded_to_nearest():
    method = METHODS["quantize"](exceptions={"head": {"bits": 4, "quantizer": "lsq"}})
    assert method.untrained().exceptions["head"].quantizer == "minmax"


def test_prepared_parts_of_the_head_make_its_logits(model, calibrate):
    prepared(model, calibrate)
    head, h = model.lm_head, torch.randn(2, 5, 32)
    assert torch.equal(head(h), head.prepared_inputs(h) @ head.prepared_weight().T)


@pytest.mark.parametrize("activations", [{"attention": True}, {"quantizer": "dynamic"}, {"clip_gradient": "full"}])
def test_every_parameter_is_trained_and_generation_works(model, calibrate, ids, activations):
    attached = prepared(model, calibrate, activations=activations)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    groups = attached.parameter_groups()
    learned = activations.get("quantizer") != "dynamic"
    assert len(groups["scale"]) == 9
    # each layer: three symmetric inputs and one with two ends; Q, K, V, and two ends of the probabilities; the head
    assert len(groups["clip"]) == (0 if not learned else 2 * (5 + 5) + 1 if activations.get("attention") else 11)
    assert not set(map(id, groups["scale"])) & set(map(id, groups["clip"]))
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 15)


def test_a_few_steps_learn(model, calibrate, ids):
    prepared(model, calibrate, weights={"initialization": "least_squares"})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_calibration_sees_the_full_precision_model(model, ids):
    seen = []

    def calibrate(model):
        seen.append(type(model.transformer.h[0].attn.c_attn).__name__)
        model(ids)

    with torch.no_grad():
        expected = model.transformer.h[0].ln_1(model.transformer.wte(ids) + model.transformer.wpe.weight[:12])
    prepared(model, calibrate, activations={"percentile": 100})
    assert seen == ["Conv1D"]
    clip = model.transformer.h[0].attn.c_attn.input_quantizer.range()[1]
    assert clip.item() == pytest.approx(expected.abs().max().item(), rel=1e-5)
    assert not any(m.observing or m._forward_pre_hooks for m in model.modules() if isinstance(m, LearnedActivation))


def test_constant_start_needs_no_data(model):
    def never(model):
        raise AssertionError("no calibration wanted")

    prepared(model, never, activations={"initial": "constant"})
    assert model.lm_head.input_quantizer.range()[1].item() == 2.5


def test_a_second_stage_keeps_masters_and_clips(model, calibrate, ids):
    prepared(model, calibrate, weights={"bits": 8}, embeddings={"bits": 8}, activations={"bits": None})
    source = model.transformer.h[0].attn.c_attn.source
    with torch.no_grad():
        source.weight.add_(0.01)
    master = source.weight.clone()
    prepared(model, calibrate, weights={"bits": 4}, embeddings={"bits": 4})
    clip = model.lm_head.input_quantizer
    prepared(model, calibrate, weights={"bits": 1, "quantizer": "lsq"}, embeddings={"bits": 1})
    attention = model.transformer.h[0].attn.c_attn
    assert attention.source is source
    assert torch.equal(source.weight, master)
    assert source.stored().code_book == "binary"
    assert model.lm_head.input_quantizer is clip
    assert model.lm_head.source is model.transformer.wte.source
    prepared(model, calibrate, activations={"quantizer": "dynamic", "attention": True})
    assert isinstance(model.lm_head.input_quantizer, DynamicActivation)
    assert torch.isfinite(model(ids).logits).all()
    prepared(model, calibrate, activations={"bits": None})
    assert not hasattr(model.transformer.h[0].attn, "attention_quantizers")
    assert model.lm_head.input_quantizer is None


def test_same_scale_rule_keeps_what_was_learned(model, calibrate):
    prepared(model, calibrate)
    quantizer = model.transformer.h[0].mlp.c_fc.source.quantizer
    with torch.no_grad():
        quantizer.gamma.fill_(1.7)
    prepared(model, calibrate, activations={"bits": 4})
    assert model.transformer.h[0].mlp.c_fc.source.quantizer.gamma.item() == pytest.approx(1.7)


def test_finish_rounds_only_what_is_stored_as_it_is(model, calibrate):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    attached = prepared(model, calibrate, unquantized="float16")
    masters = [source.weight.clone() for source in sources(model)]
    clip = model.lm_head.input_quantizer.high_base.clone()
    attached.finish()
    assert compressed_of(model).unquantized_dtype == "float16"
    for parameter in (
        model.transformer.wpe.weight,
        model.transformer.h[0].mlp.c_fc.bias,
        model.transformer.ln_f.weight,
    ):
        assert torch.equal(parameter, parameter.half().float())
    assert all(torch.equal(a, b.weight) for a, b in zip(masters, sources(model), strict=True))
    assert torch.equal(clip, model.lm_head.input_quantizer.high_base)


def test_a_model_with_nan_is_refused_by_name(model, calibrate):
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(AbridgedError, match="transformer.h.1.mlp.c_fc"):
        prepared(model, calibrate)


def test_copies_keep_the_tie(model, calibrate):
    prepared(model, calibrate)
    copied = copy.deepcopy(model)
    assert copied.lm_head.source is copied.transformer.wte.source
    assert copied.lm_head.source is not model.lm_head.source
