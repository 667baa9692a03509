"""Compensated starts: outputs come nearer to those in full precision, and nothing else changes."""

import copy
import threading

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods import METHODS
from abridged.methods.quantization.gptq import Inputs, gptq
from abridged.methods.quantization.modules import QuantizedWeight
from abridged.methods.quantization.settings import WeightSettings

BINARY = {"bits": 1, "quantizer": "dynamic", "initialization": "least_squares"}
SETTINGS = {
    "binary": BINARY,
    "binary, rows": {**BINARY, "granularity": "per_channel", "gamma": "scale"},
    "binary, groups": {**BINARY, "granularity": "per_group", "group_size": 16},
    "ternary": {"bits": 2, "quantizer": "dynamic", "initialization": "least_squares"},
    "balanced": {**BINARY, "bits": 2, "levels": "balanced", "granularity": "per_channel", "gamma": "scale"},
    "lsq": {"bits": 2, "quantizer": "lsq", "initialization": "least_squares"},
    "paretoq": {"bits": 1, "quantizer": "paretoq", "granularity": "per_channel"},
    "int8": {**BINARY, "bits": 8, "granularity": "per_channel"},
    "q2_0": {"bits": 2, "quantizer": "lsq", "levels": "q2_0", "granularity": "per_group", "group_size": 16},
    "affine": {"bits": 3, "quantizer": "lsq", "symmetric": False, "granularity": "per_group", "group_size": 16},
    "weighted": {"bits": 3, "quantizer": "lsq", "initialization": "weighted", "granularity": "per_channel"},
    "affine, weighted": {
        "bits": 2,
        "quantizer": "lsq",
        "symmetric": False,
        "initialization": "weighted",
        "granularity": "per_channel",
    },
}


