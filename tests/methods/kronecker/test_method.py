"""The method on whole models of every family: what is factored, what that changes, and what is refused."""

import copy

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods.kronecker import attached
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.lockstep import target
from abridged.methods.quantization.method import Quantize
from abridged.methods.quantization.modules import QuantizedEmbedding, QuantizedLinear
from abridged.runtime.kronecker import KroneckerEmbedding, factored_modules
from abridged.storage.compressed import compressed_of
from abridged.storage.factors import Factors

IDS = torch.randint(4, 128, (2, 12), generator=torch.Generator().manual_seed(0))
MANY = torch.randint(4, 128, (24, 24), generator=torch.Generator().manual_seed(1))
BERT = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LLAMA = {**BERT, "num_key_value_heads": 1, "max_position_embeddings": 32}
BART = {"vocab_size": 128, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64}
BART |= {"decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "scale_embedding": True}
C_FC = "transformer.h.0.mlp.c_fc"
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 4, "n_head": 2, "n_positions": 32, **ENDS}
FAMILIES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**BART, max_position_embeddings=32)),
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "bert classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
}


def make(family="gpt2"):
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def factor(model, **settings):
    def calibrate(model, tokens=None):
        assert settings.get("initialization") == "inputs", "no other start reads data"
        model(MANY)

    Kronecker.model_validate(settings).build(model, families.view(model), calibrate)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_answers_as_the_original_did(family):
    model = make(family)
    expected = logits(model)
    factor(model, shapes={"*": [1, 4]}, rank=4, matrices=["embedding", "head", "attention", "ffn"])
    assert factored_modules(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_factored_model_is_what_its_factors_multiply_out_to(family):
    model, dense = factor(make(family), rank=2), make(family)
    view = families.view(dense)
    with torch.no_grad():
        for matrix in view.matrices:
            module = model.get_submodule(matrix.name)
            if matrix.name in factored_modules(model):
                weight = module.dequantized()
                stock = dense.get_submodule(matrix.name).weight
                stock.copy_(weight.t() if matrix.transposed else weight)
    torch.testing.assert_close(logits(model), logits(dense), atol=2e-5, rtol=1e-4)


def test_odd_layers_and_the_embedding_alone_are_factored():
    found = factored_modules(factor(make(), layers="odd"))
    layers = {name.split(".")[2] for name in found if ".h." in name}
    assert layers == {"1", "3"}
    assert {"transformer.wte", "lm_head"} <= set(found)
    assert "transformer.wpe" not in found
    assert found["transformer.h.1.attn.c_attn"].factors.fused == 3
    assert set(factored_modules(factor(make(), layers=[2], matrices=["*.c_fc"]))) == {"transformer.h.2.mlp.c_fc"}


def test_half_of_the_parameters_are_left_of_what_is_factored():
    model = make()
    before = sum(p.numel() for p in model.parameters())
    weights = {m.name: m.rows * m.columns for m in families.view(model).matrices if m.part != "positions"}
    after = sum(p.numel() for p in factor(model).parameters())
    few = sum(m.factors.fused * 2 for name, m in factored_modules(model).items() if name != "lm_head")
    assert after == before - sum(weights.values()) // 2 + few


def test_tied_modules_share_both_factors_and_keep_bart_s_scale():
    model = factor(make("bart"))
    owner = model.model.shared
    for reader in (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head):
        assert reader.left.weight is owner.left.weight
        assert reader.right.weight is owner.right.weight
    assert owner.embed_scale == model.model.encoder.embed_tokens.embed_scale == 32**0.5
    assert isinstance(owner, KroneckerEmbedding)


def test_the_nearer_of_the_two_forms_is_taken():
    model = make()
    with torch.no_grad():
        weight = model.transformer.h[0].mlp.c_fc.weight  # stored (in, out)
        weight[1::2] = 3 * weight[::2]  # neighbouring inputs count alike: a row is exact
    nearest = factored_modules(factor(model, matrices=["*.0.mlp.c_fc"]))[C_FC]
    assert nearest.factors.right == (1, 2)
    assert compressed_of(model).errors[C_FC] < 1e-3
    other = factored_modules(factor(make(), matrices=["*.0.mlp.c_fc"], form="rows"))["transformer.h.0.mlp.c_fc"]
    assert other.factors.right == (2, 1)


def test_more_terms_come_nearer_with_as_many_parameters():
    errors = []
    for rank in (1, 2, 4, 8):
        model = factor(make(), rank=rank, form="columns", matrices=["*.0.mlp.c_fc"])
        module = model.get_submodule(C_FC)
        errors.append(compressed_of(model).errors[C_FC])
        assert module.factors.rank * module.factors.left[1] == 16
    assert errors == sorted(errors, reverse=True)


def test_low_rank_is_truncated_svd():
    model = make()
    weight = model.transformer.h[1].mlp.c_proj.weight.detach().t().clone()
    module = factor(model, form="low_rank", matrices=["*.1.mlp.c_proj"]).transformer.h[1].mlp.c_proj
    assert module.factors == Factors((32, 1), (1, 128), rank=12)
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(module.dequantized(), u[:, :12] * s[:12] @ v[:12], atol=1e-5, rtol=1e-4)
    assert module.factors.parameters <= weight.numel() / 2


def test_random_start_has_the_size_of_the_weights():
    model = factor(make(), initialization="random")
    module = model.transformer.h[1].mlp.c_fc
    assert module.dequantized().std().item() == pytest.approx(0.02, rel=0.1)
    assert compressed_of(model).errors["transformer.h.1.mlp.c_fc"] > 1


def loud(family="gpt2"):
    """A model whose layers do more than pass on."""
    model = make(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


FORMS = {
    "terms": {"rank": 2},
    "rows": {"form": "rows"},
    "columns": {"form": "columns"},
    "low rank": {"form": "low_rank"},
    "square": {"shapes": {"*.h.*": [4, 4], "*layer*": [4, 4], "*": [1, 4]}, "rank": 2},
}


@pytest.mark.parametrize(("family", "form"), [*((family, None) for family in FAMILIES), *(("gpt2", f) for f in FORMS)])
def test_a_start_on_inputs_comes_nearer_to_the_outputs(family, form):
    settings, wanted = FORMS.get(form, {}), logits(loud(family))
    nearest, inputs = (factor(loud(family), initialization=start, **settings) for start in ("nearest", "inputs"))
    assert (logits(inputs) - wanted).norm() < (logits(nearest) - wanted).norm()
    assert set(factored_modules(inputs)) == set(factored_modules(nearest))
    assert not any(module._forward_pre_hooks for module in inputs.modules())


def test_a_start_on_inputs_makes_up_for_the_factors_before(monkeypatch):
    wanted, settings = logits(loud()), {"initialization": "inputs", "matrices": ["attention", "ffn"]}
    corrected = factor(loud(), **settings)
    monkeypatch.setattr(attached, "target", lambda w, m, crossed, *rest: target(w, m, None, *rest))
    alone = factor(loud(), **settings)
    distances = [(logits(model) - wanted).norm() for model in (corrected, alone)]
    assert distances[0] < 0.95 * distances[1]


def test_the_first_layer_s_factors_are_the_best_for_its_inputs():
    model, met = loud(), []
    path = "transformer.h.0.mlp.c_fc"
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, inputs: met.append(inputs[0]))
    with torch.no_grad():
        model(MANY)
    handle.remove()
    x, weight = met[0].flatten(0, 1), model.get_submodule(path).weight.detach().t()
    lost = {}
    for start in ("nearest", "inputs"):
        other = factor(copy.deepcopy(model), initialization=start, matrices=["*.0.mlp.c_fc"])
        rest = weight - other.get_submodule(path).dequantized().detach()
        lost[start] = (x @ rest.t()).norm()
        error = float(rest.norm() / weight.norm())  # whatever was sought
        assert compressed_of(other).errors[path] == pytest.approx(error, rel=1e-4)
    assert lost["inputs"] < lost["nearest"]


def test_a_tied_embedding_is_factored_for_look_ups_and_its_head_s_inputs():
    model, wanted = loud(), logits(loud())
    before = {name: p.clone() for name, p in model.named_parameters()}
    embedding, nearest = (factor(loud(), initialization=s, matrices=["embedding"]) for s in ("inputs", "nearest"))
    assert embedding.lm_head.left.weight is embedding.transformer.wte.left.weight
    assert (embedding.transformer.wte.dequantized() != nearest.transformer.wte.dequantized()).any()
    assert (logits(embedding) - wanted).norm() < (logits(nearest) - wanted).norm()
    assert all(torch.equal(p, before[n]) for n, p in embedding.named_parameters() if n in before and "wte" not in n)


def test_what_no_input_comes_to_gets_the_nearest():
    inputs = factor(make("bert classifier"), initialization="inputs", matrices=["embedding"])
    expected = factor(make("bert classifier"), matrices=["embedding"])
    path = "bert.embeddings.word_embeddings"
    assert torch.equal(inputs.get_submodule(path).dequantized(), expected.get_submodule(path).dequantized())


def test_padding_is_left_out_of_a_start_on_inputs():
    padded = torch.cat([MANY, torch.zeros(24, 8, dtype=torch.int64)], 1)
    mask = (torch.arange(32) < 24).long().expand(24, 32)
    models = []
    for named in ({"input_ids": MANY}, {"input_ids": padded, "attention_mask": mask}):
        models.append(model := make())
        method = Kronecker(initialization="inputs")
        method.build(model, families.view(model), lambda model, tokens=None, named=named: model(**named))
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=1e-2)


