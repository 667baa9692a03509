"""ONNX files in onnxruntime: what they answer, what they hold, and how large they are."""

import numpy as np
import pytest
import torch

from abridged.checkpoint.load import load
from abridged.errors import AbridgedError
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.families import anatomy_of
from abridged.methods.quantization.method import Quantize
from families.test_bert import HEADS, IDS, MASK, build, save
from students import quantized_student

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.engine
WEIGHTS = {
    "binary": {"bits": 1, "quantizer": "binary", "granularity": "row"},
    "ternary": {"bits": 2, "granularity": "tensor"},
    "four levels": {"bits": 2, "levels": "balanced", "granularity": "row"},
    "groups": {"bits": 4, "granularity": "group", "group_size": 16},
    "8 bits": {"bits": 8, "granularity": "row"},
}


def exported(tmp_path, kind="bert", head="ForSequenceClassification", weights="ternary"):
    model = build(kind, head)
    by_row = {**WEIGHTS[weights], "granularity": "row", "group_size": None}
    settings = {"weights": WEIGHTS[weights], "embeddings": by_row, "activations": {"bits": None}, "positions": True}
    method = Quantize.model_validate(settings)
    method.prepare(model, anatomy_of(model), lambda model: None)
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
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
    assert np.allclose(run(tmp_path / "small.onnx")[0], expected, atol=2e-3)


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


def test_what_writes_text_is_refused(tmp_path):
    source = save(quantized_student(activations={"bits": None}).eval(), tmp_path / "small")
    with pytest.raises(AbridgedError, match="knows encoders, and a GPT2LMHeadModel writes text"):
        export(source, tmp_path / "small.onnx", format="onnx")
    (tmp_path / "taken.onnx").write_text("mine")
    with pytest.raises(AbridgedError, match="exists already"):
        export(source, tmp_path / "taken.onnx", format="onnx")
