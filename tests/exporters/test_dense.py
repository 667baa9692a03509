"""A dense export is an ordinary model that holds the quantised values."""

import json
import subprocess
import sys

import pytest
import torch

from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.exporters.dense import export_dense
from forgery import sign
from students import IDS, logits, quantized_student

NO_ACTIVATIONS = {"activations": {"bits": None}}


@pytest.fixture
def checkpoint(tmp_path):
    student = quantized_student(**NO_ACTIVATIONS)
    save_checkpoint(student, tmp_path / "packed", None, {"teacher": "gpt2"})
    (tmp_path / "packed" / "vocab.json").write_text("{}")
    return student, tmp_path / "packed"


def read_without_abridged(directory) -> dict[str, torch.Tensor]:
    """Logits and weights as a process sees them that knows transformers alone."""
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(directory)!r}, dtype=torch.float32)
assert "abridged" not in sys.modules
with torch.no_grad():
    logits = model(torch.tensor({IDS.tolist()})).logits
state = {{"logits": logits, "c_attn": model.transformer.h[0].attn.c_attn.weight, "wte": model.lm_head.weight}}
torch.save(state, {str(directory / "seen.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return torch.load(directory / "seen.pt", weights_only=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_stock_process_reads_the_quantised_values(checkpoint, tmp_path, dtype):
    student, directory = checkpoint
    account = export_dense(directory, tmp_path / "dense", dtype)
    assert account["format"] == "dense"
    assert account["bits_per_weight"] > (32 if dtype == "float32" else 16)
    assert (tmp_path / "dense" / "vocab.json").exists()
    assert "transformers alone" in (tmp_path / "dense" / "README.md").read_text()
    seen = read_without_abridged(tmp_path / "dense")
    half = dtype == "float16"
    for name, source in (("c_attn", student.transformer.h[0].attn.c_attn.source), ("wte", student.lm_head.source)):
        expected = source().half().float() if half else source()
        assert torch.equal(seen[name], expected.t() if name == "c_attn" else expected)
    assert (seen["logits"] - logits(student)).abs().max() < (0.02 if half else 1e-4)


def test_bad_output_and_dtype(checkpoint, tmp_path):
    _, directory = checkpoint
    with pytest.raises(AbridgedError, match="exists already"):
        export_dense(directory, directory)
    with pytest.raises(AbridgedError, match="not 'int8'"):
        export_dense(directory, tmp_path / "dense", "int8")
    with pytest.raises(AbridgedError, match="no such file or directory"):
        export_dense(tmp_path / "none", tmp_path / "dense")


def test_what_chats_and_generation_depend_on_comes_along(checkpoint, tmp_path):
    _, directory = checkpoint
    kept = {
        "chat_template.jinja": "{{ messages }}",
        "tokenizer_config.json": "{}",
        "special_tokens_map.json": '{"pad_token": "p"}',
        "spiece.model": "pieces",
        "additional_chat_templates/rag.jinja": "{{ documents }}",
    }
    (directory / "additional_chat_templates").mkdir()
    for name, text in kept.items():
        (directory / name).write_text(text)
    settings = json.loads((directory / "generation_config.json").read_text()) | {"top_k": 7, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    sign(directory)
    export_dense(directory, tmp_path / "dense")
    assert {name: (tmp_path / "dense" / name).read_text() for name in kept} == kept
    assert json.loads((tmp_path / "dense" / "generation_config.json").read_text())["top_k"] == 7
