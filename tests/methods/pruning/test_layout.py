"""Rows of units in runs: which are cut, where they stand afterwards, and where an export puts them back."""

import pytest
import torch

from abridged.exporters.uniform import padded
from abridged.families.heads import OwnHeads, set_heads
from abridged.families.layout import Side, kind_of_norm
from abridged.families.resized import _closed_up
from abridged.runtime.removed import NoMatrix
from abridged.storage.view import Run

#: Phi-3's: four units of four rows of q, then of two of k and of v; and GPT-NeoX's, each unit's rows one after another.
FUSED = (Run(0, 4, 4), Run(16, 2, 2), Run(24, 2, 2))
TOGETHER = (Run(0, 6, 2), Run(4, 6, 2))


def test_rows_of_kept_units_stay_in_their_order():
    side = Side("a", 32, FUSED)
    kept = {"a": torch.tensor([1, 3])}
    assert side.index(kept).tolist() == [4, 5, 6, 7, 12, 13, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31]
    assert side.length({"a": 2}) == 16
    assert Side("a", 12, TOGETHER).index({"a": torch.tensor([1])}).tolist() == [6, 7, 10, 11]
    assert Side(None, 32).index(kept) is None


@pytest.mark.parametrize(("runs", "total", "units"), [(FUSED, 32, 4), (TOGETHER, 24, 4)])
def test_runs_of_a_cut_matrix_are_those_of_its_rows(runs, total, units):
    owner = torch.full((total,), -1)
    for run in runs:
        for unit in range(units):
            owner[run.offset + unit * run.stride :][: run.size] = unit
    left = owner[owner < units - 1]
    for run in _closed_up(runs, range(units - 1, units)):
        for unit in range(units - 1):
            assert (left[run.offset + unit * run.stride :][: run.size] == unit).all()


def test_what_an_export_pads_goes_back_to_its_runs():
    side = Side("a", 32, FUSED)
    whole = torch.arange(1.0, 65.0).view(32, 2)
    index = side.index({"a": torch.tensor([0, 1])})
    found = padded(whole[index][:, :1], (32, 2), FUSED)
    assert torch.equal(found[index, 0], whole[index, 0])
    assert found.count_nonzero() == len(index)
    assert torch.equal(padded(whole[:3], (5, 2))[3:], torch.zeros(2, 2))


def test_removed_matrices_add_nothing_whatever_stands_between_them():
    x, layer = torch.randn(2, 3, 8), NoMatrix()
    gate, up = layer(x).chunk(2, dim=-1)
    assert torch.equal(x + layer(torch.nn.functional.silu(gate) * up), x)
    assert torch.equal(x + layer(x.new_zeros(())), x)


def test_a_layer_has_heads_of_its_own_and_every_other_setting_of_its_model():
    class Attention:
        head_dim, num_key_value_groups, num_heads = 4, 2, 8

    class Config:
        num_attention_heads, dropout = 8, 0.1

    attention = Attention()
    attention.config = Config()
    shared = attention.config
    set_heads(attention, 6)
    set_heads(attention, 4)
    assert (attention.num_heads, attention.config.num_attention_heads, attention.config.num_key_value_heads) == (
        4,
        4,
        2,
    )
    shared.dropout = 0.0
    assert attention.config.dropout == 0.0
    assert isinstance(attention.config, OwnHeads)
    assert shared.num_attention_heads == 8


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_kind_of_a_norm_is_found_by_calling_it(centered, offset):
    class Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.randn(32)), 1e-6

        def forward(self, x):
            x = x - x.mean(-1, keepdim=True) if centered else x
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (self.weight + offset)

    assert kind_of_norm(Norm()) == (centered, offset, 1e-6)
