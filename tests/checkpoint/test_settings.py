"""What stands beside the weights, and decides as much: covered by digests, and nothing that is not is acted upon."""

import json
import shutil
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kinds
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.core.errors import AbridgedError
from abridged.core.names import TRUST
from abridged.evaluation.perplexity import perplexity
from abridged.exporters.dense import export_dense
from abridged.models.load import load_any, load_dense, load_tokenizer
from forgery import as_version, change_config, change_tensors, edit, sign


@pytest.fixture(scope="module")
def small(teacher, tmp_path_factory):
    """A checkpoint with a tokenizer, which no test may change."""
    return kinds.write(teacher, "quantised", tmp_path_factory.mktemp("small") / "small")


@pytest.fixture
def copied(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copied")


def refused_alike(directory, words):
    """By all that read a checkpoint."""
    for read in (load, AutoModelForCausalLM.from_pretrained, inspect):
        with pytest.raises(AbridgedError, match=words):
            read(directory)


SETTINGS = {
    "heads": ("config.json", lambda c: c.update(n_head=4)),
    "epsilon": ("config.json", lambda c: c.update(layer_norm_epsilon=0.1)),
    "activation": ("config.json", lambda c: c.update(activation_function="relu")),
    "class": ("config.json", lambda c: c.update(architectures=["GPT2Model"])),
    "another file": ("config.json", lambda c: c.update(configuration_files=["config.4.0.0.json"])),
    "end of text": ("generation_config.json", lambda c: c.update(eos_token_id=7)),
    "vocabulary": ("tokenizer.json", lambda c: c["model"]["vocab"].update({"a": 66, "b": 65})),
    "cleaning": ("tokenizer_config.json", lambda c: c.update(add_prefix_space=True)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_was_changed_is_refused_alike(copied, name):
    file, change = SETTINGS[name]
    shutil.copy(copied / "config.json", copied / "config.4.0.0.json")
    edit(copied / file, change)
    refused_alike(copied, f"{file} does not match its sha256" if name != "another file" else "config")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_file_that_is_gone_is_missed(copied, name):
    (copied / name).unlink()
    refused_alike(copied, f"{name} is missing")


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "additional_chat_templates/x.jinja"])
def test_a_file_that_was_added_is_refused_alike(copied, name):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("{}")
    refused_alike(copied, f"{name} is not of this checkpoint")


def test_what_a_plain_save_writes_anew_is_not_part_of_it(copied):
    edit(copied / "config.json", lambda config: config.update(transformers_version="4.0.0"))
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.pad_token, ends = tokenizer.eos_token, tokenizer.pad_token
    tokenizer(["a b", "a"], padding=True, truncation=True, max_length=2)
    tokenizer.pad_token = ends
    tokenizer.save_pretrained(copied)
    assert json.loads((copied / "tokenizer.json").read_text())["truncation"]
    assert "tokenizer.json" in inspect(copied)["verified"]
    assert load(copied) is not None


def test_saved_again_with_other_settings_it_loads(copied, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(copied)
    model.generation_config.max_new_tokens = 7
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["<more>"])
    for written in (model, tokenizer):
        written.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").generation_config.max_new_tokens == 7
    assert inspect(tmp_path / "again")["verified"] == ["weights", "config.json", "generation_config.json"]


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_load_as_before_with_a_note(copied, version, capsys):
    as_version(copied, version)
    edit(copied / "generation_config.json", lambda config: config.update(eos_token_id=7))
    assert load(copied).generation_config.eos_token_id == 7
    assert f"note: {copied} is of format version {version}" in capsys.readouterr().err
    assert inspect(copied)["verified"] == ["weights"]
    AutoModelForCausalLM.from_pretrained(copied).save_pretrained(copied)
    assert "config.json" in inspect(copied)["verified"]


def test_an_adapter_is_refused_alike(copied):
    (copied / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused_alike(copied, "adapter")


def test_an_adapter_beside_a_dense_model_is_refused(teacher, tmp_path):
    directory = shutil.copytree(teacher, tmp_path / "dense")
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere", "peft_type": "LORA"}')
    with pytest.raises(AbridgedError, match="holds an adapter"):
        load_dense(directory)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json"])
def test_links_out_of_a_directory_are_not_read(teacher, copied, tmp_path, name):
    dense = shutil.copytree(teacher, tmp_path / "dense")
    (tmp_path / "secret").write_text('{"secret": 1}')
    for directory in (copied, dense):
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(tmp_path / "secret")
    refused_alike(copied, "leads out of the directory")
    for read in (load_dense, load_tokenizer, lambda directory: export_dense(directory, tmp_path / "out")):
        with pytest.raises(AbridgedError, match="leads out of the directory"):
            read(dense)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def own_code(teacher, tmp_path):
    """A model whose config is a class that comes along, and says so when it is run."""
    directory = shutil.copytree(teacher, tmp_path / "own")
    edit(
        directory / "config.json",
        lambda config: config.update(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
    )
    (directory / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PretrainedConfig\nclass Mine(PretrainedConfig): model_type = 'mine'\n"
    )
    return directory


def test_code_of_a_model_is_run_for_nobody_who_did_not_ask(own_code, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.delenv(TRUST, raising=False)
    for read in (load_dense, load_any):
        with pytest.raises(AbridgedError, match="code of its own, which is run with --trust-remote-code only"):
            read(own_code)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(TRUST, "1")
    load_dense(own_code)
    assert (tmp_path / "ran").exists()


COUNTS = {
    "n_layer is": ("config.json", {"n_layer": (1 << 31) - 1}),
    "num_labels is": ("config.json", {"num_labels": 10**9}),
    "num_beams is": ("generation_config.json", {"num_beams": 100_000}),
}


@pytest.mark.parametrize("words", COUNTS)
@pytest.mark.parametrize("version", [2, 4])
def test_counts_that_no_model_has_are_refused_alike(copied, words, version):
    if version == 2:
        as_version(copied, 2)
    file, change = COUNTS[words]
    edit(copied / file, lambda config: config.update(change))
    sign(copied)
    begun = time.monotonic()
    refused_alike(copied, words)
    assert time.monotonic() - begun < 5


def test_counts_of_a_dense_model_are_refused_too(teacher, tmp_path):
    for number, (words, (file, change)) in enumerate(COUNTS.items()):
        directory = shutil.copytree(teacher, tmp_path / str(number))
        edit(directory / file, lambda config, change=change: config.update(change))
        with pytest.raises(AbridgedError, match=words):
            load_dense(directory)


NESTED = '{"a":' * 900 + "1" + "}" * 900
FILES = ["config.json", "generation_config.json", "tokenizer.json", "abridged.json"]


@pytest.mark.parametrize(
    ("file", "written"),
    [
        *((file, "[" * 100_000) for file in FILES),
        *((file, '{"a": ' + "9" * 5_000 + "}") for file in FILES),
        *((file, NESTED) for file in FILES[1:3]),  # of others no more is read than a few keys
    ],
    ids=lambda value: value[:16],
)
def test_deep_json_and_long_integers_are_one_sentence(copied, file, written):
    (copied / file).write_text(written)
    for read in (load, inspect):
        with pytest.raises(AbridgedError) as error:
            read(copied)
        assert "\n" not in str(error.value)


def test_many_empty_tensors_take_no_time(copied):
    change_tensors(copied, lambda t: t.update({f"transformer.h.{i}.ln_1.weight": torch.zeros(0) for i in range(8000)}))
    change_config(copied, lambda config: config.update(n_layer=8000))
    begun = time.monotonic()
    refused_alike(copied, "n_layer is 8000")
    change_config(copied, lambda config: config.update(n_layer=2))
    with pytest.raises(AbridgedError, match="which the model does not have"):
        load(copied)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", ["transformer.ln_f.bias", "transformer.wpe.weight", "lm_head.input_quantizer.scale"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_alike(copied, name, number):
    change_tensors(copied, lambda tensors: tensors[name].view(-1)[:1].fill_(number))
    refused_alike(copied, f"{name}.*is not finite|{name}: a scale is not finite")


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_not_finite_numbers_are_refused_whatever_the_version(copied, version):
    if version < 4:
        as_version(copied, version)
    change_tensors(copied, lambda tensors: tensors["transformer.ln_f.bias"][0].fill_(float("nan")))
    refused_alike(copied, "not finite")


@pytest.mark.parametrize(("scale", "zero"), [(0.0, 0), (-1.0, 0), (1.0, -(2**31)), (1.0, 300)])
def test_an_activation_quantiser_that_cannot_be_is_refused(copied, scale, zero):
    def change(tensors):
        name = next(name for name in sorted(tensors) if name.endswith("probabilities.scale"))
        tensors[name].fill_(scale)
        tensors[name.replace("scale", "zero_point")].fill_(zero)

    change_tensors(copied, change)
    for read in (load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(AbridgedError, match="zero point"):
            read(copied)


def test_answers_that_are_not_numbers_are_an_error(teacher):
    model = load_dense(teacher)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    tokenizer = load_tokenizer(teacher)
    with pytest.raises(AbridgedError, match="not numbers"):
        perplexity(model, tokenizer, "a few words that are read")
    from abridged.evaluation.generation import generate

    with pytest.raises(AbridgedError, match="not numbers"):
        "".join(generate(model, tokenizer, "a b", max_new_tokens=3))


def test_inspect_verifies_and_says_so(small, teacher, copied):
    assert {"weights", "config.json", "generation_config.json", "tokenizer.json"} <= set(inspect(small)["verified"])
    assert inspect(teacher)["verified"] is None
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    with pytest.raises(AbridgedError, match="sha256"):
        inspect(copied)
