"""The account of what a directory weighs."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import abridged
from abridged.checkpoint.inspect import inspect, part_of
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from students import quantized_student

PARAMETERS = 128 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32


def check_sums(account, directory):
    files = list(directory.glob("*.safetensors"))
    assert account["file_bytes"] == sum(path.stat().st_size for path in files) == sum(account["files"].values())
    assert account["parameters"] == PARAMETERS
    assert account["dense_bytes"] == 4 * PARAMETERS
    assert account["ratio"] == pytest.approx(account["dense_bytes"] / account["file_bytes"])
    assert account["bits_per_weight"] == pytest.approx(8 * account["file_bytes"] / PARAMETERS)
    for key in ("bytes", "dense_bytes"):
        total = sum(part[key] for part in account["parts"].values())
        assert total == account["file_bytes" if key == "bytes" else "dense_bytes"]
        assert total - account["parts"]["headers"][key] == sum(module[key] for module in account["modules"])


def test_a_checkpoint(saved):
    account = inspect(saved)
    check_sums(account, saved)
    assert account["format"] == "abridged"
    assert account["parts"]["embedding"] == {
        "parameters": 128 * 32,
        "bytes": 128 * 32 // 4 + 4 * 128,
        "dense_bytes": 4 * 128 * 32,
    }
    assert account["parts"]["ffn"]["bytes"] == 2 * (2 * 128 * 32 // 4 + 2 * 4)
    assert account["parts"]["positions"]["bytes"] == 4 * 32 * 32
    modules = {module["name"]: module for module in account["modules"]}
    wte = modules["transformer.wte"]
    assert (wte["stored"], wte["shape"], wte["bits"], wte["scales"]) == ("ternary, 2 bits", [128, 32], 2, "row")
    assert wte["tied"] == ["lm_head"]
    attention = modules["transformer.h.1.attn.c_attn"]
    assert (attention["part"], attention["scales"], attention["num_scales"]) == ("attention", "block", 3)
    assert attention["activations"] == {"kind": "static", "bits": 8, "symmetric": True}
    assert modules["transformer.ln_f"]["stored"] == "F32"


def test_shards_and_base3_and_fp16(tmp_path):
    base3 = {"packing": "base3"}
    student = quantized_student(weights=base3, embeddings=base3, unquantized="float16")
    save_checkpoint(student, tmp_path / "out", None, {}, max_shard_size=6_000)
    account = inspect(tmp_path / "out")
    assert len(account["files"]) > 1
    check_sums(account, tmp_path / "out")
    assert account["parts"]["positions"]["bytes"] == 2 * 32 * 32
    modules = {module["name"]: module for module in account["modules"]}
    assert modules["transformer.wte"]["bits"] == 1.6
    assert modules["transformer.wte"]["bytes"] == 128 * 7 + 4 * 128


def test_an_ordinary_model(tmp_path):
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=128, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).half().save_pretrained(tmp_path)
    account = inspect(tmp_path)
    check_sums(account, tmp_path)
    assert account["format"] == "dense"
    assert 1.8 < account["ratio"] < 2
    assert {module["stored"] for module in account["modules"]} == {"F16"}


def test_no_model(tmp_path):
    with pytest.raises(AbridgedError, match="does not exist"):
        inspect(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AbridgedError, match="holds no weights"):
        inspect(tmp_path)


def test_needs_no_torch(saved):
    source = str(Path(abridged.__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {source!r}); import abridged; abridged.inspect({str(saved)!r}); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("transformer.wte.weight_scale", "embedding"),
        ("transformer.wpe.weight", "positions"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("transformer.h.0.attn.c_proj.weight", "attention"),
        ("transformer.h.0.attn.c_proj.bias", "biases"),
        ("transformer.h.0.mlp.c_proj.weight", "ffn"),
        ("lm_head.weight", "head"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("model.layers.0.input_layernorm.weight", "norms"),
        ("model.norm.weight", "norms"),
        ("model.embed_tokens.weight", "embedding"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("bert.encoder.layer.0.intermediate.dense.weight", "ffn"),
        ("bert.embeddings.position_embeddings.weight", "positions"),
        ("bert.embeddings.LayerNorm.weight", "norms"),
        ("bert.pooler.dense.weight", "pooler"),
    ],
)
def test_parts_by_name(name, part):
    assert part_of(name) == part
