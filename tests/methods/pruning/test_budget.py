"""Budgets in bytes, FLOPs and latency, held to a written file, a counted pass, and products timed one by one."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from abridged import families
from abridged.checkpoint.files import weight_files
from abridged.checkpoint.save import save_checkpoint
from abridged.families.layout import layout_of
from abridged.methods import METHODS
from abridged.methods.pruning import latency
from abridged.methods.pruning.budget import measure_of
from abridged.methods.pruning.settings import Budget
from pruned import MODELS, build, calibrate

TOKENS = 10
BITS = {"weights": 2, "embeddings": 2, "rest": 32}


def full(model, **budget):
    """What a budget counts of the model as it is."""
    layout = layout_of(model, families.view(model))
    return float(measure_of(layout, Budget(**budget))(layout.full(), layout.open_gates()))


@pytest.fixture
def wide(monkeypatch):
    """Models wide enough that what stands in the file is not its header above all."""
    for name, (config, settings, kind) in MODELS.items():
        width = {"n_embd": 128} if config == "GPT2Config" else {"hidden_size": 128, "intermediate_size": 192}
        monkeypatch.setitem(MODELS, name, (config, {**settings, **width}, kind))


def written(model, directory):
    """Bytes of the weights on disk, at two bits with a scale for each row."""
    settings = {"bits": 2, "granularity": "per_channel"}
    quantize = METHODS["quantize"](weights=settings, embeddings=settings, activations={"bits": None})
    quantize.build(model, families.view(model), calibrate).finish()
    save_checkpoint(model, directory, None, {})
    return sum(path.stat().st_size for path in weight_files(directory))


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_bytes_are_those_of_the_file(name, wide, tmp_path):
    """Never fewer, so that no file is above its budget; the names in its header are counted generously."""
    model = build(name)
    expected = full(model, bytes=1.0, bits=BITS)
    size = written(model, tmp_path / "small")
    assert size <= expected <= 1.06 * size


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_model_pruned_to_bytes_is_written_in_no_more(name, wide, tmp_path):
    model = build(name)
    prune = METHODS["prune"](budget={"bytes": 0.6, "bits": BITS}, masks="magnitude")
    facts = prune.build(model, families.view(model), calibrate).finish().facts["prune"]
    size = written(model, tmp_path / "small")
    assert facts["asked"] == pytest.approx(0.6 * facts["before"])
    assert 0.9 * facts["asked"] < size <= facts["asked"]


@pytest.mark.parametrize("name", ["gpt2", "bert", "bert-tokens", "bert-masked", "llama", "llama-tied"])
def test_flops_are_those_of_a_pass(name):
    """Of a token: what runs once for a sequence, such as a pooler, counts by its share."""
    model = build(name)
    model.set_attn_implementation("eager")  # whose products are counted
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.randint(5, 90, (1, TOKENS)))
    # llama takes angles of positions by a product, too
    assert full(model, flops=1.0, context=TOKENS) == pytest.approx(counted.get_total_flops() / TOKENS, rel=3e-3)


@pytest.fixture
def by_size(monkeypatch):
    """Products that take as long as they are large."""
    monkeypatch.setattr(latency, "_measure", lambda rows, columns, context: float(rows * columns * context))
    latency._table.cache_clear()
    yield
    latency._table.cache_clear()


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "llama-tied"])
def test_latency_is_that_of_the_products(by_size, name):
    """All that multiply, tied heads among them; not embeddings, which only look up."""
    model = build(name)
    products = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    expected = TOKENS * sum(module.weight.numel() for module in products)
    assert full(model, latency=1.0, context=TOKENS) == pytest.approx(expected)


def test_a_standing_clock(monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 1.0)
    assert latency._measure(4, 4, 2) > 0  # and it ends
