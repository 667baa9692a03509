"""A checkpoint of any kind, in a process that knows nothing of abridged: an error, never other numbers."""

import pytest
import torch
from safetensors.torch import load_file

import kinds
from abridged.checkpoint.load import load
from checkpoint.test_hf import run_python


@pytest.fixture(scope="module")
def saved(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {name: kinds.write(teacher, name, folder / name) for name in kinds.KINDS}


@torch.no_grad()
def test_every_kind_loads_as_it_was_saved(saved, teacher, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    for name, directory in saved.items():
        expected = kinds.student(teacher, name)(kinds.IDS).logits
        torch.testing.assert_close(load(directory)(kinds.IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_every_kind_fails_loudly_in_a_process_without_abridged(saved):
    code = """
import sys
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
assert "abridged" not in sys.modules
for directory in sys.argv[1:]:
    for kind in (AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification):
        try:
            kind.from_pretrained(directory)
            print("loaded", kind.__name__, directory)
        except RuntimeError as error:
            assert "size" in str(error), error
"""
    assert run_python(code, *map(str, saved.values())) == ""


def test_a_guard_takes_no_room_and_stands_only_where_no_codes_do(saved):
    guarded = set()
    for name, directory in saved.items():
        tensors = load_file(directory / "model.safetensors")
        if empty := [tensor for tensor in tensors if not tensors[tensor].numel()]:
            guarded.add(name)
            assert f"abridged.{empty[0]}" in tensors
    alone = {"activations of attention alone", "pruned", "blocks removed alone"}
    assert guarded == {name for name in kinds.KINDS if name.startswith("factored")} | alone
