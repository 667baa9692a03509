"""Gates: what must hold of a model, on five tiny ones of every kind here and on all others among the slow tests."""

from dataclasses import replace

import pytest
import transformers

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.families.kinds import is_language_model
from abridged.families.small import small_model
from abridged.families.standin import inputs_of
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.prompt_tuning import PromptTuning
from abridged.methods.pruning.method import Prune
from abridged.methods.quantization.method import Quantize
from abridged.training import gates
from abridged.training.modes import make_trainable
from tiny import FAST, LIBRARY, REFUSED, TINY

#: Models of which nothing can be removed, and what the refusal names.
WHOLE = {
    "electra": "32 wide",
    "electra-masked": "32 wide",
    "albert": "32 wide",
    "mpnet": "embedding of another width",
    "mpnet-bare": "embedding of another width",
    "m2m_100": "no parameter",
    **dict.fromkeys(LIBRARY, "cannot be pruned"),
}
#: Models whose blocks must stay: Falcon adds one part's output in place to another's.
BLOCKS_STAY = ("falcon",)

every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TINY]
)


def made(name):
    model = small_model(*TINY[name]())
    return model, families.view(model)


@every
def test_a_masked_model_is_the_cut_one_and_the_reloaded_one(name):
    model, view = made(name)
    if name in WHOLE:
        with pytest.raises(AbridgedError, match=WHOLE[name]):
            gates.cut_gate(model, view)
    else:
        structures = gates.ALL - {"blocks"} if name in BLOCKS_STAY else gates.ALL
        assert gates.cut_gate(model, view, structures) <= gates.TOLERANCE


@every
@pytest.mark.parametrize("method", [Quantize, Kronecker])
def test_a_student_is_the_packed_one_and_the_reloaded_one(name, method):
    assert gates.stored_gate(*made(name), gates.storing(method)) <= gates.TOLERANCE


@every
def test_the_head_of_the_body_gives_the_logits(name):
    model, view = made(name)
    if view.logits is None:
        pytest.skip("no head for tokens that reads the stream")
    assert gates.logits_gate(model, view) <= gates.TOLERANCE


@every
def test_token_by_token_is_the_text_at_once(name):
    model, _ = made(name)
    if set(inputs_of(model)) != {"input_ids"} or not model.can_generate():
        pytest.skip("no decoder")
    assert gates.steps_gate(model) <= gates.TOLERANCE


@every
def test_a_prompt_of_tokens_embeddings_reads_as_the_tokens(name):
    model, _ = made(name)
    if set(inputs_of(model)) != {"input_ids"} or not is_language_model(model):
        pytest.skip("no decoder")
    assert gates.prompt_gate(model) <= gates.TOLERANCE


def test_a_prompt_that_nothing_reads_does_not_pass(monkeypatch):
    monkeypatch.setattr(gates, "attach_prompt", lambda model, vectors: None)
    assert gates.prompt_gate(made("gpt2")[0]) > 0.01


def test_units_that_are_not_where_the_view_says_do_not_pass():
    model, view = made("qwen3")
    first = view.parts[0]
    moved = {name: tuple(replace(run, offset=0) for run in runs) for name, runs in first.runs.items()}
    name = first.inputs[0]
    half = moved[name][0].size // 2
    swapped = tuple(replace(moved[name][0], offset=offset, stride=half, size=half) for offset in (0, 2 * half))
    wrong = replace(view, parts=[replace(first, runs={**first.runs, name: swapped}), *view.parts[1:]])
    assert gates.cut_gate(model, wrong, frozenset({"heads"})) > 0.01


def test_a_stream_that_is_read_before_any_norm_is_masked_at_the_embeddings():
    model, view = made("olmo2")
    assert view.bare_stream
    assert gates.cut_gate(model, view, frozenset({"hidden"})) <= gates.TOLERANCE
    hidden = replace(view, streams=tuple(replace(stream, norm_first=True) for stream in view.streams))
    assert gates.cut_gate(model, hidden, frozenset({"hidden"})) > 0.01


def test_a_soft_cap_that_is_left_out_does_not_pass():
    model, view = made("gemma2")
    assert gates.logits_gate(model, view) <= gates.TOLERANCE
    assert gates.logits_gate(model, replace(view, logits=replace(view.logits, cap=None))) > 0.01


def prune(*structures):
    return Prune.model_validate({"budget": {"parameters": 0.5}, **({"structures": structures} if structures else {})})


def test_what_does_not_pass_is_refused_in_one_sentence_that_says_what_does():
    kind, config = TINY["falcon"]()
    with pytest.raises(AbridgedError, match="leave blocks out of methods.prune.structures"):
        gates.refuse(kind, config, [Quantize(), prune()])
    gates.refuse(kind, config, [Quantize(), Kronecker(), prune("hidden", "ffn")])
    with pytest.raises(AbridgedError, match="models of type electra cannot be pruned: .* 32 wide"):
        gates.refuse(*TINY["electra"](), [prune()])
    gates.refuse(*TINY["gpt2"](), [PromptTuning()])
    with pytest.raises(
        AbridgedError, match="before a text to go on with, which a BertForSequenceClassification does not"
    ):
        gates.refuse(*TINY["bert"](), [PromptTuning()])


def test_a_small_model_keeps_heads_and_kinds_of_layers():
    config = transformers.Gemma3TextConfig()
    small = small_model(transformers.Gemma3ForCausalLM, config)
    assert sum(p.numel() for p in small.parameters()) < 2e6
    assert set(small.config.layer_types) == {"sliding_attention", "full_attention"}
    assert small.config.num_attention_heads == config.num_attention_heads
    assert small.config.num_key_value_heads == config.num_key_value_heads
    assert config.num_hidden_layers == 26


def test_a_class_that_cannot_be_made_is_refused():
    config = transformers.LlamaConfig(hidden_act="none of the known", num_hidden_layers=1)
    with pytest.raises(AbridgedError, match="no small model of a LlamaForCausalLM"):
        small_model(transformers.LlamaForCausalLM, config)


def test_a_table_that_is_never_saved_is_not_trained():
    model = make_trainable(small_model(*TINY["marian"]()).requires_grad_(False))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    assert gates.stored_gate(model, families.view(model), gates.storing(Quantize)) <= gates.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_one_sentence(name):
    kind, config = REFUSED[name]()
    with pytest.raises(AbridgedError) as refusal:
        families.refuse_uncompressed(families.view_of_config(kind, config))
    assert "\n" not in str(refusal.value)
