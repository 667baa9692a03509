"""ONNX files in onnxruntime: what they answer, what they hold, and how large they are."""

import json

import numpy as np
import pytest
import torch

import architectures as models
from abridged import families
from abridged.checkpoint.load import load
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_tokenizer
from families.test_bert import HEADS, IDS, MASK, build, save
from students import quantized_student

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.engine
WEIGHTS = {
    "binary": {"bits": 1, "quantizer": "binary", "granularity": "per_channel"},
    "ternary": {"bits": 2, "granularity": "per_tensor"},
    "four levels": {"bits": 2, "levels": "balanced", "granularity": "per_channel"},
    "four levels by group": {"bits": 2, "levels": "balanced", "granularity": "per_group", "group_size": 16},
    "q2_0": {"bits": 2, "quantizer": "lsq", "levels": "q2_0", "granularity": "per_group", "group_size": 16},
    "groups": {"bits": 4, "granularity": "per_group", "group_size": 16},
    "8 bits": {"bits": 8, "granularity": "per_channel"},
    "5 bits": {"bits": 5, "granularity": "per_channel"},
    "zero points": {"bits": 4, "quantizer": "minmax", "symmetric": False, "granularity": "per_group", "group_size": 16},
    "zero points, 3 bits": {"bits": 3, "quantizer": "minmax", "symmetric": False, "granularity": "per_channel"},
    "zero points, 6 bits": {"bits": 6, "quantizer": "minmax", "symmetric": False, "granularity": "per_channel"},
}


def exported(tmp_path, kind="bert", head="ForSequenceClassification", weights="ternary", activations=None):
    model = build(kind, head)
    settings = {
        "weights": WEIGHTS[weights],
        "embeddings": WEIGHTS[weights],
        "activations": activations or {"bits": None},
        "positions": True,
    }
    method = Quantize.model_validate(settings)
    method.build(model, families.view(model), lambda model, tokens=None: model(IDS, MASK)).finish()
    source = save(model.eval(), tmp_path / "small")
    account = export(source, tmp_path / "small.onnx", format="onnx")
    return dense_model(load(source), torch.float32), account


def run(path, ids=IDS, mask=MASK):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # activations stay in FP32
    session = onnxruntime.InferenceSession(str(path), options)
    given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": torch.zeros_like(ids).numpy()}
    wanted = [given_.name for given_ in session.get_inputs()]
    return session.run(None, {name: given[name] for name in wanted})


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_code_book_answers_as_the_dense_model(weights, tmp_path):
    model, account = exported(tmp_path, weights=weights)
    assert sum(account["types"].values()) == 16  # six in each of two layers, three embeddings, and the pooler
    if WEIGHTS[weights]["bits"] <= 2:
        assert account["types"] == {"int2": 16}
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
    assert np.allclose(run(tmp_path / "small.onnx")[0], expected, atol=2e-3)


@pytest.mark.parametrize("quantizer", ["dynamic", "learned"])
def test_what_enters_a_product_is_rounded_as_the_packed_model_does(quantizer, tmp_path):
    exact, _ = exported(tmp_path, activations={"bits": 4, "quantizer": quantizer, "attention": False})
    with torch.no_grad():
        packed, exact = (model(IDS, MASK).logits for model in (load(tmp_path / "small"), exact))
    found = torch.from_numpy(run(tmp_path / "small.onnx")[0])
    assert float((found - packed).norm()) < 0.1 * float((exact - packed).norm())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_every_head_in_any_batch_and_length(kind, head, tmp_path):
    model, _ = exported(tmp_path, kind, head)
    for rows, length in ((2, 10), (1, 5), (3, 17)):
        ids = torch.randint(5, 96, (rows, length))
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        for ours, theirs in zip(
            expected.values(), run(tmp_path / "small.onnx", ids, torch.ones_like(ids)), strict=True
        ):
            assert np.allclose(theirs, ours, atol=2e-3)


def test_the_weights_are_integers_and_the_file_is_small(tmp_path):
    model, account = exported(tmp_path)
    graph = onnx.load(str(tmp_path / "small.onnx")).graph
    assert not [i.name for i in graph.initializer if len(i.dims) == 2 and i.data_type == 1 and np.prod(i.dims) > 128]
    dense = sum(4 * parameter.numel() for parameter in model.parameters())
    assert account["file_bytes"] < 0.75 * dense  # most of a file this small is the graph
    assert b"/" + b"transformers" not in (tmp_path / "small.onnx").read_bytes()  # nor what files it was made by


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["gpt2", "llama", "gemma3", pytest.param("flan-t5", marks=pytest.mark.slow)])
def test_a_stock_model_that_writes_text(case, tmp_path):
    model = models.build(case)
    model.save_pretrained(tmp_path / "stock")
    tokenizer = load_tokenizer("bundled")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "stock")
    account = export(tmp_path / "stock", tmp_path / "model.onnx", format="onnx")
    assert account["types"] == {}
    assert "keeps no cache" in account["notes"][0]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    kept = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert kept["chat_template"] == "{{ messages }}"
    assert kept["special_tokens"]["eos_token"] == tokenizer.eos_token_id
    assert kept["generation_config"]["eos_token_id"] == model.generation_config.eos_token_id
    assert kept["tokenizer"]["model"]["vocab"] == json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    wanted = [given.name for given in session.get_inputs()]
    for rows, length in ((2, 10), (1, 19)):
        ids = torch.randint(1, 4096, (rows, length))
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        given |= {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            ours = model(**given).logits
        theirs = session.run(["logits"], {name: given[name].numpy() for name in wanted})[0]
        assert np.allclose(theirs, ours, atol=1e-3)


def test_nothing_is_written_over(tmp_path):
    source = save(quantized_student(activations={"bits": None}).eval(), tmp_path / "small")
    (tmp_path / "taken.onnx").write_text("mine")
    with pytest.raises(AbridgedError, match="exists already"):
        export(source, tmp_path / "taken.onnx", format="onnx")
    assert (tmp_path / "taken.onnx").read_text() == "mine"
