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
from abridged.methods.lora import Lora
from students import IDS, logits

pytest.importorskip("peft")


def adapted(base, seed, **settings):
    """The base, loaded anew, with adapters as if they had been trained."""
    model = load(base)
    attached = Lora.model_validate({"rank": 2, **settings}).build(model, families.view(model), lambda model: None)
    torch.manual_seed(seed)
    for group in attached.parameter_groups().values():
        for parameter in group:
            parameter.requires_grad_(True).data = parameter.data + 0.2 * torch.randn_like(parameter)
    attached.finish()
    return model


def written(base, directory, seed=1, **settings):
    """A directory of adapters, and what base and adapters answer."""
    model = adapted(base, seed, **settings)
    for parameter in model.parameters():  # as a stage leaves them whose weights are frozen
        parameter.requires_grad_(parameter.requires_grad and (settings.get("norms", False) or parameter.ndim > 1))
    save_adapter(model, directory, base, directory, {"recipe": {"name": "lora"}})
    return logits(model.eval())


@pytest.fixture
def mine(checkpoint, tmp_path):
    """Adapters beside a packed model that may be damaged."""
    written(checkpoint, tmp_path / "mine")
    return tmp_path / "mine"


def refused(directory, match, config=True):
    """By every way in; where the tensors themselves are wrong, the config still opens."""
    for way in (load, AutoModelForCausalLM.from_pretrained, *([AutoConfig.from_pretrained] if config else [])):
        with pytest.raises(AbridgedError, match=match):
            way(directory)


@pytest.mark.parametrize("norms", [False, True])
def test_they_open_with_their_base(norms, saved, tmp_path):
    expected = written(saved, tmp_path / "mine", norms=norms)
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


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 64}, {"sha256": None}])
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
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit(name, mine):
    change, match = CHANGES[name]
    rewrite(mine, change)
    refused(mine, match, config=False)


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
