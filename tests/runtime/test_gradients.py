"""Gradients through packed models are those of dense models with the same values, in float64, and those of training."""

import pytest
import torch
import torch.nn.functional as F

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.core.errors import AbridgedError
from abridged.exporters.dense import dense_model
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.activations import ClipQuantize
from abridged.methods.quantization.method import Quantize
from abridged.runtime import backends, ops
from abridged.runtime.activations import Rounding, apply_function, level_range
from abridged.runtime.weight import PackedWeight
from abridged.storage.code_books import CODE_BOOKS
from packed import drawn
from students import IDS, quantized_student
from tiny import FAST, build, inputs

ROWS, COLUMNS = 12, 20
SCALE, ZERO_POINT = torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)
ROUNDINGS = {
    "none": None,
    "per token": Rounding(8),
    "static": Rounding(4, SCALE),
    "asymmetric": Rounding(4, SCALE, ZERO_POINT),
    "one bit": Rounding(1, SCALE * 8),
}


def weight(book="ternary", packing="bits", scales=ROWS):
    return drawn(ROWS, COLUMNS, book, packing, scales)[0]


@pytest.mark.parametrize("book", CODE_BOOKS)
@pytest.mark.parametrize("scales", [1, ROWS, 4 * ROWS])
def test_a_linear_layers_in_float64(book, scales, monkeypatch):
    monkeypatch.setattr(backends, "SLICE_WEIGHTS", 5 * COLUMNS)
    packed = weight(book, scales=scales)
    x, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, COLUMNS), (ROWS,)))
    given = torch.randn(2, 3, ROWS, dtype=torch.float64)
    ours = torch.autograd.grad(ops.linear(packed, x, bias), (x, bias), given)
    theirs = torch.autograd.grad(F.linear(x, packed.dequantize().double(), bias), (x, bias), given)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_backward_no_more_than_a_quarter_of_a_matrix_is_dense(monkeypatch):
    sizes, scaled = [], PackedWeight.scaled

    def seen(self, codes, *more):
        sizes.append(len(codes))
        return scaled(self, codes, *more)

    packed, x = weight(), torch.randn(3, COLUMNS, requires_grad=True)
    y = ops.linear(packed, x)
    monkeypatch.setattr(PackedWeight, "scaled", seen)
    y.sum().backward()
    assert sizes == [ROWS // 4] * 4


@pytest.mark.parametrize("asked", ["model", "layer", "weight"])
def test_codes_have_none_and_say_so(asked):
    model = pack_model(quantized_student())
    layer = model.transformer.h[0].attn.c_attn
    with pytest.raises(AbridgedError, match="packed weights are codes, which have no gradients"):
        {"model": model, "layer": layer, "weight": layer.weight}[asked].requires_grad_()
    assert model.requires_grad_(False) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_linear_layers_have_gradients_themselves():
    packed, x = weight(), torch.randn(2, COLUMNS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ops.linear(packed, x, None, None, "gelu").square(), (x,))


def test_a_compiled_linear_layers_are_the_same():
    packed, x = weight(), torch.randn(3, COLUMNS, requires_grad=True)

    def layer(x):
        return ops.linear(packed, x, None, Rounding(4, SCALE, ZERO_POINT), "gelu").sin().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(torch.autograd.grad(compiled(x), x)[0], torch.autograd.grad(layer(x), x)[0], atol=1e-6)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("function", ["identity", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_linear_layers_are_trainings(rounding, function, dtype):
    """Of what enters a rounded product, what is clipped is told nothing, and the rest as if nobody rounded."""
    packed, rounding = weight(), ROUNDINGS[rounding]
    x = torch.randn(5, COLUMNS, dtype=dtype, requires_grad=True)
    bias = torch.randn(ROWS, requires_grad=True)
    given = torch.randn(5, ROWS, dtype=dtype)
    ours = torch.autograd.grad(ops.linear(packed, x, bias, rounding, function), (x, bias), given)
    entering = apply_function(x.float(), function)
    if rounding is not None and rounding.scale is not None:
        low, high = level_range(rounding.bits, rounding.zero_point is None)
        zero = 0 if rounding.zero_point is None else rounding.zero_point
        ends = rounding.scale * (low - zero), rounding.scale * (high - zero)
        entering = ClipQuantize.apply(entering, *ends, rounding.bits, rounding.zero_point is None, False)
    y = F.linear(entering, packed.dequantize(), bias)
    theirs = torch.autograd.grad(y, (x, bias), given.float())
    apart = 1e-5 if dtype == torch.float32 else 0.03
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=apart, atol=4 * apart)


def test_scales_to_be_trained_are_refused_in_the_forward_pass():
    packed = weight()
    packed.scales.requires_grad_()
    for call in (lambda: ops.linear(packed, torch.ones(1, COLUMNS)), lambda: ops.embedding(packed, torch.tensor([0]))):
        with pytest.raises(AbridgedError, match="have no gradients"):
            call()


def loss(model, given):
    made = model(**given)
    return (made.logits if hasattr(made, "logits") else made[0]).square().mean()


def gradients(model, given=None):
    model.zero_grad()
    loss(model, given or {"input_ids": IDS}).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def thawed(model):
    """The packed model with every parameter that has gradients asking for them."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] not in ("codes", "scales"))
    return model


def assert_same(found, expected, relative):
    """Those that both have, as shares of the largest of each; that of a bias of keys is 0 but for round-off."""
    common = found.keys() & expected.keys()
    assert len(common) > 5
    least = 1e-5 * max(float(expected[name].abs().max()) for name in common)
    for name in common:
        apart = (found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(least)
        assert apart <= relative, f"{name} is {apart} apart"


def quantized(model, *methods):
    for method in (*methods, Quantize.model_validate({"activations": {"bits": None}})):
        method.build(model, families.view(model), lambda model: None).finish()
    return pack_model(model)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["64", "32"])
def test_a_models_are_a_dense_ones(name, dtype, relative):
    """In float32 by whatever kernels there are."""
    model = build(name)
    packed, given = quantized(model), inputs(model)
    dense = dense_model(packed, dtype)
    assert_same(gradients(thawed(packed.to(dtype)), given), gradients(dense, given), relative)


@pytest.mark.parametrize("form", ["nearest", "low_rank"])
def test_a_factored_models_are_a_dense_ones(form):
    model = quantized(build("gpt2"), Kronecker(form=form))
    dense = dense_model(model, torch.float64)
    assert_same(gradients(thawed(model.double())), gradients(dense), 1e-6)  # factors are multiplied out in FP32


ACTIVATIONS = {
    "in attention": {"attention": True},
    "per token": {"quantizer": "dynamic", "attention": True},
    "4 bits": {"bits": 4, "attention": False},
}


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_a_models_are_its_students(activations, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    student = quantized_student(activations={"bits": 8, **ACTIVATIONS[activations]})
    found = gradients(thawed(pack_model(student)))
    assert_same(found, gradients(student), 1e-4)


def test_a_steps_are_those_of_the_whole():
    model = thawed(quantized(build("gpt2")))
    whole = torch.autograd.grad(model(IDS).logits[:, -1].square().sum(), model.transformer.ln_f.bias)
    past = model(IDS[:, :-1], use_cache=True).past_key_values
    last = torch.autograd.grad(
        model(IDS[:, -1:], past_key_values=past).logits.square().sum(), model.transformer.ln_f.bias
    )
    torch.testing.assert_close(last, whole, rtol=1e-3, atol=1e-4)
