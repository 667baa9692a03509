"""Packed models whose scales are trained: values and gradients, and that the codes stay."""

import pytest
import torch

import tiny
from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.skeleton import packed_modules
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.fixed import FixedCodes, ScalesAlone
from abridged.methods.quantization.method import Quantize
from abridged.runtime.modules import PackedLinear
from abridged.storage.format import LinearSpec
from packed import GROUPS, drawn

ASYMMETRIC = {"weights": {"bits": 2, **GROUPS}, "embeddings": {"bits": 4, **GROUPS}, "activations": {"bits": None}}
PLAIN = {"weights": {"bits": 2}, "embeddings": {"bits": 2}, "activations": {"bits": None}}
FUSED = {"weights": {"bits": 2}, "embeddings": {"bits": 2}, "activations": {"bits": 8, "quantizer": "dynamic"}}


def fixed_codes(book, packing, scales, dtype="float16"):
    """A matrix of 6 x 32 whose codes are fixed; its levels less zero points; its scales as they are stored."""
    weight, levels, values = drawn(6, 32, book, packing, scales)
    module = PackedLinear(LinearSpec.of(weight.storage, dtype, kind="linear", bias=False))
    half = weight.scales.half().float() if dtype == "float16" else weight.scales
    module.codes.data, module.scales.data = weight.codes, half
    if weight.zeros is not None:
        module.zeros.data = weight.zeros
    steps = values.view(scales, -1) / weight.scales[:, None]
    return FixedCodes(module), module, steps.round(), half


@pytest.mark.parametrize(
    ("book", "packing", "scales"),
    [("uint2", "bits", 12), ("ternary", "base3", 6), ("q2_0", "bits", 12), ("int4", "bits", 3), ("int8", "bits", 1)],
)
def test_values_and_gradients_are_those_of_levels_times_scales(book, packing, scales):
    fixed, module, steps, half = fixed_codes(book, packing, scales)
    assert torch.equal(fixed(), module.dequantized())
    wanted = half.clone().requires_grad_(True)
    weigh = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    ((steps * wanted[:, None]).view(6, 32) * weigh).sum().backward()
    (fixed() * weigh).sum().backward()
    torch.testing.assert_close(fixed.factor.grad, wanted.grad * half)
    index, whole = torch.tensor([[3, 0], [3, 5]]), fixed.factor.grad
    assert torch.equal(fixed.rows(index), fixed()[index])
    fixed.factor.grad = None
    (fixed.rows(index) * weigh[index]).sum().backward()
    counts = torch.tensor([1.0, 0, 0, 2, 0, 1]).repeat_interleave(32).view(scales, -1)
    expected = (steps * (weigh.view(scales, -1) * counts)).sum(1) * half
    torch.testing.assert_close(fixed.factor.grad, expected, rtol=1e-5, atol=1e-4)
    assert not torch.equal(whole, fixed.factor.grad)


def test_what_is_trained_is_what_will_be_stored():
    fixed, *_ = fixed_codes("uint2", "bits", 12)
    with torch.no_grad():
        fixed.factor.copy_(torch.linspace(-1, 1.3, 12))  # scales stay positive, and numbers of FP16
    assert (fixed.scales() > 0).all()
    assert torch.equal(fixed.scales(), fixed.scales().half().float())
    assert fixed.state_dict().keys() == {"factor"}


def packed_of(name, *methods):
    model = tiny.build(name)
    for method in methods:
        method.build(model, families.view(model), lambda model, tokens=None: model(**tiny.inputs(model))).finish()
    return pack_model(model.eval())


QUANTIZE = Quantize.model_validate
FACTORS = Kronecker.model_validate({"factor": 2, "matrices": ["attention", "ffn"]})


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("gpt2", [QUANTIZE(FUSED)]),  # a tied head; GELU is the packed matrix's
        ("llama", [QUANTIZE(ASYMMETRIC)]),
        ("gemma3_text", [QUANTIZE(FUSED)]),  # an embedding that is scaled
        ("bart", [QUANTIZE(ASYMMETRIC)]),
        ("llama", [FACTORS, QUANTIZE(PLAIN)]),
    ],
)
def test_a_packed_model_is_taken_apart_trained_and_put_together(name, methods):
    model = packed_of(name, *methods)
    inputs, before = tiny.inputs(model), {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(**inputs).logits
    alone = ScalesAlone(model)
    trained = alone.parameter_groups()["scale"]
    assert len(trained) == len({id(module.codes) for module in alone.packed.values()})
    answers = model(**inputs).logits
    torch.testing.assert_close(answers, wanted, rtol=1e-3, atol=1e-3)
    answers.square().mean().backward()
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.ndim == 1 for parameter in learns)
    assert all(factor.grad is not None and factor.grad.abs().sum() > 0 for factor in trained)
    with torch.no_grad():
        for parameter in learns:
            parameter.add_(0.01)
        changed = model.eval()(**inputs).logits
    alone.finish()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert len(packed_modules(model)) == len(alone.packed)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for key, tensor in after.items():
        moves = key.endswith((".scales", ".bias")) or "norm" in key or "ln_" in key
        assert torch.equal(tensor, before[key]) == (not moves), key
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, changed, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(changed, wanted, rtol=1e-3, atol=1e-3)


def test_norms_are_rounded_to_the_type_that_they_are_stored_in():
    model = packed_of("llama", QUANTIZE({**ASYMMETRIC, "unquantized": "float16"}))
    alone = ScalesAlone(model)
    before = [module.scales.clone() for module in alone.packed.values()]
    with torch.no_grad():
        for vector in alone.vectors:
            vector.mul_(1.0001)
    alone.finish()
    assert len(alone.vectors) == 5
    assert all(torch.equal(vector, vector.half().float()) for vector in alone.vectors)
    assert all(torch.equal(module.scales, scale) for module, scale in zip(alone.packed.values(), before, strict=True))
