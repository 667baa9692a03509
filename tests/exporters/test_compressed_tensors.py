"""compressed-tensors directories: transformers and the package itself find in them what the checkpoint holds."""

import json

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.methods.quantization.method import Quantize
from families.test_bert import answer
from families.test_bert import student as encoder
from families.test_llama import build
from students import IDS, logits, quantized_student

WEIGHTS = {
    "ternary by row": {"bits": 2, "granularity": "per_channel"},
    "ternary by tensor": {"bits": 2, "granularity": "per_tensor"},
    "ternary by group": {"bits": 2, "granularity": "per_group", "group_size": 4},
    "q2_0": {"bits": 2, "quantizer": "lsq", "levels": "q2_0", "granularity": "per_group", "group_size": 4},
    "four levels": {"bits": 2, "levels": "balanced", "granularity": "per_channel"},
    "binary": {"bits": 1, "quantizer": "binary", "granularity": "per_channel"},
    "4 bits": {"bits": 4, "granularity": "per_channel"},
    "8 bits": {"bits": 8, "granularity": "per_channel"},
    "6 bits": {"bits": 6, "granularity": "per_channel"},
}


def llama_checkpoint(directory, weights, **config):
    model = build("llama", **config)
    settings = {"weights": {"scale_dtype": "float16", **weights}, "embeddings": {"bits": 8}}
    method = Quantize.model_validate({**settings, "activations": {"bits": None}})
    attached = method.build(model, families.view(model), lambda model: model(IDS))
    attached.finish()
    save_checkpoint(model.eval(), directory, None, {"recipe": {"name": "test"}, "teacher": "llama", "seed": 0})
    return directory


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_loads_llama_with_the_same_logits(weights, tied, tmp_path):
    source = llama_checkpoint(tmp_path / "small", weights, tie_word_embeddings=tied)
    export(source, tmp_path / "out", format="compressed-tensors", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ours = dense_model(load(source), torch.float32)
    assert torch.allclose(logits(theirs), logits(ours), atol=1e-6)


def test_zero_points_are_refused_in_a_sentence(tmp_path):
    source = llama_checkpoint(tmp_path / "small", {"bits": 4, "quantizer": "minmax", "symmetric": False})
    with pytest.raises(AbridgedError, match="has zero points, which transformers does not load .* --format dense"):
        export(source, tmp_path / "out", format="compressed-tensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_transformers_loads_bert_with_the_same_answers(head, tmp_path):
    save_checkpoint(encoder("bert", head, activations=None), tmp_path / "small", None, {"teacher": "bert"})
    account = export(tmp_path / "small", tmp_path / "out", format="compressed-tensors", dtype="float32")
    assert sum(account["types"].values()) == 13  # six in each of two layers, and the pooler or its like
    ours = dense_model(load(tmp_path / "small"), torch.float32)
    theirs = type(ours).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.allclose(answer(theirs), answer(ours), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_package_unpacks_gpt2_to_the_same_weights(dtype, tmp_path):
    student = quantized_student(activations={"bits": None}, weights={"bits": 2, "granularity": "per_channel"})
    save_checkpoint(student, tmp_path / "small", None, {"teacher": "gpt2"})
    account = export(tmp_path / "small", tmp_path / "out", format="compressed-tensors", dtype=dtype)
    assert account["types"] == {"int2": 8}
    state = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    modules = packed_modules(load(tmp_path / "small"))
    for path in ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"):
        parts = {name.removeprefix(f"{path}."): t for name, t in state.items() if name.startswith(path)}
        weight = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        expected = modules[path].dequantized()
        assert weight.dtype == getattr(torch, dtype)
        assert torch.equal(weight, expected.to(weight.dtype))


def test_bad_requests_end_in_one_sentence(tmp_path):
    source = llama_checkpoint(tmp_path / "small", WEIGHTS["4 bits"])
    with pytest.raises(AbridgedError, match="not 'int4'"):
        export(source, tmp_path / "out", format="compressed-tensors", dtype="int4")
    (tmp_path / "taken").mkdir()
    with pytest.raises(AbridgedError, match="exists already"):
        export(source, tmp_path / "taken", format="compressed-tensors")
