"""Models by name and by path, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import abridged
from abridged.core.errors import AbridgedError
from abridged.core.names import public_name
from abridged.models.load import load_any, load_base, load_dense, load_masked, load_tokenizer, weights_hash
from abridged.training.modes import set_dropout


@pytest.fixture
def changed(teacher, tmp_path):
    """changed(function of the tensors) -> a directory with the teacher's weights changed."""

    def change(function):
        directory = shutil.copytree(teacher, tmp_path / "changed")
        tensors = load_file(directory / "model.safetensors")
        function(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return change


def test_a_directory_is_loaded_in_fp32_for_evaluation(teacher):
    model = load_dense(teacher)
    assert model.dtype == torch.float32
    assert not model.training
    assert load_tokenizer(teacher, model).decode(load_tokenizer(teacher)("ab cd")["input_ids"]) == "ab cd"
    assert weights_hash(load_any(teacher)) == weights_hash(model)


def test_half_precision_weights_are_loaded_in_fp32(changed):
    directory = changed(lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    assert {p.dtype for p in load_dense(directory).parameters()} == {torch.float32}


def test_the_hash_sees_every_weight(teacher):
    model = load_dense(teacher)
    before = weights_hash(model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[-1] += 1e-6
    assert weights_hash(model) != before


def test_weights_that_are_missing(changed):
    with pytest.raises(AbridgedError, match="lacks the weights of transformer.h.1.mlp.c_fc.weight"):
        load_dense(changed(lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight")))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(changed, value):
    with pytest.raises(AbridgedError, match="not finite, in transformer.h.0.ln_1.weight"):
        load_dense(changed(lambda tensors: tensors["transformer.h.0.ln_1.weight"].fill_(value)))


def test_a_file_that_is_cut_short(teacher, tmp_path):
    directory = shutil.copytree(teacher, tmp_path / "cut")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AbridgedError, match="cannot load the model") as error:
        load_dense(directory)
    assert "\n" not in str(error.value)


def test_a_compressed_model_is_no_teacher(teacher, tmp_path):
    directory = shutil.copytree(teacher, tmp_path / "compressed")
    config = json.loads((directory / "config.json").read_text())
    quantization = {"quant_method": "abridged", "version": 1, "modules": {}}
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    with pytest.raises(AbridgedError, match="is compressed already"):
        load_dense(directory)


def test_dropout_everywhere(teacher):
    model = load_dense(teacher)
    set_dropout(model, 0.25)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert model.config.resid_pdrop == 0.1


def test_public_names_have_no_folders(teacher):
    assert public_name(teacher) == "teacher"
    assert public_name("someone/model") == "someone/model"
    assert public_name("~/private/model") == "model"


@pytest.mark.parametrize("load", [load_any, load_base, load_masked, load_tokenizer, abridged.load])
@pytest.mark.parametrize("form", ["{}", "./{}", "{}/"])
def test_a_mistyped_directory_is_told_its_nearest(load, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student-small").mkdir()
    told = r"(no such file or directory|does not exist); did you mean student-small"
    with pytest.raises(AbridgedError, match=told) as error:
        load(form.format("studnet-small"))
    assert "\n" not in str(error.value)


def test_what_is_like_nothing_here_is_only_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AbridgedError, match="there is no such file or directory, and the hub does not give it either"):
        load_any("quite-another")
