"""Adapters in a directory of their own open with their base, with no other, and as they were written or not at all."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from abridged import families
from abridged.checkpoint.adapters import adapter_digest, save_adapter
from abridged.checkpoint.load import load
from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.families.kinds import context_of
from abridged.methods.lora import Lora
from abridged.methods.prompt_tuning import PromptTuning
from students import IDS, logits

pytest.importorskip("peft")


LORA, NORMS, PROMPT = Lora(rank=2), Lora(matrices=[], norms=True), PromptTuning(tokens=3)


def adapted(base, seed, *methods):
    """The base, loaded anew, with adapters as if they had been trained."""
    model = load(base)
    trained = []
    for method in methods or (LORA,):
        attached = method.build(model, families.view(model), lambda model: None)
        trained += [parameter for group in attached.parameter_groups().values() for parameter in group]
        attached.finish()
    torch.manual_seed(seed)
    model.requires_grad_(False)  # as a stage leaves what it does not train
    for parameter in trained:
        parameter.requires_grad_(True).data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model


def written(base, directory, seed=1, methods=(LORA,)):
    """A directory of adapters, and what base and adapters answer."""
    model = adapted(base, seed, *methods)
    save_adapter(model, directory, base, directory, {"recipe": {"name": "lora"}})
    return logits(model.eval())


@pytest.fixture
def mine(checkpoint, tmp_path):
    """Adapters beside a packed model that may be damaged."""
    written(checkpoint, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def prompted(checkpoint, tmp_path):
    """A prompt alone beside a packed model."""
    written(checkpoint, tmp_path / "mine", methods=[PROMPT])
    return tmp_path / "mine"


def refused(directory, match, config=True):
    """By every way in; where the tensors themselves are wrong, the config still opens."""
    for way in (load, AutoModelForCausalLM.from_pretrained, *([AutoConfig.from_pretrained] if config else [])):
        with pytest.raises(AbridgedError, match=match):
            way(directory)


KINDS = {
    "lora": [LORA],
    "lora and norms": [Lora(rank=2, norms=True)],
    "norms": [NORMS],
    "prompt": [PROMPT],
    "prompt, norms and lora": [PROMPT, NORMS, LORA],
}


@pytest.mark.parametrize("kind", KINDS)
def test_they_open_with_their_base(kind, saved, tmp_path):
    expected = written(saved, tmp_path / "mine", methods=KINDS[kind])
    assert not torch.allclose(logits(load(saved)), expected, atol=1e-3)
    for way in (load, AutoModelForCausalLM.from_pretrained):
        model = way(tmp_path / "mine")
        assert torch.equal(logits(model), expected)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    body = AutoModel.from_pretrained(tmp_path / "mine")
    with torch.no_grad():
        states = body(IDS).last_hidden_state
        assert torch.equal(states, load(tmp_path / "mine").transformer(IDS).last_hidden_state)
    model, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "mine", output_loading_info=True)
    assert torch.equal(logits(model), expected)
    assert not notes["missing_keys"]
    assert sum(file.stat().st_size for file in (tmp_path / "mine").iterdir()) < 60_000  # and no weight of the base


def test_several_stand_beside_one_base(saved, tmp_path):
    answers = {name: written(saved, tmp_path / name, seed) for name, seed in (("one", 1), ("two", 2))}
    assert not torch.allclose(*answers.values(), atol=1e-2)
    for name in ("one", "two", "one"):
        assert torch.equal(logits(load(tmp_path / name)), answers[name])


def test_both_may_move_together(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "here" / "small")
    expected = written(tmp_path / "here" / "small", tmp_path / "here" / "mine")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(logits(load(tmp_path / "there" / "mine")), expected)


def test_the_base_is_missing(mine, checkpoint):
    shutil.rmtree(checkpoint)
    refused(mine, "is an adapter of checkpoint, which is not at .*: put that packed model there")


def test_the_base_is_another(mine, checkpoint, student, tmp_path):
    from abridged.checkpoint.save import save_checkpoint

    other = load(checkpoint)
    other.transformer.wpe.weight.data += 1
    shutil.rmtree(checkpoint)
    save_checkpoint(other, checkpoint, None, {})
    refused(mine, "has another digest: it is not the model it was trained on")


def test_the_base_is_damaged(mine, checkpoint):
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(mine, "does not match its sha256", config=False)


def test_they_are_damaged_or_anothers(mine, checkpoint, tmp_path):
    weights = mine / "adapter.safetensors"
    whole = weights.read_bytes()
    for data in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-9], b""):
        weights.write_bytes(data)
        refused(mine, "does not match its sha256 in abridged.json: it is damaged, or of another adapter")
    written(checkpoint, tmp_path / "other", seed=2)
    shutil.copy(tmp_path / "other" / "adapter.safetensors", weights)
    refused(mine, "does not match its sha256")


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 64}, {"sha256": None}, {"rank": None, "alpha": None}])
def test_the_record_was_changed(mine, change):
    record = json.loads((mine / "abridged.json").read_text())
    record["adapter"] |= change
    (mine / "abridged.json").write_text(json.dumps(record))
    refused(mine, "does not match its sha256")


@pytest.mark.parametrize("missing", ["adapter", "base"])
def test_the_record_says_nothing(mine, missing):
    record = json.loads((mine / "abridged.json").read_text())
    (mine / "abridged.json").write_text(json.dumps({**record, missing: 3}))
    refused(mine, "does not say of which base the adapters are")
    (mine / "abridged.json").unlink()
    refused(mine, "abridged.json is missing")


def test_an_adapter_of_peft_is_never_applied(mine, checkpoint):
    (mine / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    with pytest.raises(AbridgedError, match="is of another adapter, which no digest covers: take it away"):
        load(mine)
    (mine / "adapter_config.json").rename(checkpoint / "adapter_config.json")
    with pytest.raises(AbridgedError, match="transformers would apply an adapter"):
        load(mine)


def rewrite(mine, change):
    """Other tensors under a digest that is right."""
    tensors = load_file(mine / "adapter.safetensors")
    change(tensors)
    save_file(tensors, mine / "adapter.safetensors", metadata={"format": "pt"})
    record = json.loads((mine / "abridged.json").read_text())
    numbers = record["adapter"]["rank"], record["adapter"]["alpha"]
    digest = adapter_digest(file_sha256(mine / "adapter.safetensors"), record["base"]["sha256"], *numbers)
    record["adapter"]["sha256"] = digest
    (mine / "abridged.json").write_text(json.dumps(record))


LAYER = "transformer.h.0.attn.c_attn"
CHANGES = {
    "NaN": (lambda t: t[f"{LAYER}.lora_A"].fill_(torch.nan), "lora_A is not finite"),
    "no B": (lambda t: t.pop(f"{LAYER}.lora_B"), f"the adapter of {LAYER} does not fit the model"),
    "sizes": (lambda t: t.update({f"{LAYER}.lora_A": torch.zeros(2, 7)}), "does not fit the model"),
    "no such layer": (lambda t: t.update({"h.lora_A": torch.zeros(2, 2)}), "the adapter of h does not fit the model"),
    "scales": (lambda t: t.update({f"{LAYER}.scales": torch.zeros(1)}), "scales does not fit the model"),
    "a matrix": (lambda t: t.update({"transformer.wpe.weight": torch.zeros(32, 32)}), "does not fit the model"),
    "nothing": (lambda t: t.clear(), "holds nothing for this model"),
    "a prompt": (lambda t: t.update(prompt_embeddings=torch.zeros(3, 8)), "its prompt does not fit the model"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit(name, mine):
    change, match = CHANGES[name]
    rewrite(mine, change)
    refused(mine, match, config=False)


PROMPTS = {
    "NaN": (lambda t: t["prompt_embeddings"].fill_(torch.nan), "prompt_embeddings is not finite"),
    "width": (lambda t: t.update(prompt_embeddings=torch.zeros(3, 31)), "its prompt does not fit the model"),
    "one vector": (lambda t: t.update(prompt_embeddings=torch.zeros(32)), "its prompt does not fit the model"),
    "no token": (lambda t: t.update(prompt_embeddings=torch.zeros(0, 32)), "its prompt does not fit the model"),
    "no room": (lambda t: t.update(prompt_embeddings=torch.zeros(32, 32)), "its prompt does not fit the model"),
    "a factor": (lambda t: t.update({f"{LAYER}.lora_A": torch.zeros(2, 32)}), "the adapter of .* does not fit"),
    "nothing": (lambda t: t.clear(), "holds nothing for this model"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_what_prompt_does_not_fit(name, prompted):
    change, match = PROMPTS[name]
    rewrite(prompted, change)
    refused(prompted, match, config=False)


def test_a_prompt_is_in_pefts_format_and_needs_no_peft(prompted, monkeypatch):
    (name, tensor), *rest = load_file(prompted / "adapter.safetensors").items()
    assert (name, tuple(tensor.shape), rest) == ("prompt_embeddings", (3, 32), [])
    assert json.loads((prompted / "abridged.json").read_text())["adapter"]["rank"] is None
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    model = AutoModelForCausalLM.from_pretrained(prompted)
    assert context_of(model.config) == 29
    with pytest.raises(AbridgedError, match="stored as both, or folded"):
        model.save_pretrained(prompted / "both")


def test_norms_alone_are_the_bases_own_and_need_no_peft(saved, tmp_path, monkeypatch):
    expected = written(saved, tmp_path / "mine", methods=[NORMS])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    model = load(tmp_path / "mine")
    assert torch.equal(logits(model), expected)
    assert all(tensor.ndim == 1 for tensor in load_file(tmp_path / "mine" / "adapter.safetensors").values())
    model.save_pretrained(tmp_path / "both")
    assert torch.allclose(logits(load(tmp_path / "both")), expected, atol=1e-2)


def test_what_is_not_finite_is_not_written(saved, tmp_path):
    model = adapted(saved, 1)
    model.get_submodule(LAYER).lora_B["default"].weight.data[0, 0] = torch.inf
    with pytest.raises(AbridgedError, match="what was trained is not finite"):
        save_adapter(model, tmp_path / "mine", saved, tmp_path / "mine", {})


def test_no_packed_model_is_written_with_them(saved, mine, tmp_path):
    with pytest.raises(AbridgedError, match="a packed model with adapters is stored as both, or folded"):
        load(mine).save_pretrained(tmp_path / "both")
    with pytest.raises(AbridgedError, match="holds adapters alone: name their base, or make a packed model of both"):
        export(mine, tmp_path / "out", "dense")


def test_without_peft_it_says_what_is_missing(mine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refused(mine, r'adapters need the peft package: pip install "abridged\[lora\]"', config=False)
