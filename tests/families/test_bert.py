"""BERT and RoBERTa: the view under every head, and the way from a random model to a packed directory."""

import pytest
import torch
import transformers
from transformers import BertConfig, RobertaConfig

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.methods.quantization.method import Quantize
from abridged.runtime.kernels import kernels

KINDS = {"bert": (BertConfig, "Bert"), "roberta": (RobertaConfig, "Roberta")}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "Model")
IDS = torch.randint(5, 96, (2, 10), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, 7:] = 0


def build(kind, head, **config):
    make, name = KINDS[kind]
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 48, "max_position_embeddings": 40, "num_labels": 2, "type_vocab_size": 2}
    torch.manual_seed(0)
    model = getattr(transformers, name + head)(make(**{**sizes, **more, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def student(kind, head, positions=True, attention=False, activations=8, **config):
    model = build(kind, head, **config)
    bits = {"bits": 1, "quantizer": "binary"}
    activations = {"bits": activations, "attention": attention}
    settings = {"weights": bits, "embeddings": bits, "activations": activations, "positions": positions}
    method = Quantize.model_validate({**settings, "unquantized": "float16"})
    attached = method.build(model, families.view(model), lambda model: model(input_ids=IDS, attention_mask=MASK))
    attached.finish()
    return model.eval()


@torch.no_grad()
def answer(model):
    found = model(input_ids=IDS, attention_mask=MASK)
    return found.start_logits if hasattr(found, "start_logits") else found[0]


def save(model, directory):
    save_checkpoint(model, directory, None, {"recipe": {"name": "test"}, "teacher": "bert", "seed": 0})
    return directory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_every_matrix_is_named_with_its_shape(kind, head):
    model = build(kind, head)
    view = families.view(model)
    shapes = {f"{matrix.name}.weight": (matrix.rows, matrix.columns) for matrix in view.matrices}
    labels = ("classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight")
    stock = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2 and name not in labels}
    assert shapes == stock
    for path in (*view.attentions, *view.blocks, *view.positions):
        model.get_submodule(path)
    assert view.context == (38 if kind == "roberta" else 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("attention", [False, True], ids=["plain", "quantised attention"])
def test_packed_saved_and_loaded_it_answers_as_in_training(kind, head, attention, tmp_path, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    model = student(kind, head, attention=attention)
    expected = answer(model)
    loaded = load(save(model, tmp_path / "small"))
    assert type(loaded) is type(model)
    assert torch.allclose(answer(loaded), expected, atol=1e-5)
    assert len(packed_modules(loaded)) >= len(families.view(model).matrices)


@pytest.mark.parametrize("compiled", [False, True], ids=["reference", "kernels"])
def test_one_bit_activations_are_stored_and_computed_as_trained(compiled, tmp_path, monkeypatch):
    if not compiled:
        monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    model = student("bert", "ForSequenceClassification", attention=True, activations=1, **sizes)
    expected = answer(model)
    seen = []
    for name in ("attention.self.query", "intermediate.dense", "output.dense"):
        layer = model.get_submodule(f"bert.encoder.layer.0.{name}")
        layer.input_quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output.unique()))
    answer(model)
    assert [len(values) for values in seen] == [2, 2, 2]
    assert seen[0][0] == -seen[0][1]  # around 0
    assert seen[2][0] == 0  # after GELU
    directory = save(model, tmp_path / "small")
    assert torch.allclose(answer(load(directory)), expected, atol=2e-3 if compiled else 1e-5)
    with pytest.raises(AbridgedError, match="activations in 1 bit, which no other engine"):
        export(directory, tmp_path / "dense")


@pytest.mark.parametrize("head", HEADS)
def test_the_auto_classes_load_it(head, tmp_path):
    model = student("bert", head)
    save(model, tmp_path / "small")
    auto = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
    assert torch.allclose(answer(auto.from_pretrained(tmp_path / "small")), answer(load(tmp_path / "small")))


@pytest.mark.skipif(kernels() is None, reason="only the kernels apply GELU as they read their input")
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_answer_as_the_reference(kind, tmp_path, monkeypatch):
    directory = save(student(kind, "ForSequenceClassification", hidden_size=64, intermediate_size=128), tmp_path / "s")
    model = load(directory)
    assert any(getattr(m, "input_function", "identity") == "gelu" for m in model.modules())
    ours = answer(model)
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    assert torch.allclose(ours, answer(load(directory)), atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_an_ordinary_model_of_the_same_values(kind, head, tmp_path):
    packed = load(save(student(kind, head, activations=None), tmp_path / "small"))
    dense = dense_model(packed, torch.float32)
    dense.save_pretrained(tmp_path / "dense")
    again = type(dense).from_pretrained(tmp_path / "dense").eval()
    assert torch.allclose(answer(again), answer(packed), atol=1e-5)


def test_positions_are_packed_where_asked_and_only_there(tmp_path):
    with_positions = packed_modules(pack_model(student("bert", "ForSequenceClassification")))
    without = packed_modules(pack_model(student("bert", "ForSequenceClassification", positions=False)))
    assert set(with_positions) - set(without) == {
        "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
    }
    sizes = [
        inspect(save(student("bert", "ForSequenceClassification", positions=p), tmp_path / str(p)))["file_bytes"]
        for p in (True, False)
    ]
    assert sizes[0] < sizes[1]


def test_a_decoder_and_an_untied_head_are_described_too():
    decoder = families.view(build("bert", "LMHeadModel", is_decoder=True))
    assert [part.kind for part in decoder.parts].count("attention") == decoder.layers
    untied = families.view(build("bert", "ForMaskedLM", tie_word_embeddings=False))
    assert [matrix.name for matrix in untied.matrices if matrix.part == "head"] == ["cls.predictions.decoder"]


def test_positions_that_a_model_lacks_are_passed_over_with_a_note():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=64))
    made = Quantize(positions=True).build(model, families.view(model), lambda model: None).finish()
    assert made.notes == {"quantize": ("no learned positions of llama can be quantised: passed over",)}
    assert type(model.model.embed_tokens).__name__ == "QuantizedEmbedding"
