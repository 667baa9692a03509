"""Every quantiser: values on its grid, its published scale, and the gradients of the published formulas in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from abridged.core.errors import AbridgedError
from abridged.methods.quantization.fake import FakeQuantize, squared_error
from abridged.methods.quantization.modules import FakeQuantizer, QuantizedWeight
from abridged.methods.quantization.quantizers import QUANTIZERS, WIDTHS, Quantizer
from abridged.methods.quantization.settings import WeightSettings
from abridged.storage.code_books import CODE_BOOKS

NAMES = ("dynamic", "lsq", "pact", "laq", "twn", "minmax", "paretoq", "binary", "tbt")


def all_forms():
    for quantizer in NAMES:
        for bits in WIDTHS:
            for grid in ({}, {"levels": "ternary"}, {"levels": "balanced"}, {"levels": "q2_0"}, {"symmetric": False}):
                try:
                    yield WeightSettings(bits=bits, quantizer=quantizer, **grid, granularity="per_channel")
                except ValidationError:
                    continue


FORMS = list(all_forms())


def name_of(form):
    return f"{form.quantizer}-{form.bits}-{form.grid}"


def test_a_quantizer_is_registered_by_its_class_alone():
    assert tuple(QUANTIZERS) == NAMES
    with pytest.raises(TypeError, match="silent lacks a description"):
        type("Silent", (Quantizer,), {"name": "silent", "__doc__": "Says nothing of itself where recipes are listed."})
    assert "silent" not in QUANTIZERS


def weights(rows=6, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows).unsqueeze(1)


def with_granularity(form, granularity):
    group = {"group_size": 8} if granularity == "per_group" else {"group_size": None}
    return WeightSettings(**{**form.model_dump(), "granularity": granularity, **group})


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_training_sees_exactly_what_is_stored(form, granularity):
    for scale_dtype in ("float32", "float16"):
        chosen = with_granularity(form, granularity).model_copy(update={"scale_dtype": scale_dtype})
        source = QuantizedWeight(weights(), 3, chosen, "w")
        stored, seen = source.stored(), source()
        assert stored.levels.dtype == (torch.int8 if chosen.symmetric else torch.uint8)
        assert stored.scale.dtype == torch.float32
        assert set(stored.levels.unique().tolist()) <= set(CODE_BOOKS[stored.code_book])
        assert stored.scale.shape == ({"per_tensor": 3, "per_channel": 6, "per_group": 30}[granularity],)
        zero = torch.zeros_like(stored.scale) if stored.zero is None else stored.zero
        assert set(zero.unique().tolist()) <= {0, *CODE_BOOKS[stored.code_book]}
        lines = stored.levels.float().view(len(stored.scale), -1) - zero.unsqueeze(1)
        lines = lines * stored.scale.unsqueeze(1)
        assert torch.equal(lines.view(6, 40), seen)
        if scale_dtype == "float16":
            assert torch.equal(stored.scale, stored.scale.half().float())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_gathered_rows_are_those_of_the_whole(form, granularity):
    source = QuantizedWeight(weights(), 1, with_granularity(form, granularity), "w")
    index = torch.tensor([[5, 0, 3], [3, 3, 1]])
    assert torch.equal(source.rows(index), source()[index])


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_zero_rows_and_single_elements_stay_finite(form):
    for matrix in (torch.zeros(2, 4), torch.tensor([[0.5]]), torch.full((2, 4), -3.0)):
        source = QuantizedWeight(matrix, 1, form, "w")
        output = source()
        output.sum().backward()
        assert torch.isfinite(output).all()
        assert torch.isfinite(source.weight.grad).all()
        assert output.abs().max() <= 4 * matrix.abs().max() + 1e-9
        for parameter in source.quantizer.parameters():
            assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad):
    matrix = weights()
    matrix[2, 3] = bad
    with pytest.raises(AbridgedError, match="transformer.h.0"):
        QuantizedWeight(matrix, 1, WeightSettings(), "transformer.h.0")


def test_group_that_does_not_divide_a_row_is_an_error():
    with pytest.raises(AbridgedError, match="group_size 7"):
        QuantizedWeight(weights(), 1, WeightSettings(granularity="per_group", group_size=7), "w")


@given(
    form=st.sampled_from(FORMS),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=24),
)
@settings(max_examples=60, deadline=None)
def test_any_weights_land_on_the_grid(form, values):
    source = QuantizedWeight(torch.tensor([values]), 1, form, "w")
    stored = source.stored()
    zero = 0 if stored.zero is None else stored.zero
    assert torch.equal((stored.levels.float() - zero) * stored.scale, source())
    assert set(stored.levels.unique().tolist()) <= set(CODE_BOOKS[stored.code_book])


def quantise(quantizer, matrix, bits=2, **rest):
    form = WeightSettings(bits=bits, quantizer=quantizer, granularity="per_channel", **rest)
    return FakeQuantizer(form, matrix, 1)


def test_values_follow_the_formulas():
    w = weights()
    mean = w.abs().mean(1, keepdim=True)
    centred = w - w.mean(1, keepdim=True)

    def clip_round(alpha, n):
        return alpha * torch.round(n * torch.clamp(w / alpha, -1, 1)) / n

    for bits, n in ((2, 1), (4, 7), (8, 127)):
        assert torch.allclose(quantise("dynamic", w, bits)(w), clip_round(mean, n), rtol=1e-5)
        assert torch.allclose(quantise("lsq", w, bits)(w), clip_round(2 * mean * n**0.5, n), rtol=1e-5)
        assert torch.allclose(quantise("minmax", w, bits)(w), clip_round(w.abs().amax(1, keepdim=True), n), rtol=1e-5)
    above = w.abs() > 0.7 * mean
    level = (w.abs() * above).sum(1, keepdim=True) / above.sum(1, keepdim=True)
    assert torch.allclose(quantise("twn", w)(w), w.sign() * above * level, rtol=1e-5)
    alpha = 4 / 3 * centred.abs().mean(1, keepdim=True)
    assert torch.allclose(quantise("tbt", w)(w), alpha * torch.round(torch.clamp(centred / alpha, -1, 1)), rtol=1e-5)
    binary = centred.abs().mean(1, keepdim=True) * centred.sign()
    for quantizer in ("dynamic", "lsq", "laq", "binary", "tbt"):
        assert torch.allclose(quantise(quantizer, w, 1)(w), binary, rtol=1e-5)

    largest = w.abs().amax(1, keepdim=True)
    c = torch.clamp(w / largest, -0.99, 0.99)
    assert torch.allclose(quantise("paretoq", w)(w), largest * (torch.round(2 * c - 0.5) + 0.5) / 2, rtol=1e-5)
    ternary = quantise("paretoq", w, levels="ternary")(w)
    assert torch.allclose(ternary, largest * torch.round(1.5 * c) / 1.5, rtol=1e-5)


def test_laq_is_a_fixed_point_of_its_alternation():
    w = weights(columns=2000)
    for bits, n in ((2, 1), (4, 7)):
        levels, scale, _ = quantise("laq", w, bits).levels(w)
        b = levels.double()
        assert torch.allclose((b * w).sum(1) / b.square().sum(1), scale.double(), rtol=2e-2)
        assert levels.abs().max() == n


def test_fused_matrices_have_gammas_of_their_own():
    w = weights()
    source = QuantizedWeight(w, 3, WeightSettings(), "c_attn")
    assert source.quantizer.gamma.shape == (3,)
    with torch.no_grad():
        source.quantizer.gamma.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = w.view(3, -1).abs().mean(1) * torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(source.stored().scale, expected)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", WIDTHS[1:])
@pytest.mark.parametrize("full", [True, False])
def test_gamma_gradient_is_the_papers(bits, full, granularity):
    w = weights(4, 64, seed=3).double()
    w = w if granularity == "per_channel" else w.view(1, -1)
    form = WeightSettings(bits=bits, granularity=granularity, scale_gradient="full" if full else "clipped_only")
    quantizer = FakeQuantizer(form, w, 1).double()
    quantizer.gamma.data.fill_(0.8)
    grad = torch.randn_like(w)
    leaf = w.clone().requires_grad_()
    quantizer(leaf).backward(grad)

    mean, n = w.abs().mean(1, keepdim=True), 2 ** (bits - 1) - 1
    alpha = 0.8 * mean
    outside = w.abs() >= alpha
    inside_part = torch.round(n * w / alpha) / n - w / alpha if full else torch.zeros_like(w)
    g = torch.where(outside, w.sign(), inside_part)
    expected = (mean.squeeze(1) * (grad * g).sum(1)).sum()
    assert quantizer.gamma.grad.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(leaf.grad, torch.where(outside, 0.0, grad))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_zero_point_reaches_from_the_smallest_weight_to_the_largest(bits):
    w = torch.tensor([[-1.0, 0.25, 3.0], [1.0, 2.0, 3.0], [-3.0, -2.0, -1.0]])
    top, low, high = 2**bits - 1, torch.tensor([[-1.0], [0.0], [-3.0]]), torch.tensor([[3.0], [3.0], [0.0]])
    scale = (high - low) / top
    zero = torch.round(-low / scale)
    expected = (torch.clamp(torch.round(w / scale) + zero, 0, top) - zero) * scale
    for quantizer in ("minmax", "lsq"):
        quantised = quantise(quantizer, w, bits, symmetric=False)
        torch.testing.assert_close(quantised(w), expected)
        assert torch.equal(quantised.fit(w).zero, zero)


@pytest.mark.parametrize("full", [True, False])
def test_affine_gradients_are_lsq_plus_s(full):
    """Against autograd of LSQ+'s own formula, with the levels' rounding passed straight through."""
    w, grad = weights(3, 64, seed=4).double(), weights(3, 64, seed=5).double()
    form = WeightSettings(
        bits=3, quantizer="lsq", granularity="per_channel", symmetric=False,
        scale_gradient="full" if full else "clipped_only",
    )  # fmt: skip
    quantizer = FakeQuantizer(form, w, 1).double()
    quantizer.log_scale.data.add_(math.log(0.6))
    leaf = w.clone().requires_grad_()
    quantizer(leaf).backward(grad)

    fit = quantizer.fit(w)
    scale, low = (value.detach().clone().requires_grad_() for value in (fit.scale, -fit.zero * fit.scale))
    own = w.clone().requires_grad_()
    units = (own - low) / scale
    inside = (units > 0) & (units < 7)
    level = units.clamp(0, 7)
    ((level + (level.round() - level).detach()) * scale + low).backward(grad)
    torch.testing.assert_close(leaf.grad, own.grad)
    beyond = (grad * level.detach() * ~inside).sum(1)
    by_scale = scale.grad.flatten() if full else beyond  # with the lower end held, which here goes with the scale
    by_low = low.grad.flatten()
    torch.testing.assert_close(quantizer.log_scale.grad, (by_scale - fit.zero.flatten() * by_low) * scale.flatten())
    torch.testing.assert_close(quantizer.zero.grad, -7 * scale.flatten() * by_low)


@pytest.mark.parametrize(
    "form",
    [
        {"bits": 3, "quantizer": "lsq", "symmetric": False},
        {"bits": 2, "quantizer": "lsq", "levels": "q2_0"},
        {"bits": 4},
        {"bits": 1},
    ],
)
def test_learned_rounding_is_trained_instead_of_the_weight(form):
    w, wanted = weights(6, 32, seed=1), weights(6, 32, seed=2)
    settings = WeightSettings(granularity="per_group", group_size=16, rounding="learned", **form)
    nearest = settings.model_copy(update={"rounding": "nearest"})
    source = QuantizedWeight(w.clone(), 1, settings, "w")
    assert torch.equal(source(), QuantizedWeight(w.clone(), 1, nearest, "w")())
    optimizer = torch.optim.SGD([source.offset], 0.1)
    before = source().detach()
    for _ in range(20):
        (source() - wanted).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert source.weight.grad is None
    assert torch.equal(source.weight, w)
    after, stored = source().detach(), source.stored()
    assert float((after - wanted).square().sum()) < 0.9 * float((before - wanted).square().sum())
    zero = 0 if stored.zero is None else stored.zero.unsqueeze(1)
    found = (stored.levels.view(-1, 16).float() - zero) * stored.scale.unsqueeze(1)
    assert torch.equal(found.view_as(w), after)
    index = torch.tensor([4, 1])
    assert torch.equal(source.rows(index), after[index])
    source.install(nearest)  # a later stage goes on from what was learned
    assert source.offset is None
    assert not torch.equal(source.weight, w)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weighted_start_loses_least_where_it_counts(symmetric):
    """Against every clip of a fine grid, and against the start that counts all errors alike."""
    w = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) + (0 if symmetric else 0.7)
    importance = torch.logspace(-3, 1, 64)
    form = {"bits": 3, "quantizer": "lsq", "granularity": "per_channel", "symmetric": symmetric}

    def lost(values):
        return (importance * (values - w).square()).sum(1)

    def started(initialization):
        source = QuantizedWeight(w.clone(), 1, WeightSettings(**form, initialization=initialization), "w", importance)
        return lost(source().detach())

    found = started("weighted")
    assert bool((found <= started("own") + 1e-9).all())
    assert float(found.sum()) < 0.9 * float(started("least_squares").sum())
    best = torch.full((5,), math.inf)
    shares = torch.linspace(0.2, 1.0, 41)
    low, high = w.amin(1, keepdim=True).clamp_max(0), w.amax(1, keepdim=True).clamp_min(0)
    for first in shares:
        for second in shares if not symmetric else [first]:
            if symmetric:
                scale, zero, ends = w.abs().amax(1, keepdim=True) * first / 3, 0.0, (-3, 3)
            else:
                scale = (high * second - low * first) / 7
                zero, ends = (-low * first / scale).round(), (0, 7)
            best = torch.minimum(best, lost(((w / scale + zero).round().clamp(*ends) - zero) * scale))
    assert float(found.sum()) <= 1.15 * float(best.sum())


def test_q2_0_turns_its_levels_to_the_longer_side_and_finds_the_best_step():
    """Against every step of a fine grid, of either sign."""
    w = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    w[0], w[1] = w[0].abs(), -w[1].abs()
    form = WeightSettings(quantizer="lsq", levels="q2_0", granularity="per_channel", initialization="least_squares")
    stored = QuantizedWeight(w.clone(), 1, form, "w").stored()
    assert stored.zero is None
    assert stored.code_book == "q2_0"
    assert stored.scale[0] > 0 > stored.scale[1]
    lost = (stored.levels * stored.scale.unsqueeze(1) - w).square().sum(1)
    best = torch.full((24,), math.inf)
    for share in torch.linspace(-1.2, 1.2, 300):
        step = w.abs().amax(1, keepdim=True) * share
        best = torch.minimum(best, ((w / step).round().clamp(-1, 2) * step - w).square().sum(1))
    assert float(lost.sum()) <= 1.02 * float(best.sum())
    with pytest.raises(ValidationError, match="the quantizer dynamic is ternary or balanced at 2 bits"):
        WeightSettings(levels="q2_0")
    with pytest.raises(ValidationError, match="levels: q2_0 goes without center"):
        WeightSettings(quantizer="lsq", levels="q2_0", center=True)


def test_what_has_no_zero_point_says_so():
    with pytest.raises(ValidationError, match="choice of the quantizers lsq and minmax, not of dynamic"):
        WeightSettings(bits=4, symmetric=False)
    for wrong in ({"bits": 1}, {"bits": 2, "levels": "ternary"}, {"center": True}):
        with pytest.raises(ValidationError, match="needs 2 bits or more, and goes without levels and center"):
            WeightSettings(**{"bits": 4, "quantizer": "lsq", "symmetric": False, **wrong})


def test_lsq_gradient_is_that_of_its_surrogate():
    w = weights(3, 64, seed=4).double()
    quantizer = FakeQuantizer(WeightSettings(bits=4, quantizer="lsq", granularity="per_channel"), w, 1).double()
    quantizer.scale.data.mul_(0.5)
    grad = torch.randn_like(w)
    leaf = w.clone().requires_grad_()
    quantizer(leaf).backward(grad)

    step = quantizer.scale.detach().clone().unsqueeze(1).requires_grad_()
    other = w.clone().requires_grad_()
    units = torch.clamp(other / step, -7, 7)
    (step * (units + (units.round() - units).detach())).backward(grad)
    assert torch.allclose(leaf.grad, other.grad)
    assert torch.allclose(quantizer.scale.grad, step.grad.squeeze(1) / math.sqrt(64 * 7))


def test_pact_learns_its_clip_from_outside_only():
    w = weights(3, 64, seed=5).double()
    quantizer = FakeQuantizer(WeightSettings(bits=4, quantizer="pact", granularity="per_channel"), w, 1).double()
    quantizer.scale.data.mul_(0.3)
    grad = torch.randn_like(w)
    quantizer(w).backward(grad)
    alpha = quantizer.scale.detach().unsqueeze(1)
    assert torch.allclose(quantizer.scale.grad, (grad * w.sign() * (w.abs() > alpha)).sum(1))


def test_paretoq_gradient_is_the_reference_codes():
    w = weights(3, 64, seed=6).double()
    quantizer = FakeQuantizer(WeightSettings(quantizer="paretoq", granularity="per_channel"), w, 1).double()
    quantizer.scale.data.mul_(0.4)
    grad = torch.randn_like(w)
    leaf = w.clone().requires_grad_()
    quantizer(leaf).backward(grad)
    units = w / quantizer.scale.detach().unsqueeze(1)
    middle = units.abs() < 0.99
    rounded = (torch.round(torch.clamp(units, -0.99, 0.99) * 2 - 0.5) + 0.5) / 2
    expected = (grad * torch.where(middle, rounded - units, rounded)).sum(1) / math.sqrt(64 * 1.5)
    assert torch.allclose(quantizer.scale.grad, expected)
    assert torch.equal(leaf.grad, grad * middle)


def test_binary_scale_gradient_is_exact_calculus():
    w = weights(3, 16, seed=7).double()
    scale = torch.rand(3, 1, dtype=torch.float64, requires_grad=True)

    def quantised(scale):  # odd grid with top 1: scale * sign(w)
        return FakeQuantize.apply(w, scale, None, None, 1, True, 1.0, False, True)

    assert torch.autograd.gradcheck(quantised, (scale,))


def test_straight_through_passes_every_gradient():
    w = weights().requires_grad_()
    form = WeightSettings(weight_gradient="straight_through", granularity="per_channel")
    grad = torch.randn_like(w)
    FakeQuantizer(form, w.detach(), 1)(w).backward(grad)
    assert torch.equal(w.grad, grad)


def test_rounding_a_scale_to_half_passes_its_gradient():
    w = weights(1, 64)
    grads = []
    for scale_dtype in ("float32", "float16"):
        quantizer = FakeQuantizer(WeightSettings(bits=8, scale_dtype=scale_dtype), w, 1)
        quantizer(w).sum().backward()
        grads.append(quantizer.gamma.grad)
    assert grads[1].abs() > 0
    assert torch.allclose(grads[0], grads[1], rtol=0.5, atol=0.5)


@pytest.mark.parametrize("quantizer", ["dynamic", "lsq", "pact", "paretoq"])
@pytest.mark.parametrize(("bits", "levels"), [(1, None), (2, "ternary"), (2, "balanced"), (4, None), (8, None)])
def test_least_squares_start_is_the_best_of_many(quantizer, bits, levels):
    torch.manual_seed(0)
    w = torch.distributions.StudentT(4.0).sample((2, 3000)) * 0.02  # heavy tails, so many local minima at 8 bits
    form = WeightSettings(
        bits=bits,
        quantizer=quantizer,
        levels=levels,
        granularity="per_channel",
        initialization="least_squares",
        center=False,
    )
    made = FakeQuantizer(form, w, fused=2)
    scale = made.fit(w).scale.detach()
    found = squared_error(w, scale, made.grid)
    for factor in torch.linspace(0.3, 3.0, 120):
        assert (found <= squared_error(w, scale * factor, made.grid) * 1.01).all()


def test_shared_gamma_minimises_the_sum_over_rows():
    w = weights(8, 200, seed=9)
    form = WeightSettings(granularity="per_channel", initialization="least_squares")
    made = FakeQuantizer(form, w, fused=1)
    assert made.gamma.shape == (1,)
    scale = made.fit(w).scale.detach()
    found = squared_error(w, scale, made.grid).sum()
    assert all(found <= squared_error(w, scale * f, made.grid).sum() * 1.01 for f in torch.linspace(0.3, 3, 120))


@pytest.mark.parametrize(
    "form",
    [WeightSettings(), WeightSettings(bits=1), WeightSettings(quantizer="paretoq", granularity="per_channel")],
    ids=name_of,
)
def test_compiled_without_graph_breaks_and_equal_to_eager(form):
    source = QuantizedWeight(weights(), 3, form, "w")
    grad = torch.randn(6, 40)
    results = []
    for run in (source, torch.compile(source, fullgraph=True, backend="aot_eager")):
        source.zero_grad()
        output = run()
        output.backward(grad)
        results.append([output.detach(), *(parameter.grad.clone() for parameter in source.parameters())])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-5, atol=1e-7)
