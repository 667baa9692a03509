"""GGUF files in the engine itself: llama.cpp computes from them what the checkpoint's values say, but for rounding.

llama.cpp rounds activations to 8 bits in blocks, so its logits differ a little from those of full-precision
activations, and a greedy text may part ways where two tokens are nearly as likely.
"""

import importlib.resources
from contextlib import closing

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import abridged
from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.cli.app import app
from abridged.data.text import load_text
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.families.layout import HIDDEN
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_dense, load_tokenizer
from abridged.recipe import Recipe
from architectures import CASES, build
from pruned import cut_to, masked, parts

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.engine
#: Q4_0 and Q8_0 are left out: llama.cpp's AMX code for them ends the process on processors that have it.
RECIPES = {"best-ternary-2-2-8": {}, "TQ1_0": {"ternary": "TQ1_0"}, "best-2-2-8": {}, "best-1-1-8": {}}
PROMPTS = [
    "The river", "In 1914 the", "She was born in", "The film was", "A small town in the north of", "The song reached",
    "During the war", "He played for", "The castle was built", "It is one of the", "The storm moved", "Critics praised",
    "The species is found", "After the game", "The road runs", "Their first album", "The ship was", "In the second",
    "The king of England", "Scientists have",
]  # fmt: skip


def quantize(model, recipe, tokenizer):
    """By the recipe's methods, without training."""
    ids = tokenizer(load_text("wikitext-2").test[:2000], return_tensors="pt")["input_ids"][:, :256]
    for method in Recipe.load(recipe).stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(ids))
        attached.finish()
    return model.eval()


@pytest.fixture(scope="module")
def text_ids():
    tokenizer = load_tokenizer("bundled")
    return torch.tensor(tokenizer(load_text("wikitext-2").test[:20_000])["input_ids"][: 8 * 256]).view(-1, 256)


class Engine:
    """llama.cpp with a file; rows of logits come out."""

    def __init__(self, path):
        self.model = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False)

    def logits(self, ids):
        """Of a new text, (len(ids), vocabulary)."""
        self.model.reset()
        return self.more(ids)

    def more(self, ids):
        """Of what follows the text so far."""
        begun = self.model.n_tokens
        self.model.eval(list(ids))
        return torch.from_numpy(np.array(self.model.scores[begun : begun + len(ids)]))

    def close(self):
        self.model.close()


@torch.no_grad()
def compare(engine, model, tokenizer, text_ids):
    """The four things that must hold; `model` is the dense one with the quantised values."""
    for prompt in PROMPTS:
        ours = tokenizer(prompt)["input_ids"]
        assert engine.model.tokenize(prompt.encode(), add_bos=False, special=False) == ours
    theirs = torch.stack([engine.logits(row.tolist()) for row in text_ids])
    ours = model(text_ids).logits
    assert cosine_similarity(theirs, ours, dim=-1).mean() >= 0.999
    losses = [cross_entropy(logits[:, :-1].flatten(0, 1), text_ids[:, 1:].flatten()) for logits in (theirs, ours)]
    assert abs(float(losses[0] - losses[1])) < np.log(1.01)
    # what separates the best two must exceed what their logits are apart from ours, or they may part ways
    centered = (theirs - theirs.mean(-1, keepdim=True)) - (ours - ours.mean(-1, keepdim=True))
    error = 2 * float(centered.abs().amax())
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        theirs = engine.logits(ids)
        for _ in range(24):
            best = torch.topk(model(torch.tensor([ids])).logits[0, -1], 2)
            chosen = int(theirs[-1].argmax())
            if chosen != int(best.indices[0]):
                assert float(best.values[0] - best.values[1]) < error
                break
            ids.append(chosen)
            theirs = engine.more([chosen])


