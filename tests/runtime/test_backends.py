"""The seam for backends: who serves a packed module, and when it is asked to prepare its weight."""

import copy

import pytest
import torch

from abridged.runtime import backends
from abridged.runtime.backends import Reference
from abridged.runtime.modules import PackedEmbedding, PackedLinear
from abridged.storage.format import EmbeddingSpec, LinearSpec
from abridged.storage.packing import pack

MATRIX = {"rows": 6, "columns": 8, "code_book": "ternary", "packing": "bits", "bits": 2.0, "num_scales": 6}
LEVELS = torch.randint(-1, 2, (6, 8), generator=torch.Generator().manual_seed(0))


class Doubling(Reference):
    """Keeps twice the weight, made once, and serves FP32 alone."""

    name = "doubling"

    def __init__(self):
        self.prepared = 0

    def supports(self, weight, x, rounding=None):
        return x.dtype != torch.float64

    def prepare(self, weight):
        self.prepared += 1
        return weight._replace(scales=2 * weight.scales)


@pytest.fixture
def doubling(monkeypatch):
    backend = Doubling()
    monkeypatch.setattr(backends, "BACKENDS", [backend, *backends.BACKENDS])
    return backend


def filled(module):
    module.codes.data = pack(LEVELS, "ternary", "bits")
    module.scales.data = torch.arange(1.0, 7.0)
    return module


@torch.no_grad()
def test_a_backend_prepares_a_weight_once_and_again_where_it_moved(doubling):
    layer, x = filled(PackedLinear(LinearSpec(kind="linear", bias=False, **MATRIX))), torch.randn(3, 8)
    dense = LEVELS * torch.arange(1.0, 7.0)[:, None]
    for _ in range(3):
        torch.testing.assert_close(layer(x), 2 * x @ dense.T)
    assert doubling.prepared == 1
    torch.testing.assert_close(copy.deepcopy(layer)(x), 2 * x @ dense.T)
    assert doubling.prepared == 2  # a copy starts without
    layer.codes.data = pack(-LEVELS, "ternary", "bits")
    torch.testing.assert_close(layer(x), -2 * x @ dense.T)
    assert doubling.prepared == 3
    torch.testing.assert_close(layer(x.double()), -(x.double() @ dense.double().T))  # the next one's


def test_the_ops_ask_the_same_backend(doubling):
    """Where gradients are kept, and under torch's tracers, a layer is an op."""
    embedding, ids = filled(PackedEmbedding(EmbeddingSpec(kind="embedding", **MATRIX))), torch.tensor([[5, 0]])
    with torch.no_grad():
        directly = embedding(ids)
    assert torch.equal(embedding(ids), directly)
    assert torch.equal(directly, 2 * (LEVELS * torch.arange(1.0, 7.0)[:, None])[ids])
    compiled = torch.compile(embedding, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(ids), directly)


def test_shapes_alone_are_enough_for_a_tracer():
    from torch._subclasses import FakeTensorMode

    layer = filled(PackedLinear(LinearSpec(kind="linear", bias=False, **MATRIX)))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(torch.zeros(2, 5, 8))).shape == (2, 5, 6)
        assert layer(torch.zeros(3, 8)).shape == (3, 6)
