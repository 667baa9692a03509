"""GGUF files: what the gguf package's own reader finds in them is what the checkpoint holds, code for code."""

import copy

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.exporters import export
from abridged.exporters.gguf_blocks import BLOCK_TYPES, TERNARY, encode
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.method import Quantize
from abridged.models.gguf_types import gguf_package
from abridged.models.load import load_dense
from abridged.storage.code_books import CODE_BOOKS

TYPES = [*BLOCK_TYPES.items(), *(("ternary", kind) for kind in TERNARY.values())]
BITS = {"ternary": 2, "quaternary": 2, "q2_0": 2, "binary": 1, **{f"int{bits}": bits for bits in (3, 4, 5, 6, 8)}}
BITS |= {book: int(book[4:]) for book in BLOCK_TYPES if book.startswith("uint")}
LEVELS = {**dict.fromkeys(BITS), "ternary": "ternary", "quaternary": "balanced", "q2_0": "q2_0"}


def read(name, data):
    """What a block type's bytes mean, by the gguf package; by ggml-common.h where it has no reader yet."""
    if name not in ("Q1_0", "Q2_0"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    blocks = data.reshape(-1, 18)  # struct { ggml_half d; uint8_t qs[16]; }
    found = []
    for block in blocks:
        (scale,), bits = np.frombuffer(block[:2].tobytes(), "<f2"), int.from_bytes(block[2:].tobytes(), "little")
        if name == "Q1_0":
            levels = [2 * (bits >> i & 1) - 1 for i in range(128)]
        else:
            levels = [(bits >> 2 * i & 3) - 1 for i in range(64)]
        found.append(np.float32(scale) * np.array(levels, dtype=np.float32))
    return np.concatenate(found).reshape(len(data), -1)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(TYPES), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_blocks_hold_every_code_and_scale(case, rows, scales, blocks, seed):
    book, kind = case
    draw = np.random.default_rng(seed)
    dtype = np.uint8 if kind.minima else np.int8
    levels = draw.choice(np.array(CODE_BOOKS[book], dtype=dtype), (rows, scales * blocks * kind.size))
    scale = draw.uniform(1e-3, 1.0, (rows, scales)).astype(np.float16).astype(np.float32)
    zero = draw.choice(np.array([0.0, 1.0, 2.0], dtype=np.float32), (rows, scales)) if kind.minima else None
    wide = np.repeat(scale, blocks * kind.size, axis=1)
    expected = levels * wide
    if zero is not None:  # so much of a zero point is exact in FP16
        expected = expected - np.repeat(zero, blocks * kind.size, axis=1) * wide
    data = encode(levels, scale, kind, zero)
    np.testing.assert_allclose(read(kind.name, data), expected.astype(np.float32), rtol=0, atol=1e-6 * kind.minima)
    size, count = gguf.GGML_QUANT_SIZES[gguf_package().GGMLQuantizationType[kind.name]]
    assert (size, data.shape[1]) == (kind.size, levels.shape[1] // size * count)


def student(book, family="gpt2", width=256, scale_dtype="float16", granularity="per_channel"):
    """A random model of one layer, quantised without training."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 4096}
    if family == "gpt2":
        sizes = {"n_embd": width, "n_inner": width, "n_layer": 1, "n_head": 2, "n_positions": 32}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **ends))
    else:
        sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": False}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **ends))
    matrices = {
        "bits": int(book[4:]) if book.startswith("uint") else BITS[book],
        "levels": LEVELS.get(book),
        "granularity": granularity,
        "scale_dtype": scale_dtype,
    }
    matrices["quantizer"] = {"binary": "binary", "q2_0": "lsq"}.get(book, "dynamic")
    if book.startswith("uint"):
        matrices |= {"quantizer": "minmax", "symmetric": False}
    matrices = {key: value for key, value in matrices.items() if value is not None}
    embeddings = {**matrices, "granularity": "per_channel"}
    method = Quantize.model_validate({"weights": matrices, "embeddings": embeddings})
    ids = torch.randint(4096, (1, 16))
    attached = method.build(model.eval(), families.view(model), lambda model: model(ids))
    attached.finish()
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("bundled"))


def saved(model, directory, tokenizer):
    save_checkpoint(model, directory, tokenizer, {"recipe": {"name": "test"}, "teacher": "test", "seed": 0})
    return directory


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("book", BITS)
def test_a_file_holds_what_the_checkpoint_does(book, family, tokenizer, tmp_path):
    source = saved(student(book, family), tmp_path / "small", tokenizer)
    account = export(source, tmp_path / "small.gguf", format="gguf")
    kind = BLOCK_TYPES[book].name
    assert account["scale_error"] == 0.0
    assert account["types"] == {kind: 5 if family == "gpt2" else 9}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    model = load(source)
    modules = packed_modules(model)
    pairs = [("token_embd", "transformer.wte"), ("blk.0.attn_qkv", "transformer.h.0.attn.c_attn")]
    if family == "llama":
        pairs = [("token_embd", "model.embed_tokens"), ("blk.0.attn_v", "model.layers.0.self_attn.v_proj")]
        pairs.append(("output", "lm_head"))
    for name, path in pairs:
        tensor = tensors[f"{name}.weight"]
        assert tensor.tensor_type.name == kind
        found, exact = read(kind, np.asarray(tensor.data)), modules[path].dequantized().numpy()
        apart = np.abs(exact).max() * 2**-10 * BLOCK_TYPES[book].minima  # what FP16 loses of the minima
        assert np.abs(found - exact).max() <= apart
    norms = model.transformer.ln_f if family == "gpt2" else model.model.norm
    assert np.array_equal(tensors["output_norm.weight"].data, norms.weight.detach().float().numpy())


def test_zero_points_that_no_block_holds(tokenizer, tmp_path):
    source = saved(student("uint6"), tmp_path / "small", tokenizer)
    with pytest.raises(AbridgedError, match="GGUF has no block type of 6 bits with zero points; --dense-fallback"):
        export(source, tmp_path / "small.gguf", format="gguf")
    account = export(source, tmp_path / "small.gguf", format="gguf", dense_fallback=True)
    assert len(account["dense"]) == 5


def encoder(tmp_path, head="ForSequenceClassification", width=256, **config):
    """A random BERT of one layer, saved; its positions and token types are ternary too."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "##s", "run", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(**{**sizes, "vocab_size": len(words), "max_position_embeddings": 32, "num_labels": 3, **config})
    model = getattr(transformers, f"Bert{head}")(config).eval()
    matrices = {"bits": 2, "quantizer": "dynamic", "scale_dtype": "float16"}
    method = Quantize.model_validate({"weights": matrices, "embeddings": matrices, "positions": True})
    method.build(model, families.view(model), lambda model: model(torch.arange(10).view(1, -1)))
    return saved(model, tmp_path / "small", transformers.BertTokenizer(str(tmp_path / "vocab.txt")))


def test_an_encoder_that_labels_texts(tmp_path):
    source = encoder(tmp_path)
    account = export(source, tmp_path / "small.gguf", format="gguf")
    assert account["types"] == {"TQ2_0": 9}
    assert account["scale_error"] < 1e-3  # that of the padding's row is nearly nothing
    assert "pairs of texts" in account["notes"][0]
    reader = gguf.GGUFReader(tmp_path / "small.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    modules = packed_modules(load(source))
    types = modules["bert.embeddings.token_type_embeddings"].dequantized().numpy()
    assert np.array_equal(tensors["token_types.weight"].data, types)  # llama.cpp adds it as it is, in FP32
    up = modules["bert.encoder.layer.0.intermediate.dense"].dequantized().numpy()
    assert np.array_equal(read("TQ2_0", np.asarray(tensors["blk.0.ffn_up.weight"].data)), up)
    assert tensors["cls.weight"].tensor_type.name == "TQ2_0"
    assert tensors["cls.output.weight"].data.shape == (3, 256)
    fields = reader.fields
    assert fields["tokenizer.ggml.model"].contents() == "bert"
    assert fields["tokenizer.ggml.tokens"].contents()[2:8] == ["[CLS]", "[SEP]", "[MASK]", "▁the", "▁river", "s"]
    assert fields["bert.attention.causal"].contents() is False


def test_of_a_bare_encoder_the_pooler_is_left_out(tmp_path):
    export(encoder(tmp_path, "Model"), tmp_path / "small.gguf", format="gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    assert "blk.0.attn_output_norm.bias" in names
    assert not any(name.startswith("cls") for name in names)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 96}, "width 96 cannot be cut into Q2_0's blocks of 64"),
        ({"head": "ForTokenClassification"}, "the head of a BertForTokenClassification"),
        ({"hidden_act": "relu"}, "activation relu"),
        ({"is_decoder": True}, "a causal mask"),
        ({"is_decoder": True, "add_cross_attention": True}, "a causal mask|attention across"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
    ],
)
def test_encoders_that_llama_cpp_cannot_run(config, message, tmp_path):
    with pytest.raises(AbridgedError, match=message):
        export(encoder(tmp_path, **config), tmp_path / "small.gguf", format="gguf")


def test_queries_and_keys_of_llama_are_stored_in_pairs(tokenizer, tmp_path):
    source = saved(student("ternary", "llama"), tmp_path / "small", tokenizer)
    export(source, tmp_path / "small.gguf", format="gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    modules = packed_modules(load(source))
    for name, path, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        ours = modules[f"model.layers.0.self_attn.{path}"].dequantized().numpy()
        theirs = read("TQ2_0", np.asarray(tensors[f"blk.0.{name}.weight"].data))
        half = len(ours) // heads // 2
        for head in range(heads):
            start = head * 2 * half
            assert np.array_equal(theirs[start : start + 2 * half : 2], ours[start : start + half])
            assert np.array_equal(theirs[start + 1 : start + 2 * half : 2], ours[start + half : start + 2 * half])


def test_scales_that_fp16_cannot_hold_are_said_to_be_rounded(tokenizer, tmp_path):
    source = saved(student("ternary", scale_dtype="float32"), tmp_path / "small", tokenizer)
    account = export(source, tmp_path / "small.gguf", format="gguf", ternary="TQ1_0")
    assert 0 < account["scale_error"] < 2**-10
    assert account["types"] == {"TQ1_0": 5}


@pytest.mark.parametrize("chosen", [{}, {"ternary": "TQ1_0"}, {"ternary": "Q2_0"}])
def test_ternary_weights_of_any_multiple_of_64_go_out_as_they_are(chosen, tokenizer, tmp_path):
    model = student("ternary", "llama", width=192)
    source = saved(model, tmp_path / "small", tokenizer)
    account = export(source, tmp_path / "small.gguf", format="gguf", **chosen)
    assert account["types"] == {"Q2_0": 9}
    assert account["scale_error"] == 0.0
    stock = load_dense(tmp_path / "small.gguf")  # through transformers
    for path, module in packed_modules(load(source)).items():
        assert torch.equal(stock.get_submodule(path).weight.detach(), module.dequantized()), path
    width = 256  # fits TQ2_0, too
    source = saved(student("ternary", "llama", width), tmp_path / "wide", tokenizer)
    account = export(source, tmp_path / "wide.gguf", format="gguf", **chosen)
    assert account["types"] == {chosen.get("ternary", "TQ2_0"): 9}
    reader = gguf.GGUFReader(tmp_path / "wide.gguf")
    assert (
        reader.fields["general.file_type"].contents()
        == {
            "TQ1_0": 36,
            "TQ2_0": 37,
            "Q2_0": 41,
        }[chosen.get("ternary", "TQ2_0")]
    )  # of llama.h


def test_a_type_that_the_gguf_package_lacks_is_added_once():
    kinds = gguf_package().GGMLQuantizationType
    assert kinds(42) is kinds["Q2_0"]
    assert [kind.name for kind in kinds].count("Q2_0") == 1
    assert gguf_package() is gguf


def test_a_width_that_fits_no_block_is_named_or_stored_dense(tokenizer, tmp_path):
    source = saved(student("ternary", width=96), tmp_path / "small", tokenizer)
    with pytest.raises(AbridgedError, match="width 96 cannot be cut into Q2_0's blocks of 64"):
        export(source, tmp_path / "small.gguf", format="gguf")
    assert not (tmp_path / "small.gguf").exists()
    account = export(source, tmp_path / "small.gguf", format="gguf", dense_fallback=True)
    assert account["types"] == {"F16": 5}
    assert len(account["dense"]) == 5


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("float32", "F32")])
def test_all_of_it_dense_on_request(dtype, kind, tokenizer, tmp_path):
    source = saved(student("ternary"), tmp_path / "small", tokenizer)
    account = export(source, tmp_path / "small.gguf", format="gguf", dtype=dtype)
    assert account["types"] == {kind: 5}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    expected = packed_modules(load(source))["transformer.wte"].dequantized().to(getattr(torch, dtype)).numpy()
    assert np.array_equal(tensors["token_embd.weight"].data, expected)


