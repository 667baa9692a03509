"""Every architecture that is written is read back: by gguf's reader, and where transformers reads it, as the same."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.exporters import export
from abridged.models.gguf_architectures import ARCHITECTURES
from abridged.models.load import load_dense, load_tokenizer
from architectures import CASES, build

#: Those whose GGUF files transformers 5.23 reads, with what is completed here.
READ = ("gpt2", "llama", "llama-biases", "llama-3", "qwen2", "qwen3", "gemma2", "gemma3")
IDS = torch.randint(1, 4096, (1, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("bundled"))


def written(case, folder, tokenizer, dtype="float32", **changes):
    """(model, file, account) of a stock directory that was exported."""
    model = build(case, **changes)
    model.save_pretrained(folder / "stock")
    tokenizer.save_pretrained(folder / "stock")
    account = export(folder / "stock", folder / "model.gguf", format="gguf", dtype=dtype)
    return model, folder / "model.gguf", account


def test_every_type_of_the_table_is_tried():
    assert {model_type for model_type, _ in CASES.values()} | {"bert"} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", READ)
def test_a_stock_model_comes_back_as_it_went(case, tokenizer, tmp_path):
    model, file, account = written(case, tmp_path, tokenizer)
    assert set(account["types"]) == {"F32"}
    again = load_dense(file)
    assert not hasattr(again.config, "quantization_config")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    if "gemma" not in case:  # of its own kind, which the bundled tokenizer is not
        text = "In 1914 the river, it's 23,456 feet"
        assert load_tokenizer(file, again)(text)["input_ids"] == load_tokenizer(tmp_path / "stock")(text)["input_ids"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dense_types(dtype, tokenizer, tmp_path):
    model, file, account = written("llama", tmp_path, tokenizer, dtype)
    assert set(account["types"]) == {"F16" if dtype == "float16" else "BF16"}
    down = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    expected = model.model.layers[1].mlp.down_proj.weight.detach().to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(gguf.quants.dequantize(down.data, down.tensor_type), expected)


def test_a_file_that_transformers_reads_otherwise_is_refused(tokenizer, tmp_path):
    _, file, _ = written("llama-3-short", tmp_path, tokenizer)
    with pytest.raises(AbridgedError, match="scales its rotary positions in a way"):
        load_dense(file)
    (tmp_path / "windows").mkdir()
    _, file, account = written("mistral", tmp_path / "windows", tokenizer)
    assert "one window, 32 tokens" in account["notes"][0]
    fields = gguf.GGUFReader(file).fields
    assert fields["llama.context_length"].contents() == 32


def test_one_file_stands_for_its_directory_and_two_do_not(tokenizer, tmp_path):
    model, file, _ = written("llama", tmp_path, tokenizer, "float16")
    (tmp_path / "alone").mkdir()
    file.rename(tmp_path / "alone" / "a.gguf")
    assert torch.equal(load_dense(tmp_path / "alone").lm_head.weight, model.lm_head.weight.detach().half().float())
    (tmp_path / "alone" / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(AbridgedError, match="holds several models, a.gguf, b.gguf: name one of them"):
        load_dense(tmp_path / "alone")
    with pytest.raises(AbridgedError, match="b.gguf is no GGUF file, or a damaged one"):
        load_dense(tmp_path / "alone" / "b.gguf")
    whole = (tmp_path / "alone" / "a.gguf").read_bytes()
    (tmp_path / "alone" / "b.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AbridgedError, match="no GGUF file, or a damaged one"):
        load_dense(tmp_path / "alone" / "b.gguf")


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 64}, "attention scaled otherwise than by its heads' width"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "rotary positions elsewhere than in three of four layers"),
        ("llama", {"hidden_act": "gelu"}, "no llama with activation gelu"),
        ("qwen3", {"attention_bias": True}, "no qwen3 with a bias of model.layers.0.self_attn.o_proj"),
        ("t5", {"num_layers": 1}, "more layers in its decoder"),
        ("olmo2", {"tie_word_embeddings": True}, "a head tied to its embedding"),
    ],
)
def test_what_llama_cpp_runs_otherwise_is_refused(case, changes, message, tokenizer, tmp_path):
    with pytest.raises(AbridgedError, match=message):
        written(case, tmp_path, tokenizer, **changes)
    assert not (tmp_path / "model.gguf").exists()


def test_an_unknown_type_is_told_what_is_known(tokenizer, tmp_path):
    config = OPTConfig(hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32)
    OPTForCausalLM(config).save_pretrained(tmp_path / "stock")
    with pytest.raises(AbridgedError, match="GGUF export knows bert, .*, t5, mt5, not models of type opt"):
        export(tmp_path / "stock", tmp_path / "model.gguf", format="gguf")


SPLITTING = {
    "llama-bpe": ("Split", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", True),
    "dbrx": ("Split", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", False),
    "qwen2": ("Split", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", False),
    "smollm": ("Digits", None, False),
}


@pytest.mark.parametrize("name", SPLITTING)
def test_how_a_byte_level_tokenizer_splits_text_survives(name, tokenizer, tmp_path):
    kind, pattern, ignore_merges = SPLITTING[name]
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps = [{"type": "Digits", "individual_digits": True}]
    if pattern:
        steps = [{"type": kind, "pattern": {"Regex": pattern + rest}, "behavior": "Isolated", "invert": False}]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not pattern}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, level]}
    described["model"]["ignore_merges"] = ignore_merges
    ours = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token="<|endoftext|>"
    )
    _, file, _ = written("llama", tmp_path, ours)
    assert gguf.GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == name
    text = "In 1914 the river's 23456 feet, and\n\n IT'S 7"
    assert load_tokenizer(file)(text)["input_ids"] == ours(text)["input_ids"] != tokenizer(text)["input_ids"]
