"""Factored models on disk: what is stored, loaded and refused; factors alone, and factors in few bits."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from abridged import families
from abridged.checkpoint.files import read_header
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.exporters.dense import dense_model, export_dense
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.method import Quantize
from abridged.runtime.kronecker import KroneckerBlocks, KroneckerEmbedding, factored_modules
from abridged.runtime.modules import PackedEmbedding, PackedLinear
from abridged.storage.format import parse_spec
from students import IDS, logits

CASES = {
    "factors": ({"layers": "odd"}, None),
    "factors in FP16": ({}, {"weights": {"bits": None}, "embeddings": {"bits": None}, "unquantized": "float16"}),
    "2 bits": ({"layers": "odd"}, {}),
    "2 bits, five to a byte": ({}, {"weights": {"packing": "base3"}, "embeddings": {"packing": "base3"}}),
    "4 bits, several terms": ({"rank": 4}, {"weights": {"bits": 4}, "embeddings": {"bits": 4}}),
    "1 bit, low rank": ({"form": "low_rank"}, {"weights": {"bits": 1}, "embeddings": {"bits": 1}}),
}


def student(kronecker, quantize):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 128, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    methods = [Kronecker.model_validate(kronecker)]
    methods += [] if quantize is None else [Quantize.model_validate(quantize)]
    attached = [method.build(model, families.view(model), lambda model: model(IDS)) for method in methods]
    for method in attached:
        method.finish()
    return model.eval()


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory):
    model = student(*CASES[request.param])
    directory = tmp_path_factory.mktemp("case") / "student"
    save_checkpoint(model, directory, None, {})
    return model, directory


def test_the_loaded_model_answers_as_the_student(case):
    model, directory = case
    for loaded in (AutoModelForCausalLM.from_pretrained(directory), load(directory)):
        assert (logits(loaded) - logits(model)).abs().max() <= 1e-4


def test_load_save_load_is_byte_identical(case, tmp_path):
    _, directory = case
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_each_factor_is_written_once_and_shared(case):
    _, directory = case
    model = load(directory)
    for side in ("left", "right"):
        head, embedding = (module.get_submodule(side) for module in (model.lm_head, model.transformer.wte))
        own = dict(embedding.named_parameters(recurse=False))
        assert own
        assert all(getattr(head, name) is parameter for name, parameter in own.items())
    names = [name for name in read_header(directory / "model.safetensors") if name.startswith("lm_head")]
    assert all("input_quantizer" in name for name in names)


def test_the_base_model_loads_alone_and_generation_agrees_with_full_passes(case):
    model, directory = case
    with torch.no_grad():
        base = AutoModel.from_pretrained(directory)
        assert torch.allclose(base(IDS)[0], pack_model(model).transformer(IDS)[0], atol=1e-5)
    loaded = load(directory)
    with torch.no_grad():
        ids = loaded.generate(IDS[:1], max_new_tokens=6, min_new_tokens=6, do_sample=False)
        likeliest = loaded(ids[:, :-1]).logits[:, IDS.shape[1] - 1 :].argmax(-1)
    assert torch.equal(ids[:, IDS.shape[1] :], likeliest)


def test_inspect_counts_the_original_s_weights_and_shows_factors(case):
    _, directory = case
    account = inspect(directory)
    original = 128 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert account["parameters"] == original
    assert account["dense_bytes"] == 4 * original
    assert account["stored_parameters"] < original
    assert sum(row["bytes"] for row in account["parts"].values()) == account["file_bytes"]
    rows = {row["name"]: row for row in account["modules"]}
    row = rows["transformer.h.1.attn.c_attn"]
    assert row["shape"] == [96, 32]
    assert 0 < row["error"] < 1
    assert row["part"] == "attention"
    assert row["dense_bytes"] == 4 * (96 * 32 + 96)
    assert rows["transformer.wte"]["part"] == "embedding"
    assert rows["transformer.wte"]["parameters"] == 128 * 32


def test_packed_children_stay_packed():
    loaded = pack_model(student({}, {}))
    assert isinstance(loaded.transformer.wte, KroneckerEmbedding)
    assert isinstance(loaded.transformer.wte.left, PackedEmbedding)
    block = loaded.transformer.h[0].attn.c_attn
    assert isinstance(block, KroneckerBlocks)
    assert all(isinstance(pair.left, PackedLinear) for _, pair in block.pairs())


def test_dense_export_multiplies_out(tmp_path):
    model = student({"layers": "odd"}, None)
    save_checkpoint(model, tmp_path / "small", None, {})
    export_dense(tmp_path / "small", tmp_path / "plain", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not factored_modules(plain)
    assert torch.allclose(logits(plain), logits(model), atol=1e-5)


def test_dense_model_has_the_levels_of_quantised_factors():
    packed = pack_model(student({}, {"activations": {"bits": None}}))
    assert torch.allclose(logits(dense_model(packed, torch.float32)), logits(packed), atol=1e-5)


FAULTS = {
    "sizes": ({"left_rows": 64}, "config.json makes it"),
    "negative": ({"rank": -1}, "rank"),
    "huge": ({"left_rows": 2**30, "left_columns": 2**30}, "more than any model has|config.json makes"),
    "rank": ({"rank": 3}, "rank 3 is above 2"),
    "fused": ({"fused": 10**9}, "fused"),
    "column": ({"right_rows": 2, "right_columns": 1}, "one row"),
    "error": ({"error": -1.0}, "error"),
    "kind": ({"reads": "tensor"}, "reads"),
    "bias": ({"bias": True}, "bias"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_specifications_end_in_one_error(fault, tmp_path):
    directory = tmp_path / "student"
    save_checkpoint(student({}, None), directory, None, {})
    changes, message = FAULTS[fault]
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["modules"]["transformer.wte"].update(changes)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "abridged.json").unlink()
    with pytest.raises(AbridgedError, match=f"{message}|sha256|factored differently"):
        load(directory)


def _described():
    model = pack_model(student({}, {}))
    return model.config.quantization_config.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["lm_head"].update(tied="transformer.h.0"), "no factored embedding of its own"),
        (lambda m: m["lm_head"].update(tied=None, left_rows=64), "is no factor of"),
        (lambda m: m["lm_head.left"].update(tied=None), "is not tied to transformer.wte.left"),
        (lambda m: m.pop("lm_head.left"), "is not tied to transformer.wte.left"),
        (lambda m: m["transformer.wte.left"].update(columns=8), "stored differently|no factor of"),
        (lambda m: m["transformer.h.0.mlp.c_fc.left"].update(kind="embedding"), "input|bias|Extra"),
        (
            lambda m: m["lm_head.left"].update(tied="transformer.h.0.mlp.c_fc.left"),
            "no embedding of its own|differently",
        ),
    ],
)
def test_ties_that_do_not_hold_together_are_refused(change, message):
    data = _described()
    change(data["modules"])
    with pytest.raises(AbridgedError, match=message):
        parse_spec(data)


def test_order_of_the_modules_does_not_matter(tmp_path):
    model = student({}, {})
    save_checkpoint(model, tmp_path / "student", None, {})
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    config["quantization_config"]["modules"] = dict(reversed(modules.items()))
    (tmp_path / "student" / "config.json").write_text(json.dumps(config))
    assert (logits(load(tmp_path / "student")) - logits(model)).abs().max() <= 1e-4


def test_factors_that_are_not_finite_are_not_packed():
    model = student({}, None)
    model.transformer.wte.left.weight.data[0, 0] = torch.inf
    with pytest.raises(AbridgedError, match="the factors of transformer.wte are not all finite"):
        pack_model(model)
