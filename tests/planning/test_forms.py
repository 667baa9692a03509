"""Every form that a quantiser offers is found, and nothing but storage differs between them."""

import pytest

from abridged.methods.quantization.forms import FOR_ENGINES, RULES, forms
from abridged.methods.quantization.quantizers import QUANTIZERS
from abridged.methods.quantization.settings import WeightSettings

USUAL = WeightSettings(bits=2, quantizer="dynamic", granularity="per_channel", gamma="scale", scale_dtype="float16")


def kinds(found):
    return {(form.bits, form.grid, form.packing) for form in found}


def test_they_are_all_bits_grids_and_packings_that_there_are():
    found = forms(USUAL, [])
    known = {(1, "binary"), (2, "ternary"), (2, "balanced"), (4, "integer"), (8, "integer")}
    assert {(form.bits, form.grid) for form in found} >= known
    assert (2, "ternary", "base3") in kinds(found)
    assert len(kinds(found)) == len(found)  # each once


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantiser_offers_what_it_has_and_no_more(name):
    kind = QUANTIZERS[name]
    usual = WeightSettings(bits=kind.bits[-1], quantizer=name, granularity="per_channel")
    found = forms(usual, [])
    assert {form.bits for form in found} == set(kind.bits)
    at_two = {*set(kind.levels).difference(FOR_ENGINES), *(["affine"] if kind.affine else [])}
    assert {form.grid for form in found if form.bits == 2} == (at_two if 2 in kind.bits else set())


def test_a_bit_width_that_a_quantiser_gains_is_a_form(monkeypatch):
    monkeypatch.setattr(QUANTIZERS["dynamic"], "bits", (1, 8))
    assert {form.bits for form in forms(USUAL, [])} == {1, 8}


def test_groups_multiply_them_and_rules_stay():
    alone, grouped = forms(USUAL, []), forms(USUAL, [None, 64, 32])
    assert len(grouped) == 3 * len(alone)
    assert {(form.granularity, form.group_size) for form in grouped} == {
        ("per_channel", None),
        ("per_group", 64),
        ("per_group", 32),
    }
    rules = USUAL.model_dump(include=set(RULES))
    assert all(form.model_dump(include=set(RULES)) == rules for form in grouped)


def test_a_form_says_its_bits_when_it_is_written_down():
    assert all("bits" in form.model_dump(exclude_unset=True) for form in forms(USUAL, [None]))
