"""Hidden-state distillation."""

from dataclasses import replace

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.objectives.base import outputs_of
from abridged.objectives.layers import HiddenDistillation, layer_map, layer_maps
from abridged.objectives.settings import Hidden


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(3, 3, {0: 0, 1: 1, 2: 2}), (3, 5, {0: 0, 1: 2, 2: 4}), (4, 13, {0: 0, 1: 4, 2: 8, 3: 12}), (1, 3, {0: 0})],
)
def test_layer_map(ours, theirs, expected):
    assert layer_map(ours, theirs) == expected


def test_an_encoder_answers_to_an_encoder():
    assert layer_maps([3, 2], [5, 2]) == {0: 0, 1: 2, 2: 4, 3: 5, 4: 6}


def test_mean_over_layers_and_counted_tokens(student, teacher, batch, context):
    ours, theirs = (outputs_of(model, batch, hidden_states=True) for model in (student, teacher))
    value = HiddenDistillation(Hidden(layers={1: 0, 2: 2}), context)(ours, theirs, batch)
    pairs = [(ours.hidden_states[1], theirs.hidden_states[0]), (ours.hidden_states[2], theirs.hidden_states[2])]
    expected = torch.stack([(a - b)[batch.counted].square().mean() for a, b in pairs]).mean()
    torch.testing.assert_close(value, expected)


def test_wider_teacher_is_reached_by_a_projection(student, wide_teacher, batch, context):
    term = HiddenDistillation(Hidden(), replace(context, teacher_hidden_size=32))
    theirs = outputs_of(wide_teacher, batch, hidden_states=True)
    term(outputs_of(student, batch, hidden_states=True), theirs, batch).backward()
    assert term.projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize("units", [torch.arange(0, 32, 2), torch.randn(32, 16)])
def test_a_narrower_student_is_compared_with_its_own_units_or_combinations(
    units, student, wide_teacher, batch, context
):
    term = HiddenDistillation(Hidden(), replace(context, teacher_hidden_size=32, hidden_units=units))
    ours = outputs_of(student, batch, hidden_states=True)
    theirs = outputs_of(wide_teacher, batch, hidden_states=True)
    pairs = [
        (mine, yours @ units if units.dim() == 2 else yours[..., units])
        for mine, yours in zip(ours.hidden_states, theirs.hidden_states, strict=True)
    ]
    expected = torch.stack([(a - b)[batch.counted].square().mean() for a, b in pairs]).mean()
    torch.testing.assert_close(term(ours, theirs, batch), expected)
    assert not list(term.parameters())


def test_layers_that_are_not_there(student, teacher, batch, context):
    ours, theirs = (outputs_of(model, batch, hidden_states=True) for model in (student, teacher))
    with pytest.raises(AbridgedError, match="7: 2.*end at 2"):
        HiddenDistillation(Hidden(layers={7: 2}), context)(ours, theirs, batch)
