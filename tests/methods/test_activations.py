"""The learned clip: values, gradients against autograd surrogates in float64, calibration, and fixing it."""

import pytest
import torch

from abridged.methods.quantization.activations import ClipQuantize, LearnedActivation, affine, calibrated_range
from abridged.methods.quantization.settings import ActivationSettings


def learned(values, symmetric=True, **settings):
    module = LearnedActivation(ActivationSettings(**settings), symmetric)
    module.observing = True
    assert torch.equal(module(values), values)
    module.calibrate()
    return module


def inputs(symmetric):
    x = torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(0)) * 3
    return x if symmetric else torch.nn.functional.gelu(x)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("calibration", ["percentile", "least_squares"])
def test_fixed_quantizer_gives_the_same_values(symmetric, bits, calibration):
    x = inputs(symmetric)
    module = learned(x, symmetric, bits=bits, calibration=calibration)
    with torch.no_grad():
        module.high_factor.mul_(0.77)
    static = module.static()
    for values in (x, x.bfloat16(), x * 5):
        assert torch.equal(module(values), static(values))
        assert module(values).dtype == values.dtype
    if bits == 1:
        assert len(static(x).unique()) == 2
        return
    levels = static(x) / static.scale + static.zero_point
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert len(levels.round().unique()) <= 2**bits
    assert (module(x) - x).square().mean() < x.square().mean() * (0.1 if bits == 4 else 0.01)


def surrogate(x, low, high, bits, symmetric, full):
    """The same map in differentiable pieces: rounding is held constant, and for PACT so is the step inside."""
    with torch.no_grad():
        scale, zero_point = affine(low, high, bits, symmetric)
    smallest, largest = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    smallest, largest = (-1, 1) if bits == 1 and symmetric else (smallest, largest)
    zero = torch.zeros_like(scale) if zero_point is None else zero_point
    units = x.detach() / scale + zero
    nearest = torch.where(units < 0, -1.0, 1.0) if bits == 1 and symmetric else units.round()
    residual = nearest - units
    step = (high - low) / (largest - smallest) if full else scale
    inside = x + step * residual
    return torch.where(units >= largest, high, torch.where(units <= smallest, low, inside))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("full", [True, False])
def test_gradients_are_those_of_the_surrogate(symmetric, bits, full):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, dtype=torch.float64, generator=generator) * 2
    grad = torch.randn(500, dtype=torch.float64, generator=generator)
    found, expected = [], []
    for results, apply in ((found, ClipQuantize.apply), (expected, surrogate)):
        leaves = [x.clone(), torch.tensor([-1.3], dtype=x.dtype), torch.tensor([1.3 if symmetric else 2.1]).to(x)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        apply(*leaves, bits, symmetric, full).backward(grad)
        results += [leaf.grad for leaf in leaves]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def test_symmetric_factor_gradient_and_relative_rate():
    x = inputs(True)
    small, large = learned(x, calibration="percentile"), learned(x * 100, calibration="percentile")
    small(x).sum().backward()
    large(x * 100).sum().backward()
    clip = small.range()[1].item()
    expected = clip * ((x >= clip).sum() - (x <= -clip).sum()).item()  # the percentile is a value of x
    assert small.high_factor.grad.item() == pytest.approx(expected, rel=1e-3)
    assert large.high_factor.grad.item() == pytest.approx(100 * expected, rel=1e-3)


def test_constant_start_is_learned_absolutely():
    module = learned(inputs(True), initial="constant", constant=2.5)
    assert module.high_factor.item() == 2.5
    assert module.high_base.item() == 1.0
    assert module(torch.tensor([7.0, -0.1]))[0] == 2.5


def test_percentile_ignores_outliers():
    x = torch.cat([torch.linspace(-1, 1, 100_001), torch.tensor([1e6])])
    low, high = calibrated_range(x, ActivationSettings(percentile=99.0), symmetric=True)
    assert high == pytest.approx(0.99, abs=1e-3)
    assert low == -high
    low, high = calibrated_range(x, ActivationSettings(percentile=99.0), symmetric=False)
    assert (low, high) == pytest.approx((-0.98, 0.98), abs=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_squares_calibration_beats_no_clip_and_neighbours(symmetric):
    torch.manual_seed(0)
    x = torch.distributions.StudentT(3.0).sample((20_000,))
    x = x if symmetric else torch.nn.functional.gelu(x)
    settings = ActivationSettings(bits=4, calibration="least_squares")
    low, high = calibrated_range(x, settings, symmetric)

    def error(low, high):
        return (
            (ClipQuantize.apply(x, torch.tensor([low]), torch.tensor([high]), 4, symmetric, False) - x).square().sum()
        )

    best = error(low, high)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert best <= error(low * factor if symmetric else low, high * factor) * 1.01


def test_values_all_zero_are_calibrated_to_something_finite():
    module = learned(torch.zeros(4, 4))
    assert torch.equal(module(torch.zeros(4, 4)), torch.zeros(4, 4))
    assert torch.isfinite(module(torch.ones(2))).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_compiled_without_graph_breaks_and_equal_to_eager(symmetric):
    x = inputs(symmetric).requires_grad_()
    module = learned(x.detach(), symmetric)
    results = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        x.grad = None
        output = run(x)
        output.square().sum().backward()
        results.append([output.detach(), x.grad, *(parameter.grad.clone() for parameter in module.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-4)


def test_what_is_kept_for_calibration_does_not_keep_the_activations():
    quantizer = LearnedActivation(ActivationSettings(), True)
    quantizer.observe(torch.randn(400_000))
    (sample,) = quantizer._samples
    assert sample.untyped_storage().nbytes() == 4 * sample.numel() < 400_000
