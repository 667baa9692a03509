"""Models of sentences in other engines: each makes the vectors that the packed model makes."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from abridged import families
from abridged.checkpoint.files import write_json_files
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.core.hardware import describe
from abridged.exporters import export
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_model
from abridged.models.sentence import read_sentence_settings
from abridged.tasks.embeddings import embed
from embedders import embedder, sentences

LINES = sentences(12)


def small(folder, **settings):
    """The packed model of 2 bits of a tiny teacher, and the vectors that it makes."""
    teacher = embedder(folder / "teacher", **settings)
    model, tokenizer = load_model(teacher)
    given = {"bits": 2, "levels": "balanced", "granularity": "per_channel"}
    method = Quantize.model_validate({"weights": given, "embeddings": given, "activations": {"bits": None}})
    method.build(model, families.view(model), lambda model: None).finish()
    save_checkpoint(model, folder / "small", tokenizer, {"recipe": {"name": "t"}, "teacher": "t", "seed": 0})
    write_json_files(folder / "small", dict(read_sentence_settings(str(teacher)).files))
    return folder / "small", embed(*load_model(folder / "small"), LINES).vectors


def least_cosine(found, own):
    found, own = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (found, own))
    return float((found * own).sum(-1).min())


def test_a_dense_export_is_a_model_of_sentences(tmp_path):
    source, own = small(tmp_path, query="old man ")
    export(source, tmp_path / "dense", dtype="float32")
    for name in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        assert json.loads((tmp_path / "dense" / name).read_text()) == json.loads((source / name).read_text())
    np.testing.assert_allclose(embed(*load_model(tmp_path / "dense"), LINES).vectors, own, atol=1e-5)


def test_sentence_transformers_reads_a_dense_export(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    source, own = small(tmp_path, pooling="cls")
    export(source, tmp_path / "dense", dtype="float16")
    found = library.SentenceTransformer(str(tmp_path / "dense"), device="cpu").encode(LINES)
    assert least_cosine(found, own) > 0.999


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("pooling", "normalize"),
    [("mean", True), ("cls", False), ("lasttoken", True), ("weightedmean", True), ("mean_sqrt_len_tokens", False)],
)
def test_onnx_pools_and_normalises(pooling, normalize, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source, own = small(tmp_path, pooling=pooling, normalize=normalize)
    account = export(source, tmp_path / "small.onnx", format="onnx")
    assert sum(account["types"].values()) > 10
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # activations stay in FP32
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), options)
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [one.name for one in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    _, tokenizer = load_model(source)
    batch = tokenizer(LINES, padding=True, return_tensors="np")
    given = {"token_type_ids": np.zeros_like(batch["input_ids"]), **batch}
    hidden, vectors = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
    assert hidden.shape == (*batch["input_ids"].shape, 32)
    np.testing.assert_allclose(vectors, own, atol=2e-3)
    kept = json.loads(session.get_modelmeta().custom_metadata_map["sentences"])
    assert (kept["pooling"], kept["normalize"]) == (pooling, normalize)


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_fastembed_reads_an_onnx_export_beside_a_dense_one(tmp_path):
    fastembed = pytest.importorskip("fastembed")
    pytest.importorskip("onnxscript")
    from fastembed.common.model_description import ModelSource, PoolingType

    source, own = small(tmp_path)
    export(source, tmp_path / "out")
    export(source, tmp_path / "out" / "onnx" / "model.onnx", format="onnx")
    fastembed.TextEmbedding.add_custom_model(
        model="small", pooling=PoolingType.MEAN, normalization=True, sources=ModelSource(hf="small"), dim=32,
        model_file="onnx/model.onnx",
    )  # fmt: skip
    found = fastembed.TextEmbedding("small", specific_model_path=str(tmp_path / "out")).embed(LINES)
    assert least_cosine(np.stack(list(found)), own) > 0.99  # onnxruntime rounds activations to 8 bits


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "pooling"), [("float16", "mean"), ("q8_0", "mean"), ("float16", "cls")])
def test_llama_cpp_embeds(dtype, pooling, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    if dtype == "q8_0" and describe()["amx"]:
        pytest.skip("llama.cpp's AMX code for Q8_0 ends the process")
    source, own = small(tmp_path, pooling=pooling)
    account = export(source, tmp_path / "small.gguf", format="gguf", dtype=dtype)
    assert set(account["types"]) == {"F16" if dtype == "float16" else "Q8_0"}
    model = llama_cpp.Llama(str(tmp_path / "small.gguf"), embedding=True, verbose=False, n_ctx=64, n_threads=1)
    _, tokenizer = load_model(source)
    for line in LINES:
        assert model.tokenize(line.encode()) == tokenizer(line)["input_ids"]
    assert least_cosine(np.array(model.embed(LINES)), own) > 0.999
    model.close()


def test_gguf_holds_pooling_and_codes_in_q8_0(tmp_path):
    gguf = pytest.importorskip("gguf")
    source, _ = small(tmp_path, pooling="cls", max_length=10, query="old man ")
    account = export(source, tmp_path / "small.gguf", format="gguf", dtype="q8_0")
    assert account["scale_error"] < 1e-3
    assert any("made for 10 tokens of a text, and llama.cpp reads 64" in note for note in account["notes"])
    assert any("has no prompts" in note for note in account["notes"])
    reader = gguf.GGUFReader(tmp_path / "small.gguf")
    assert reader.fields["general.architecture"].contents() == "bert"
    assert reader.fields["bert.pooling_type"].contents() == gguf.PoolingType.CLS
    stored = next(one for one in reader.tensors if one.name == "blk.0.ffn_up.weight")
    found = gguf.quants.dequantize(stored.data, stored.tensor_type)
    export(source, tmp_path / "dense", dtype="float32")
    dense = load_file(tmp_path / "dense" / "model.safetensors")["encoder.layer.0.intermediate.dense.weight"]
    np.testing.assert_allclose(found, dense, rtol=1e-3)  # codes as they are, scales in FP16


def test_a_dense_model_is_rounded_to_q8_0(tmp_path):
    gguf = pytest.importorskip("gguf")
    teacher = embedder(tmp_path / "teacher")
    account = export(teacher, tmp_path / "a.gguf", format="gguf", dtype="q8_0")
    assert account["types"] == {"Q8_0": 13}
    stored = next(t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "token_embd.weight")
    dense = load_file(teacher / "model.safetensors")["embeddings.word_embeddings.weight"]
    error = np.abs(gguf.quants.dequantize(stored.data, stored.tensor_type) - dense)
    assert 0 < error.max() <= np.abs(dense).max() / 127


def test_llama_cpp_has_no_weighted_mean(tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(
        AbridgedError, match="llama.cpp pools by mean, cls or lasttoken, and this model by weightedmean"
    ):
        export(embedder(tmp_path / "teacher", pooling="weightedmean"), tmp_path / "a.gguf", format="gguf")