@pytest.mark.parametrize("case", RECIPES)
def test_llama_cpp_runs_the_bundled_student(case, text_ids, tmp_path):
    tokenizer = load_tokenizer("bundled")
    recipe = "best-ternary-2-2-8" if case == "TQ1_0" else case
    student = quantize(load_dense("bundled"), recipe, tokenizer)
    record = {"recipe": {"name": recipe}, "teacher": "bundled", "seed": 0}
    save_checkpoint(student, tmp_path / "small", tokenizer, record)
    account = export(tmp_path / "small", tmp_path / "small.gguf", format="gguf", **RECIPES[case])
    assert account["scale_error"] == 0.0
    with closing(Engine(tmp_path / "small.gguf")) as engine:
        compare(engine, dense_model(load(tmp_path / "small"), torch.float32), tokenizer, text_ids)


def test_llama_cpp_runs_a_pruned_model_padded_to_one_width(text_ids, tmp_path):
    model, tokenizer = load_dense("bundled"), load_tokenizer("bundled")
    first = parts(model, "attention")[0], parts(model, "ffn")[1]
    masks, kept = masked(model, removed=first)
    kept[HIDDEN] = torch.arange(192)  # three heads of 64
    kept |= {path: kept[path][:3] for path in parts(model, "attention")}
    cut_to(model, masks, kept)
    save_checkpoint(model, tmp_path / "small", tokenizer, {"recipe": {"name": "t"}, "teacher": "bundled", "seed": 0})
    options = {"dtype": "float32", "uniform": True}
    export(tmp_path / "small", tmp_path / "small.gguf", format="gguf", **options)
    with closing(Engine(tmp_path / "small.gguf")) as engine:
        theirs = engine.logits(text_ids[0].tolist())
    with torch.no_grad():
        ours = load(tmp_path / "small")(text_ids[:1]).logits[0]
    assert cosine_similarity(theirs, ours, dim=-1).min() > 0.999


@pytest.mark.parametrize(("dtype", "recipe"), [("float32", None), ("float16", None), ("float16", "best-2-2-8")])
def test_llama_cpp_runs_a_llama_whose_layers_differ(dtype, recipe, text_ids, tmp_path):
    tokenizer = load_tokenizer("bundled")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": len(tokenizer)}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.1, max_position_embeddings=128)).eval()
    removed = parts(model, "attention")[0], parts(model, "ffn")[1], parts(model, "attention")[3], parts(model, "ffn")[3]
    cut_to(model, *masked(model, removed=removed))
    left = sum(p.numel() for p in model.parameters())
    model = quantize(model, recipe, tokenizer) if recipe else model
    save_checkpoint(model, tmp_path / "small", tokenizer, {"recipe": {"name": "t"}, "teacher": "bundled", "seed": 0})
    export(tmp_path / "small", tmp_path / "small.gguf", format="gguf", dtype=dtype)
    with closing(Engine(tmp_path / "small.gguf")) as engine:
        theirs = engine.logits(text_ids[0].tolist())
    with torch.no_grad():
        ours = load(tmp_path / "small")(text_ids[:1]).logits[0]
    assert cosine_similarity(theirs, ours, dim=-1).min() > 0.999
    # no wider than the layers are: all that the file has is what is left, and a few zeros where a part was removed
    written = sum(int(np.prod(tensor.shape)) for tensor in GGUFReader(tmp_path / "small.gguf").tensors)
    assert left < written < 1.05 * left


