"""What heads look at: against plain loops over the attention probabilities, without padding."""

import math

import numpy as np
import pytest
import torch

from abridged.data.batch import Batch
from abridged.evaluation.probe import MEASURES, against_masks, probe_heads
from abridged.report.collect import picture_heads
from abridged.report.plots import heads
from abridged.storage.compressed import RankedHeads
from pruned import IDS, MASK, build, parts, small

SPECIAL = 7


def batch():
    ids = IDS.clone()
    ids[0, 3] = ids[0, 5] = SPECIAL
    ids[1] = torch.where(ids[1] == SPECIAL, 8, ids[1])
    return Batch.of(ids, torch.zeros(2, dtype=torch.int64), torch.arange(2), attention_mask=MASK)


def by_hand(p, ids, mask, head):
    """p (B, heads, T, T)."""
    sums, count = dict.fromkeys(MEASURES, 0.0), 0
    for b in range(len(ids)):
        there = [t for t in range(ids.shape[1]) if mask[b, t]]
        special = [t for t in there if ids[b, t] == SPECIAL] or [there[0]]
        for t in there:
            row = p[b, head, t].tolist()
            count += 1
            sums["special"] += sum(row[s] for s in special)
            sums["current"] += row[t]
            sums["previous"] += row[t - 1] if t else 0.0
            sums["entropy"] -= sum(q * math.log(q) for q in row if q > 1e-12)
    return {name: value / count for name, value in sums.items()}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_measures_are_those_of_a_plain_loop(name):
    model = build(name)
    before = model.config._attn_implementation
    found = probe_heads(model, [batch()], [SPECIAL])
    assert model.config._attn_implementation == before
    assert list(found) == parts(model, "attention")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**batch().model_inputs, output_attentions=True).attentions
    for layer, rows in zip(attentions, found.values(), strict=True):
        for head, row in enumerate(rows):
            assert row == pytest.approx(by_hand(layer, batch().input_ids, MASK, head), abs=1e-5)


def test_batches_count_by_their_tokens():
    model, whole = build("bert"), batch()
    each = zip(whole.input_ids, whole.labels, whole.index, MASK, strict=True)
    rows = [Batch.of(*(part.unsqueeze(0) for part in one)) for one in each]
    together, apart = (probe_heads(model, batches, [SPECIAL]) for batches in ([whole], rows))
    for path in together:
        for ours, theirs in zip(together[path], apart[path], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_causal_models_and_cut_ones():
    model = build("gpt2")
    ids = Batch.of(IDS, IDS, torch.arange(2))
    found = probe_heads(model, [ids], [])
    first = found["transformer.h.0.attn"][0]
    assert 0 < first["special"] < 1  # the first token's share
    gone = parts(model, "attention")[1]
    left = probe_heads(small("gpt2", removed=(gone,)), [ids], [])
    assert gone not in left
    assert len(left) == 2


def test_an_encoder_decoder_looks_three_ways():
    model = build("bart")
    pair = Batch.of(IDS[:, :6], IDS[:, :6], torch.arange(2), source_ids=IDS, source_mask=MASK)
    found = probe_heads(model, [pair], [SPECIAL])
    assert set(found) == set(parts(model, "attention"))
    across = [row for path, rows in found.items() if "encoder_attn" in path for row in rows]
    assert all(row["current"] == 0 and 0 < row["entropy"] < math.log(10) + 1e-6 for row in across)


def test_correlation_with_masks():
    rows = [{"special": s, "current": 0.1, "previous": 0.0, "entropy": 1.0} for s in (0.9, 0.6, 0.3, 0.2)]
    masks = {"a": RankedHeads([-3.0, 1.0], [1], 2)}
    found = against_masks({"a": rows, "b": rows}, masks)
    assert [head["removed"] for head in found["heads"]] == [True, True, False, False]
    assert found["correlation"]["special"] == pytest.approx(-0.894, abs=1e-3)
    assert found["correlation"]["either"] == pytest.approx(-0.894, abs=1e-3)
    assert found["correlation"]["entropy"] is None
    picture = picture_heads(found)
    assert picture.values.shape == (1, 4)
    assert np.array_equal(picture.removed, [[True, True, False, False]])
    assert "<svg" in heads(picture)
