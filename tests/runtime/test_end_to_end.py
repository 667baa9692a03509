"""A whole packed model by the kernels, against the reference: perplexity, the likeliest tokens, and torch's tracers.

Both compute the same but for rounding; yet where one rounding moves an activation to the next of its 256 levels, all
that follows differs by as much as that rounding to levels costs. So the measure is what the reference differs from
itself when its input moves in the last bit: benchmarks/parity.py reports both for a trained student.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.data.text import load_text
from abridged.models.load import load_dense, load_tokenizer
from abridged.recipe import Recipe
from abridged.runtime import kernels as module
from abridged.runtime.kernels import PATHS, Kernels

LIBRARY = module._library()
RUNNING = [path for i, path in enumerate(PATHS) if LIBRARY is not None and LIBRARY.abridged_runs(i)]


@pytest.fixture(scope="module")
def ids():
    tokenizer = load_tokenizer("bundled")
    return torch.tensor(tokenizer(load_text("wikitext-2").test[:12_000])["input_ids"][: 10 * 256]).view(-1, 256)


@pytest.fixture(scope="module", params=["best-2-2-8", "best-1-1-8"])
def directory(request, ids, tmp_path_factory):
    """The bundled teacher as the recipe begins with it."""
    model = load_dense("bundled")
    for method in Recipe.load(request.param).stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(ids[:2]))
        attached.finish()
    where = tmp_path_factory.mktemp("students") / request.param
    save_checkpoint(model.eval(), where, None, {"recipe": {"name": request.param}, "teacher": "bundled", "seed": 0})
    return where


@torch.no_grad()
def measure(directory, ids, monkeypatch, kernels, moved=0.0):
    """Perplexity, and the likeliest token at each place."""
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: kernels)
    model = load(directory)
    model.transformer.wpe.weight *= 1 + moved * torch.sign(model.transformer.wpe.weight)
    logits = model(ids, use_cache=False).logits
    return math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())), logits.argmax(-1)


@pytest.fixture(scope="module")
def reference(directory, ids):
    """Both of the reference, and the share of likeliest tokens that it keeps when positions move in the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        (perplexity, likeliest), (_, other) = (measure(directory, ids, patch, None, moved) for moved in (0.0, 2**-23))
    return perplexity, likeliest, (likeliest == other).float().mean()


@pytest.mark.parametrize("path", RUNNING)
def test_perplexity_and_likeliest_tokens(path, directory, ids, reference, monkeypatch):
    perplexity, likeliest = measure(directory, ids, monkeypatch, Kernels(LIBRARY, path))
    assert abs(perplexity / reference[0] - 1) < 3e-3  # of a student that has not been trained, on a short text
    assert (likeliest == reference[1]).float().mean() > reference[2] - 0.015


@torch.no_grad()
def test_torch_compile_and_export_take_a_packed_model(directory, ids):
    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(ids, use_cache=False).logits

    model = Logits(load(directory))
    expected = model(ids[:1, :32])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(ids[:1, :32]), expected, atol=1e-4)
    program = torch.export.export(model, (ids[:1, :32],))
    assert any("quantized_linear" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(ids[:1, :32]), expected, atol=1e-4)