@pytest.mark.timeout(900)
def test_llama_cpp_runs_a_trained_llama(text_ids, tmp_path):
    config = importlib.resources.files("abridged") / "assets" / "configs" / "small-llama.yaml"
    settings = ["steps=60", "epochs=null", "batch_size=8", "evaluate_every=60", "compile=no"]
    abridged.finetune(config, "wikitext-2", tmp_path / "teacher", overrides=settings)
    tokenizer = load_tokenizer(tmp_path / "teacher")
    short = [f"stages.*.{key}" for key in ("steps=20", "batch_size=8", "evaluate_every=20", "compile=no")]
    record = abridged.compress(
        tmp_path / "teacher", recipe="best-ternary-2-2-8", data="wikitext-2", output=tmp_path / "small", overrides=short
    )
    assert record["metrics"]["student"]["perplexity"] < 3 * record["metrics"]["teacher"]["perplexity"] < 3000
    account = export(tmp_path / "small", tmp_path / "small.gguf", format="gguf")
    assert account["types"] == {"TQ2_0": 29}
    with closing(Engine(tmp_path / "small.gguf")) as engine:
        compare(engine, dense_model(load(tmp_path / "small"), torch.float32), tokenizer, text_ids)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("engine"), load_tokenizer("bundled")
    student = quantize(load_dense("bundled"), "best-ternary-2-2-8", tokenizer)
    save_checkpoint(student, folder / "small", tokenizer, {"recipe": {"name": "t"}, "teacher": "bundled", "seed": 0})
    export(folder / "small", folder / "small.gguf", format="gguf")
    return folder / "small.gguf"


def test_generate_runs_a_file_by_the_engine(file):
    command = ["generate", str(file), "The river", "--engine", "llama.cpp", "--max-new-tokens", "12", "--seed", "1"]
    first, second = CliRunner().invoke(app, command), CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("The river")
    assert len(first.stdout) > 20
    assert first.stdout == second.stdout
    assert "tokens/s" in first.stderr


def test_what_is_no_gguf_file_is_said(file, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    for path, word in ((tmp_path / "bad.gguf", "cannot load"), (tmp_path / "none.gguf", "is no GGUF file")):
        result = CliRunner().invoke(app, ["generate", str(path), "a", "--engine", "llama.cpp"])
        assert result.exit_code == 1
        assert word in result.stderr


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "river",
    "##s",
    "run",
    "over",
    "a",
    "small",
    "town",
    "near",
    "mountain",
    "'",
    ",",
    ".",
    "?",
]


def test_an_encoder_labels_texts_as_the_dense_model(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), num_labels=3, **sizes)).eval()
    quantize(model, "progressive-bert-2-2-8", tokenizer)
    save_checkpoint(model, tmp_path / "small", tokenizer, {"recipe": {"name": "t"}, "teacher": "t", "seed": 0})
    export(tmp_path / "small", tmp_path / "small.gguf", format="gguf")
    dense = dense_model(load(tmp_path / "small"), torch.float32)
    with closing(llama_cpp.Llama(str(tmp_path / "small.gguf"), embedding=True, verbose=False)) as engine:
        for text in ("The rivers run over a small town.", "A mountain's river, unknown?", "the"):
            ids = tokenizer(text, return_tensors="pt")
            assert engine.tokenize(text.encode()) == ids["input_ids"][0].tolist()
            engine._batch.reset()
            engine._batch.add_sequence(ids["input_ids"][0].tolist(), 0, True)
            engine._ctx.decode(engine._batch)
            theirs = torch.tensor(llama_cpp.llama_get_embeddings_seq(engine._ctx.ctx, 0)[:3])
            ours = dense(**ids).logits[0].detach()
            assert torch.allclose(theirs, ours, atol=0.02 * float(ours.abs().max()) + 2e-3)


@pytest.fixture(scope="module")
def few_ids():
    return torch.randint(1, 4096, (1, 40), generator=torch.Generator().manual_seed(1))


def answers(path, ids):
    """llama.cpp's logits for a text (or, of an encoder-decoder, for its first tokens written after it), row by row."""
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp does not load {path}"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.flash_attn_type, settings.type_k, settings.type_v = 64, 0, 0, 0
    context = llama_cpp.llama_init_from_model(model, settings)
    written = ids[:9] if llama_cpp.llama_model_has_encoder(model) else ids
    for step, tokens in (("encode", ids), ("decode", written)):
        if step == "encode" and written is ids:
            continue
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert getattr(llama_cpp, f"llama_{step}")(context, batch) == 0
        llama_cpp.llama_batch_free(batch)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [llama_cpp.llama_get_logits_ith(context, place) for place in range(len(written))]
    found = torch.stack([torch.from_numpy(np.ctypeslib.as_array(row, shape=(size,)).copy()) for row in rows])
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


