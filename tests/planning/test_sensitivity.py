"""What a matrix costs: the three ways agree where they must, and leave the model as it was."""

import math

import pytest
import torch

import tiny
from abridged import families
from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.methods.quantization.forms import forms
from abridged.methods.quantization.importance import importances
from abridged.methods.quantization.modules import QuantizedWeight
from abridged.methods.quantization.settings import WeightSettings
from abridged.planning.forms import Form
from abridged.planning.sensitivity import WAYS, Stored, Text, between, find_costs, logits_of, stored_so, trace

USUAL = WeightSettings(bits=8, quantizer="minmax", granularity="per_channel")


def batch(model, seed=1):
    ids = torch.randint(1, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(seed))
    return Batch.of(ids, ids, torch.arange(3))


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    made = tiny.build(request.param)
    with torch.no_grad():  # answers of a new model are all alike
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


@pytest.fixture
def given(model):
    text = Text(model, [batch(model), batch(model, 2)])
    matrices = [m for m in families.view(model).matrices if m.part != "positions"]
    return text, matrices, {m.name: [Form(own) for own in forms(USUAL, [])] for m in matrices}


def test_the_original_differs_in_nothing_from_itself(given):
    text, _, _ = given
    assert text.tokens == 72
    assert text.divergence() == pytest.approx(0, abs=1e-6)


def test_the_divergence_is_that_of_a_plain_loop(given, model):
    text, matrices, found = given
    form = found[matrices[0].name][0]
    reference = torch.cat([logits_of(model, one).softmax(-1).detach() for one in text.batches])
    with stored_so(model, matrices[:1], {matrices[0].name: form}):
        changed = torch.cat([logits_of(model, one).softmax(-1).detach() for one in text.batches])
        got = text.divergence()
    expected = sum(float((p * (p / q).log()).sum()) for p, q in zip(reference, changed, strict=True)) / len(reference)
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_what_it_was_and_more_bits_cost_less(given, model, way):
    text, matrices, found = given
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    random = torch.random.get_rng_state()
    costs = find_costs(text, matrices, found, way)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())
    for matrix in matrices:
        by_bits = {form.weights.bits: cost for form, cost in zip(found[matrix.name], costs[matrix.name], strict=True)}
        assert by_bits[8] < by_bits[4] < by_bits[2]
        assert all(math.isfinite(cost) and cost >= -1e-6 for cost in costs[matrix.name])


def test_for_small_errors_the_curvature_is_what_is_measured(given):
    """Few drawn answers make it rough."""
    text, matrices, _ = given
    four = {m.name: [Form(f) for f in forms(USUAL, []) if f.bits == 4] for m in matrices}
    measured, fisher = (
        sum(cost[0] for cost in find_costs(text, matrices, four, way).values()) for way in ("measured", "fisher")
    )
    assert 0.5 < fisher / measured < 2


def test_between_forms_that_are_measured_lies_a_power_of_the_error():
    known = {1.0: 0.01, 4.0: 0.16, 16.0: 0.32}
    assert between(known, 2.0) == pytest.approx(0.04)  # a square up to 4, a root beyond
    assert between(known, 8.0) == pytest.approx(0.16 * 2**0.5)
    assert all(between(known, error) == pytest.approx(cost) for error, cost in known.items())
    assert between(known, 0.5) == pytest.approx(0.005)
    assert between(known, 32.0) == pytest.approx(0.64)
    assert between({2.0: 0.3}, 4.0) == pytest.approx(0.6)
    assert between({0.0: 0.0, 1.0: 0.5}, 0.0) == pytest.approx(0.0, abs=1e-9)


def test_a_matrix_is_quantised_as_the_method_would(model):
    for matrix in families.view(model).matrices[:3]:
        weight = model.get_submodule(matrix.name).weight.detach()
        own = weight.t() if matrix.transposed else weight
        scale = own.abs().amax(1, keepdim=True) / 7
        four = next(form for form in forms(USUAL, []) if form.bits == 4 and form.symmetric)
        expected = (own / scale).round() * scale
        got = Stored(weight, matrix)(Form(four))
        assert torch.allclose(got.t() if matrix.transposed else got, expected, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_scales_that_start_by_the_inputs_do_so_here(given, model, way):
    text, matrices, _ = given
    own = WeightSettings(bits=2, quantizer="dynamic", granularity="per_channel", gamma="scale")
    forms_of = {
        start: {m.name: [Form(own.model_copy(update={"initialization": start}))] for m in matrices}
        for start in ("least_squares", "weighted")
    }
    plain, weighted = (find_costs(text, matrices, forms, way) for forms in forms_of.values())
    assert plain != weighted
    matrix = next(m for m in matrices if m.kind == "linear")
    weight = model.get_submodule(matrix.name).weight.detach()
    squares = importances(model, [matrix], text.read)[matrix.name].squares
    form = forms_of["weighted"][matrix.name][0]
    rows = weight.t() if matrix.transposed else weight
    expected = QuantizedWeight(rows, matrix.fused, form.weights, matrix.name, squares)()
    got = Stored(weight, matrix, text.counts[matrix.name])(form)
    assert torch.allclose(got.t() if matrix.transposed else got, expected)


def test_what_factors_leave_out_is_measured(given):
    """Interpolated by squared errors alone it would be anything: 8 bits of the factors add next to nothing."""
    text, matrices, whole = given
    eight = next(form.weights for form in whole[matrices[0].name] if form.weights.bits == 8)
    own = {m.name: [*whole[m.name], Form(eight, 2), Form(eight, 4)] for m in matrices if m.kind == "linear"}
    some = [m for m in matrices if m.name in own][:3]
    measured, interpolated = (find_costs(text, some, own, way) for way in ("measured", "interpolated"))
    for matrix in some:
        assert interpolated[matrix.name][-2:] == pytest.approx(measured[matrix.name][-2:], rel=0.3)
        assert measured[matrix.name][-1] > measured[matrix.name][-2] > 0


def test_factors_are_the_nearest_of_their_rank(model):
    matrix = next(m for m in families.view(model).matrices if m.kind == "linear" and m.fused == 1)
    weight = model.get_submodule(matrix.name).weight.detach()
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    rank = int(matrix.rows * matrix.columns / (2 * (matrix.rows + matrix.columns)))
    expected = (left[:, :rank] * singular[:rank]) @ right[:rank]
    assert torch.allclose(Stored(weight, matrix).in_full(Form(USUAL, 2)), expected, atol=1e-5)


def test_a_tied_head_is_followed_beside_the_embedding(given):
    text, matrices, _ = given
    embedding = next(m for m in matrices if m.part == "embedding")
    for path in (embedding.name, *embedding.tied):
        (x, g), _ = trace(text, [path])[path]
        assert len(x) == len(g) == 36
        assert bool((g != 0).any())


def test_a_model_whose_answers_are_no_numbers_is_refused(model):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(AbridgedError, match="not numbers"):
        Text(model, [batch(model)])
