"""What weights' errors count by: second moments of inputs, and how often tokens are looked up."""

import copy

import torch

from abridged import families
from abridged.methods.quantization import importance
from abridged.methods.quantization.importance import importances, of_embedding
from abridged.methods.quantization.method import Quantize
from tiny import build, inputs


def test_a_layer_counts_by_what_comes_in_and_an_embedding_by_both_its_readers(monkeypatch):
    monkeypatch.setattr(importance, "CAP", 1e9)
    model = build("llama")
    matrices = families.view(model).matrices
    (embedding,) = (m for m in matrices if m.part == "embedding")
    layer = next(m for m in matrices if m.part == "ffn")
    seen, given = [], inputs(model)
    model.get_submodule(layer.name).register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    found = importances(model, matrices, lambda m, tokens=None: m(**given))
    x = seen[0].reshape(-1, layer.columns)
    torch.testing.assert_close(found[layer.name].squares, x.square().sum(0))
    torch.testing.assert_close(found[layer.name].moments, x.t() @ x)
    if embedding.tied:
        assert found[embedding.name].squares.shape == (embedding.rows, embedding.columns)
    else:
        assert embedding.name not in found


def test_both_sides_of_a_tied_embedding_count_alike_on_average():
    moments, counts = torch.tensor([[1.0, 1.0], [1.0, 3.0]]), torch.tensor([0.0, 8.0, 0.0, 0.0])
    found = of_embedding(moments, counts)
    torch.testing.assert_close(found.squares[0], torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(found.squares[1], torch.tensor([4.5, 5.5]))
    torch.testing.assert_close(found.moments, torch.tensor([[1.5, 0.5], [0.5, 2.5]]))
    torch.testing.assert_close(of_embedding(moments, torch.zeros(4)).squares, torch.tensor([[0.5, 1.5]] * 4))


def test_gptq_rounds_an_embedding_by_what_its_head_reads():
    model = build("llama-tied")
    (embedding,) = (m for m in families.view(model).matrices if m.part == "embedding")
    draw = torch.Generator().manual_seed(0)
    given = {"input_ids": torch.randint(0, embedding.rows, (8, 12), generator=draw)}
    four = {"bits": 3, "quantizer": "lsq", "initialization": "weighted", "symmetric": False}
    original, lost = model.get_submodule(embedding.name).weight.detach().clone(), {}
    moments = importances(model, [embedding], lambda m, tokens=None: m(**given))[embedding.name].moments
    for gptq in (False, True):
        student = copy.deepcopy(model)
        settings = Quantize(weights={"bits": None}, embeddings=four, activations={"bits": None}, gptq=gptq)
        settings.build(student, families.view(student), lambda m, tokens=None: m(**given))
        error = student.get_submodule(embedding.name).source().detach() - original
        lost[gptq] = float(((error @ moments) * error).sum())
    assert lost[True] < 0.9 * lost[False]


def test_weighted_starts_ask_for_inputs():
    lsq = {"quantizer": "lsq", "bits": 4}
    plain = Quantize(weights=lsq, embeddings=lsq, activations={"bits": None})
    weighted = Quantize(weights=lsq, embeddings={**lsq, "initialization": "weighted"}, activations={"bits": None})
    assert plain.needs == "nothing"
    assert weighted.needs == "inputs"