@torch.no_grad()
def expected(model, ids):
    """The same of transformers."""
    more = {"decoder_input_ids": ids[:, :9]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits[0]


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_dense(case, few_ids, tmp_path):
    model = build(case)
    model.save_pretrained(tmp_path / "stock")
    load_tokenizer("bundled").save_pretrained(tmp_path / "stock")
    export(tmp_path / "stock", tmp_path / "model.gguf", format="gguf", dtype="float32")
    ids = few_ids[:, : 32 if case == "mistral" else 40]  # within a window, which llama.cpp does not run
    theirs, ours = answers(tmp_path / "model.gguf", ids[0].tolist()), expected(model, ids)
    # GELU, which llama.cpp looks up in FP16 and approximates by tanh, is the coarsest
    assert (theirs - ours).abs().max() < 4e-3 * ours.std()
    assert torch.equal(theirs.argmax(-1), ours.argmax(-1))


Q2_0 = {"quantizer": "lsq", "levels": "q2_0", "granularity": "per_group", "group_size": 64}


@pytest.mark.parametrize("weights", [{"granularity": "per_channel"}, Q2_0], ids=["ternary", "q2_0"])
def test_two_bits_in_a_width_that_256_does_not_divide(weights, few_ids, tmp_path):
    sizes = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 3, "num_key_value_heads": 3}
    model = build("llama", **sizes, head_dim=64, initializer_range=0.05)
    settings = {"bits": 2, "scale_dtype": "float16", **weights}
    method = Quantize.model_validate({"weights": settings, "embeddings": settings, "activations": {"bits": None}})
    method.build(model, families.view(model), lambda model: None).finish()
    record = {"recipe": {"name": "t"}, "teacher": "t", "seed": 0}
    save_checkpoint(model, tmp_path / "small", load_tokenizer("bundled"), record)
    account = export(tmp_path / "small", tmp_path / "model.gguf", format="gguf")
    assert set(account["types"]) == {"Q2_0"}
    assert account["scale_error"] == 0.0
    ids = few_ids[:, :32]
    theirs = answers(tmp_path / "model.gguf", ids[0].tolist())
    ours = expected(dense_model(load(tmp_path / "small"), torch.float32), ids)
    assert cosine_similarity(theirs, ours, dim=-1).min() > 0.999


PACKED = ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "smollm3", "olmo2", "granite", "flan-t5"]


@pytest.mark.parametrize("case", PACKED)
def test_every_architecture_in_two_bits(case, few_ids, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "d_model": 256, "d_ff": 256, "initializer_range": 0.05}
    model = build(case, **{**sizes, "head_dim": 64, "d_kv": 64, "query_pre_attn_scalar": 64})
    method = Quantize.model_validate({"weights": {"bits": 2}, "embeddings": {"bits": 2}, "activations": {"bits": None}})
    method.build(model, families.view(model), lambda model: None).finish()
    record = {"recipe": {"name": "t"}, "teacher": "t", "seed": 0}
    save_checkpoint(model, tmp_path / "small", load_tokenizer("bundled"), record)
    account = export(tmp_path / "small", tmp_path / "model.gguf", format="gguf")
    assert set(account["types"]) == {"TQ2_0"}
    ids = few_ids[:, :32]
    theirs = answers(tmp_path / "model.gguf", ids[0].tolist())
    ours = expected(dense_model(load(tmp_path / "small"), torch.float32), ids)
    # llama.cpp rounds activations to 8 bits
    assert cosine_similarity(theirs, ours, dim=-1).min() > 0.99
