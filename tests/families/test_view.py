"""Views that are derived: against those written by hand, and against the models that they describe."""

import resource

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from abridged import families
from abridged.core.errors import AbridgedError
from abridged.families.logits import run_body
from families.expected import EXPECTED

HAND_WRITTEN = [name for name in tiny.TINY if tiny.TINY[name]()[1].model_type in EXPECTED]
# no hand had written these right
HAND_WRITTEN = [name for name in HAND_WRITTEN if name not in ("bart-labels", "llama-answers", "llama-bare")]
SLOW = pytest.mark.slow


def some(names, fast=tiny.FAST):
    """Names as parameters, all but the fast ones marked slow."""
    return [pytest.param(name, marks=() if name in fast else SLOW) for name in names]


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_it_is_what_was_written_by_hand(name):
    model = tiny.build(name)
    expected, found = EXPECTED[model.config.model_type](model), families.view(model)
    for fact in ("model_type", "hidden_size", "layers", "heads", "context", "blocks"):
        assert getattr(found, fact) == getattr(expected, fact), fact
    for fact in ("matrices", "attentions", "positions", "norms", "writers", "readers"):
        assert sorted(map(str, getattr(found, fact))) == sorted(map(str, getattr(expected, fact))), fact
    assert found.matrices[0] == expected.matrices[0]
    plain = [(p.path, p.kind, p.layer, sorted(p.inputs), p.output, p.units) for p in found.parts]
    written = [(p.path, p.kind, p.layer, sorted(p.inputs), p.output, p.units) for p in expected.parts]
    assert sorted(map(str, plain)) == sorted(map(str, written))
    assert found.faults == ()
    assert found.bare < families.MOST_BARE


@pytest.mark.parametrize("name", some(tiny.TINY))
def test_it_fits_the_model(name):
    model = tiny.build(name)
    view = families.view(model)
    for matrix in view.matrices:
        weight = model.get_submodule(matrix.name).weight
        assert tuple(weight.shape)[:: -1 if matrix.transposed else 1] == (matrix.rows, matrix.columns)
        for tied in matrix.tied:
            assert model.get_submodule(tied).weight is weight
    for path in (*view.attentions, *view.blocks, *view.positions, *view.norms, *view.writers, *view.readers):
        model.get_submodule(path)
    for part in view.parts:
        owned = {name: sum(run.size for run in runs) for name, runs in part.runs.items()}
        assert all(model.get_submodule(name).weight.numel() % (part.units * rows) == 0 for name, rows in owned.items())
    assert sum(stream.blocks for stream in view.streams) == view.layers == len(view.blocks) > 0


HEADED = [name for name in tiny.TINY if getattr(tiny.TINY[name]()[0], "can_generate", lambda: False)()]


@pytest.mark.parametrize("name", some(HEADED, (*tiny.FAST, "gemma2", "cohere2", "granite")))
@torch.no_grad()
def test_head_of_body_is_what_the_model_says(name):
    model = tiny.build(name)
    logits = families.view(model).logits
    if name == "blip":  # its head stands behind a transform
        assert logits is None
        return
    inputs = tiny.inputs(model)
    head = model.get_output_embeddings()
    expected = model(**inputs).logits
    found = logits.scale * head(logits.input_scale * run_body(model, inputs, return_dict=True).last_hidden_state)
    found = found if logits.cap is None else logits.cap * torch.tanh(found / logits.cap)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.std())


@pytest.mark.parametrize("name", some(tiny.REFUSED, ("mixtral", "mamba")))
def test_what_no_method_reaches_is_refused_in_one_sentence(name):
    with pytest.raises(AbridgedError) as refusal:
        families.refuse_uncompressed(families.view_of_config(*tiny.REFUSED[name]()))
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert "experts" in sentence or "mixes tokens by a state or a filter" in sentence