def test_the_tokenizer_is_inside(tokenizer, tmp_path):
    source = saved(student("int8"), tmp_path / "small", tokenizer)
    export(source, tmp_path / "small.gguf", format="gguf")
    fields = gguf.GGUFReader(tmp_path / "small.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == tokenizer.convert_ids_to_tokens(range(4096))
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id


def test_bad_requests_end_in_one_sentence(tokenizer, tmp_path):
    source = saved(student("ternary"), tmp_path / "small", tokenizer)
    with pytest.raises(AbridgedError, match="TQ2_0, TQ1_0, Q2_0, not 'TQ3_0'"):
        export(source, tmp_path / "a.gguf", format="gguf", ternary="TQ3_0")
    with pytest.raises(AbridgedError, match="has no option speed: its options are ternary, dense_fallback"):
        export(source, tmp_path / "a.gguf", format="gguf", speed=1)
    with pytest.raises(AbridgedError, match="of float16, bfloat16, float32, q8_0, not 'int8'"):
        export(source, tmp_path / "a.gguf", format="gguf", dtype="int8")
    (tmp_path / "taken.gguf").write_text("mine")
    with pytest.raises(AbridgedError, match="exists already"):
        export(source, tmp_path / "taken.gguf", format="gguf")
    assert (tmp_path / "taken.gguf").read_text() == "mine"


def test_kronecker_factors_are_written_multiplied_out_and_only_so(tmp_path):
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 4096}
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=32, **ends)).eval()
    for method in (Kronecker(layers="odd"), Quantize.model_validate({"activations": {"bits": None}})):
        method.build(model, families.view(model), lambda model: None)
    save_checkpoint(model, tmp_path / "small", AutoTokenizer.from_pretrained(resolve("bundled")), {})
    with pytest.raises(AbridgedError, match="Kronecker factors, which GGUF does not have: --dtype float16"):
        export(tmp_path / "small", tmp_path / "small.gguf", "gguf", dense_fallback=True)
    with pytest.raises(AbridgedError, match="compressed-tensors does not have: --format dense"):
        export(tmp_path / "small", tmp_path / "small-ct", "compressed-tensors")
    export(tmp_path / "small", tmp_path / "small.gguf", "gguf", dtype="float32")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    packed = load(tmp_path / "small")
    found = {"token_embd": "wte", "blk.1.attn_qkv": "h.1.attn.c_attn", "blk.0.ffn_up": "h.0.mlp.c_fc"}
    for name, path in found.items():
        weight = packed.transformer.get_submodule(path).dequantized().detach()
        assert np.allclose(tensors[f"{name}.weight"].reshape(weight.shape), weight.numpy(), atol=1e-6)


@pytest.mark.parametrize("template", ["{{ messages }}", {"default": "{{ messages }}", "rag": "{{ documents }}"}])
def test_chats_and_generation_are_inside(template, tokenizer, tmp_path):
    tokenizer, model = copy.deepcopy(tokenizer), student("int4")
    tokenizer.chat_template = template
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    model.generation_config.update(do_sample=True, temperature=0.5, top_k=7)
    export(saved(model, tmp_path / "small", tokenizer), tmp_path / "small.gguf", format="gguf")
    fields = gguf.GGUFReader(tmp_path / "small.gguf").fields
    told = {name: fields[f"tokenizer.{name}"].contents() for name in ("chat_template", "ggml.eot_token_id")}
    assert told == {"chat_template": "{{ messages }}", "ggml.eot_token_id": 5}
    assert fields["general.sampling.top_k"].contents() == 7
    assert fields["general.sampling.temp"].contents() == 0.5
    if isinstance(template, dict):
        assert fields["tokenizer.chat_template.rag"].contents() == "{{ documents }}"