def test_inputs_that_are_not_finite_are_refused_by_name():
    model = make()
    model.transformer.h[1].ln_2.bias.data[0] = torch.inf
    with pytest.raises(AbridgedError, match=r"the inputs of transformer.h.1.mlp.c_fc are not all finite"):
        factor(model, initialization="inputs", matrices=["attention", "ffn"])
    with pytest.raises(AbridgedError, match=r"the inputs of lm_head are not all finite"):
        factor(model, initialization="inputs")


def test_a_later_stage_reads_no_data_for_factors_that_are_there():
    model = factor(make(), initialization="inputs")
    before = {name: id(p) for name, p in model.named_parameters()}
    settings = Kronecker(initialization="inputs")
    settings.build(model, families.view(model), None)
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_a_report_compares_with_the_nearest():
    assert Kronecker(initialization="inputs").untrained() == Kronecker()


def test_a_later_stage_leaves_factors_as_they_are():
    model = factor(make(), layers="odd")
    before = {name: id(p) for name, p in model.named_parameters()}
    factor(model, layers="odd")
    assert {name: id(p) for name, p in model.named_parameters()} == before
    with pytest.raises(AbridgedError, match="factored already as .*; a later stage cannot"):
        factor(model, rank=2)
    factor(model, layers="all")  # more layers may follow
    assert "transformer.h.0.mlp.c_fc" in factored_modules(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_anatomy_lists_the_factors_that_matter(family):
    model = make(family)
    whole = families.view(model)
    refined = families.view(factor(model, layers=[1]))
    assert refined.whole == whole.whole
    modules = dict(model.named_modules())
    for matrix in refined.matrices:
        if matrix.factor_of is None:
            continue
        assert matrix.name.endswith(".left")  # pairs of numbers are not listed
        for path in (matrix.name, *matrix.tied):
            assert modules[path].weight.shape == (matrix.rows, matrix.columns)
    assert refined.feed_forward == whole.feed_forward
    low_rank = families.view(factor(make(family), form="low_rank", layers=[1]))
    assert {m.name.rpartition(".")[2] for m in low_rank.matrices if m.factor_of} == {"left", "right"}


def test_the_first_factor_has_the_range_of_the_input():
    model = factor(make(), form="low_rank", layers=[0])
    ranges = {m.name: m.input for m in families.view(model).matrices}
    assert ranges["transformer.h.0.mlp.c_proj.right"] == "asymmetric"
    assert ranges["transformer.h.0.mlp.c_proj.left"] == "symmetric"
    rows = families.view(factor(make(), form="rows", layers=[0], matrices=["ffn"]))
    assert {m.name: m.input for m in rows.matrices}["transformer.h.0.mlp.c_proj.left"] == "asymmetric"


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_are_quantised_after(family):
    model = factor(make(family), layers=[1])
    Quantize().build(model, families.view(model), lambda model: model(IDS))
    kinds = (QuantizedLinear, QuantizedEmbedding)
    for module in factored_modules(model).values():
        for _, pair in module.pairs():
            assert isinstance(pair.left, kinds)
            assert type(pair.right) is torch.nn.Linear
    loss = model(IDS).logits.square().mean()
    loss.backward()
    assert all(p.grad is not None for m in factored_modules(model).values() for p in m.parameters() if p.ndim > 1)


BAD = {
    "divisors": ({"factor": 5}, "128 columns, which 5 does not divide: the nearest that do are 4 or 8"),
    "larger": ({"shapes": {"*.c_fc": [1, 64]}}, "a factor of 1x64 is larger than the matrix"),
    "rank": ({"shapes": {"*.c_fc": [1, 2]}, "rank": 3, "matrices": ["*.c_fc"]}, "rank 3 is above 2"),
    "layer": ({"layers": [4]}, "layers has 4, but the model's layers end at 3"),
    "path": ({"matrices": ["*.c_what"]}, "the model has no matrix"),
    "tied head": ({"matrices": ["head", "ffn"]}, "'head', which is tied to the embedding: factor both"),
    "embedding": ({"shapes": {"*.wte": [2, 1]}}, "looked up by row"),
    "fraction": ({"factor": 1.3}, "must be a whole number"),
    "nothing": ({"matrices": ["ffn"], "layers": []}, "nothing of what matrices and layers ask for"),
    "low rank": ({"factor": 1000, "form": "low_rank"}, "leaves no rank at all"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_before_anything_changes(case):
    settings, message = BAD[case]
    model = make()
    if case == "divisors":  # of a width of 32 next to one of 128
        settings = {**settings, "matrices": ["*.mlp.c_proj"], "form": "columns"}
    with pytest.raises(AbridgedError, match=message):
        factor(model, **settings)
    assert not factored_modules(model)


def test_weights_that_are_not_finite_and_matrices_quantised_before():
    model = make()
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(AbridgedError, match="not all finite"):
        factor(model)
    model = make()
    Quantize().build(model, families.view(model), lambda model: model(IDS))
    with pytest.raises(AbridgedError, match="before other methods change it"):
        factor(model)


@pytest.mark.parametrize("settings", [{"factor": 1.0}, {"rank": 0}, {"matrices": []}, {"form": "low_rank", "rank": 2}])
def test_settings_are_checked(settings):
    with pytest.raises(ValidationError):
        Kronecker.model_validate(settings)