def test_experts_are_counted_as_they_are():
    kind, config = tiny.REFUSED["mixtral"]()
    view = families.view_of_config(kind, config)
    parameters = {name: p.numel() for name, p in kind(config).named_parameters() if p.ndim > 1}
    experts = sum(count for name, count in parameters.items() if ".experts." in name or name.endswith("gate.weight"))
    assert view.bare == pytest.approx(experts / sum(parameters.values()))
    share = f"the experts of mixtral are not compressed yet: {100 * view.bare:.0f} % of its weights"
    with pytest.raises(AbridgedError, match=share):
        families.refuse_uncompressed(view)


def test_a_model_of_7b_takes_no_memory_to_speak_of():
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    view = families.view_of_config(LlamaForCausalLM, LlamaConfig(**sizes, vocab_size=32000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB
    assert (view.layers, len(view.parts), len(view.norms), view.parts[0].units) == (32, 64, 65, 32)
    assert sum(m.rows * m.columns for m in view.matrices) == 6738149376
    assert {(m.name, m.rows, m.columns) for m in view.matrices if m.layer == 31} >= {
        ("model.layers.31.mlp.down_proj", 4096, 11008),
        ("model.layers.31.self_attn.k_proj", 4096, 4096),
    }


def test_it_is_derived_in_plain_numbers_wherever_it_is_asked_for():
    kind, config = tiny.TINY["qwen3"]()
    expected = families.view_of_config(kind, config)
    families._KNOWN.clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.no_grad():
            assert families.view_of_config(kind, config) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_runs_say_which_rows_are_whose():
    runs = families.view(tiny.build("gpt_neox")).parts[0].runs
    ((begin, middle, end),) = [[(run.offset, run.stride, run.size)] * 3 for (run,) in runs.values()]
    assert begin == middle == end == (0, 48, 48)  # each head's q, k and v one after the other
    (runs,) = families.view(tiny.build("phi3")).parts[0].runs.values()
    assert [(run.offset, run.stride, run.size) for run in runs] == [(0, 32, 32), (64, 16, 16), (96, 16, 16)]


@pytest.mark.parametrize(
    ("name", "norm_first", "scale", "kinds", "fault"),
    [
        ("gemma2", True, 8.0, {"attention", "ffn"}, ""),
        ("granite", True, 3.0, {"attention", "ffn"}, ""),
        ("olmo2", False, 1.0, {"fixed", "ffn"}, "all of its units depend on the same rows of"),
        ("marian", False, 1.0, {"attention", "ffn"}, ""),
        ("t5", True, 1.0, {"fixed", "ffn"}, "its heads have biases of their own in"),
        ("gptj", True, 1.0, {"fixed", "ffn"}, "its attention does not go through transformers' interface"),
        ("gpt_neo", True, 1.0, {"fixed", "ffn"}, "its attention does not go through transformers' interface"),
        ("m2m_100", True, 1.0, set(), "embed_positions.weights is as wide as the stream, and no parameter"),
        ("electra", False, 1.0, set(), "word_embeddings is 32 wide and the stream 64"),
        ("vit", True, 1.0, set(), "cls_token is as wide as the stream, and no matrix"),
    ],
)
def test_what_cannot_be_cut_stays_whole_with_a_reason(name, norm_first, scale, kinds, fault):
    view = families.view_of_config(*tiny.TINY[name]())
    assert all(stream.norm_first == norm_first for stream in view.streams)
    assert view.embedding_scale == pytest.approx(scale)
    assert {part.kind for part in view.parts} == kinds
    assert any(fault in one for one in view.faults) if fault else not view.faults


@pytest.mark.parametrize("name", ["mpnet", "gpt_neo", "deberta-v2", "bloom"])
def test_attention_outside_transformers_interface_is_known_by_the_tokens_that_it_mixes(name):
    view = families.view_of_config(*tiny.TINY[name]())
    parts = {part: sum(m.part == part and m.layer == 0 for m in view.matrices) for part in ("attention", "ffn")}
    assert parts == {"attention": 2 if name == "bloom" else 4, "ffn": 2}