def correlated(rows, columns, seed=0):
    """Inputs (rows, columns) some of which vary far more than others, and together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    return torch.randn(rows, columns, generator=generator) @ mixing.t()


def error(outputs, x, source):
    return float((outputs - x @ source().detach().t()).square().sum() / outputs.square().sum())


@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_lose_less_than_by_rounding_to_nearest(name):
    torch.manual_seed(0)
    weight, x = torch.randn(24, 48), correlated(400, 48)
    source = QuantizedWeight(weight.clone(), 1, WeightSettings(**SETTINGS[name]), "w")
    before = error(x @ weight.t(), x, source)
    gptq(source, Inputs(x.t() @ x))
    after = error(x @ weight.t(), x, source)
    assert after < (0.7 * before if source.settings.bits < 8 else before)
    assert torch.isfinite(source.weight).all()


def test_a_fused_matrix_keeps_a_scale_for_each_of_its_blocks():
    torch.manual_seed(0)
    weight = torch.cat([torch.randn(8, 16), 5 * torch.randn(8, 16)])
    x = correlated(200, 16)
    source = QuantizedWeight(weight.clone(), 2, WeightSettings(**BINARY), "w")
    gptq(source, Inputs(x.t() @ x))
    scale = source.quantizer.fit(source._lines()).scale.flatten()
    assert scale.shape == (2,)
    assert 3 < scale[1] / scale[0] < 8


def test_the_factor_is_that_of_the_inverse():
    x = correlated(900, 300)  # wider than the matrices that are inverted at once
    inputs = Inputs(x.t() @ x)
    damped, order = inputs.hessian.double(), inputs.order
    assert torch.equal(damped.diagonal()[order].diff() <= 0, torch.ones(299, dtype=torch.bool))
    assert torch.equal(inputs.upper, inputs.upper.triu())
    upper = inputs.upper.double()
    assert torch.allclose(upper.t() @ upper @ damped[order][:, order], torch.eye(300).double(), atol=1e-3)


def test_what_is_lost_is_made_up_for_alike_in_a_weight_of_few_rows_and_of_many():
    x, z, weight = correlated(900, 300), correlated(900, 300, seed=1), torch.randn(400, 300)
    few, many = (Inputs(x.t() @ x, z.t() @ x) for _ in range(2))
    wanted = many.made_up(weight)
    assert torch.allclose(few.made_up(weight[:50]), wanted[:50], atol=1e-3)
    moments = x.double().t() @ x.double()
    damped = moments + (few.hessian - x.t() @ x).double()
    exact = (
        weight.double()
        + torch.linalg.solve(damped, (weight.double() @ (z.double().t() @ x.double() - moments)).t()).t()
    )
    assert (wanted - exact).norm() < 1e-3 * (exact - weight).norm()


def test_what_the_inputs_have_lost_is_made_up_for():
    torch.manual_seed(0)
    weight, whole = torch.randn(24, 48), correlated(400, 48)
    changed = 0.7 * whole + 0.1 * torch.randn(400, 48)
    outputs, errors = whole @ weight.t(), []
    for crossed in (None, whole.t() @ changed):
        source = QuantizedWeight(weight.clone(), 1, WeightSettings(**BINARY), "w")
        gptq(source, Inputs(changed.t() @ changed, crossed))
        errors.append(error(outputs, changed, source))
    assert errors[1] < 0.8 * errors[0]


def test_inputs_that_say_nothing_of_most_columns_do_no_harm():
    torch.manual_seed(0)
    weight, x = torch.randn(24, 48), correlated(3, 48)
    source = QuantizedWeight(weight.clone(), 1, WeightSettings(**BINARY), "w")
    gptq(source, Inputs(x.t() @ x, x.t() @ x))
    assert torch.isfinite(source()).all()
    source = QuantizedWeight(weight.clone(), 1, WeightSettings(**BINARY), "w")
    nearest = source().sign()
    gptq(source, Inputs(torch.zeros(48, 48)))  # as after a layer whose outputs are all 0
    assert torch.equal(source().sign(), nearest)


def test_the_layer_that_a_weight_came_from_keeps_its_own():
    weight, x = torch.randn(8, 16), correlated(100, 16)
    before = weight.clone()
    gptq(QuantizedWeight(weight, 1, WeightSettings(**BINARY), "w"), Inputs(x.t() @ x))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_that_are_not_learned_stay_what_they_were(symmetric):
    torch.manual_seed(0)
    weight, x = torch.randn(24, 48), correlated(400, 48)
    form = WeightSettings(bits=4, quantizer="minmax", granularity="per_channel", symmetric=symmetric)
    source = QuantizedWeight(weight.clone(), 1, form, "w")
    before, lost = source.stored(), error(x @ weight.t(), x, source)
    gptq(source, Inputs(x.t() @ x))
    after = source.stored()
    assert torch.equal(after.scale, before.scale)
    assert symmetric or torch.equal(after.zero, before.zero)
    assert error(x @ weight.t(), x, source) < 0.7 * lost
    index = torch.tensor([3, 1])
    assert torch.equal(source.rows(index), source()[index])


def test_inputs_that_are_not_finite_are_refused_by_name():
    source = QuantizedWeight(torch.randn(8, 16), 1, WeightSettings(**BINARY), "h.0.mlp")
    with pytest.raises(AbridgedError, match="the inputs of h.0.mlp are not all finite"):
        gptq(source, Inputs(torch.full((16, 16), float("nan")), None, source.name))


def prepare(model, calibrate, **settings):
    method = METHODS["quantize"](weights=BINARY, embeddings=BINARY, activations={"bits": None}, **settings)
    method.build(model, families.view(model), calibrate)
    return method


def test_a_model_comes_nearer_to_the_one_it_was_made_of(model):
    ids = torch.randint(1, 128, (24, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that layers do more than pass on
    other = copy.deepcopy(model)
    asked = []

    def calibrate(model, tokens=None):
        asked.append(tokens)
        model(ids)

    with torch.no_grad():
        wanted = model.transformer(ids).last_hidden_state
        prepare(model, calibrate)
        prepare(other, calibrate, gptq=True)
        plain, compensated = ((m.transformer(ids).last_hidden_state - wanted).norm() for m in (model, other))
    assert compensated < 0.9 * plain
    assert asked == [16_384, 16_384]  # the model as it was, and the student
    assert not any(module._forward_pre_hooks for module in other.modules())
    assert torch.equal(other.transformer.wte.source.weight, model.transformer.wte.source.weight)


def test_a_stage_with_the_same_settings_changes_nothing(model):
    def calibrate(model, tokens=None):
        model(torch.randint(1, 128, (24, 32)))

    prepare(model, calibrate, gptq=True)
    before = copy.deepcopy(model.state_dict())
    prepare(model, calibrate, gptq=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padding_is_left_out(model):
    ids = torch.randint(1, 128, (24, 32), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.zeros(24, 8, dtype=torch.int64)], 1)
    mask = (torch.arange(40) < 32).long().expand(24, 40)
    other = copy.deepcopy(model)
    prepare(model, lambda model, tokens=None: model(ids), gptq=True)
    prepare(other, lambda model, tokens=None: model(padded, attention_mask=mask), gptq=True)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert (one - two).abs().mean() < 1e-3


def test_what_fails_in_either_model_is_raised_and_nothing_goes_on_running(model):
    threads = threading.active_count()

    def fails(model, tokens=None):
        raise AbridgedError("no data")

    with pytest.raises(AbridgedError, match="no data"):
        prepare(copy.deepcopy(model), fails, gptq=True)

    def fails_late(model, tokens=None):
        if threading.current_thread() is threading.main_thread():
            raise AbridgedError("no memory")
        model(torch.ones(2, 8, dtype=torch.int64))

    with pytest.raises(AbridgedError, match="no memory"):
        prepare(copy.deepcopy(model), fails_late, gptq=True)
    assert threading.active_count() == threads


FAMILIES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ),
    "bert": lambda: BertForMaskedLM(
        BertConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=128, d_model=32, **{f"{s}_{k}": n for s in ("encoder", "decoder") for k, n in BART.items()}
        )
    ),
}
BART = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_nearer_to_what_it_was(family, factored):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    if factored:
        METHODS["kronecker"](layers="all", matrices=["attention", "ffn"]).build(model, families.view(model), None)
    other = copy.deepcopy(model)
    ids = torch.randint(1, 128, (24, 24), generator=torch.Generator().manual_seed(1))

    def outputs(model, tokens=None):
        return model(ids).logits

    with torch.no_grad():
        wanted = outputs(model)
        prepare(model, outputs)
        prepare(other, outputs, gptq=True)
        assert (outputs(other) - wanted).norm() < (outputs(model) - wanted).norm()
