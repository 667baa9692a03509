"""Loading checkpoints that are damaged or hostile: one clear error each, never a crash or a hang."""

import contextlib
import os
import random
import shutil
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abridged.checkpoint.files import CONFIG, RECORD, WEIGHTS, is_compressed
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from forgery import change_tensors, edit, sign
from students import logits


def wte(config):
    return config["quantization_config"]["modules"]["transformer.wte"]


def test_load_is_from_pretrained_with_checks(saved, student):
    model = load(saved)
    assert not model.training
    assert torch.equal(logits(model), logits(student))
    assert is_compressed(saved)


@pytest.mark.parametrize("position", [3, 20, 900, -2000, -1])
def test_flipped_bits(checkpoint, position):
    data = bytearray((checkpoint / WEIGHTS).read_bytes())
    data[position] ^= 4
    (checkpoint / WEIGHTS).write_bytes(data)
    with pytest.raises(AbridgedError, match="model.safetensors"):
        load(checkpoint)


def test_a_flipped_bit_is_found_without_the_record_too(checkpoint):
    (checkpoint / RECORD).unlink()
    data = bytearray((checkpoint / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (checkpoint / WEIGHTS).write_bytes(data)
    with pytest.raises(AbridgedError, match="sha256"):
        load(checkpoint)


@pytest.mark.parametrize("length", [0, 7, 8, 100, 5000, -1])
def test_truncated(checkpoint, length):
    data = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(data[:length])
    with pytest.raises(AbridgedError, match="truncated|valid JSON"):
        load(checkpoint)


def test_longer_than_its_tensors(checkpoint):
    with (checkpoint / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(AbridgedError, match="truncated or damaged"):
        load(checkpoint)


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
def test_absurd_header_length(checkpoint, length):
    data = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
    with pytest.raises(AbridgedError, match="truncated"):
        load(checkpoint)


TENSORS = {
    "lack transformer.ln_f.bias": lambda t: t.pop("transformer.ln_f.bias"),
    "lack transformer.ln_f.bias and 1 more": lambda t: (
        t.pop("transformer.wte.weight"),
        t.pop("transformer.ln_f.bias"),
    ),
    "hold 'more'": lambda t: t.update(more=torch.zeros(3)),
    "ln_f.bias is F16 of": lambda t: t.update({"transformer.ln_f.bias": t["transformer.ln_f.bias"].half()}),
    "expected F32 of": lambda t: t.update({"transformer.ln_f.bias": torch.zeros(33)}),
    "wte.weight is I8": lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].view(torch.int8)}),
    "wte.weight is U8 of": lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"][:-1].clone()}),
    "codes that are not ternary": lambda t: t["transformer.wte.weight"].fill_(255),
    "scale is not finite": lambda t: t["transformer.wte.weight_scale"][3:4].fill_(float("inf")),
}


@pytest.mark.parametrize("message", TENSORS)
def test_wrong_tensors(checkpoint, message):
    change_tensors(checkpoint, TENSORS[message])
    with pytest.raises(AbridgedError, match=message):
        load(checkpoint)


CONFIGS = {
    "newer|format version 6": lambda c: c["quantization_config"].update(version=6),
    "positive integer": lambda c: c["quantization_config"].update(version="1"),
    "not a checkpoint of abridged": lambda c: c["quantization_config"].update(quant_method="gptq"),
    "modules must map": lambda c: c["quantization_config"].update(modules=[]),
    "wte: bits|are not of 3": lambda c: wte(c).update(bits=3),
    "less than": lambda c: wte(c).update(rows=1 << 40),
    "greater than": lambda c: wte(c).update(columns=-4),
    "scales do not divide": lambda c: wte(c).update(num_scales=7),
    "but stored differently": lambda c: wte(c).update(columns=64),
    "unknown code book": lambda c: wte(c).update(code_book="int7"),
    "are not of 2": lambda c: wte(c).update(packing="base3"),
    "Extra inputs": lambda c: wte(c).update(exec="rm"),
    "valid integer": lambda c: wte(c).update(rows="128"),
    "unknown kind": lambda c: wte(c).update(kind=["linear"]),
    "not a module's path": lambda c: c["quantization_config"]["modules"].update({"../up": wte(c)}),
    "has no module transformer.h.9": lambda c: c["quantization_config"]["modules"].update({"transformer.h.9": wte(c)}),
    "is no embedding": lambda c: c["quantization_config"]["modules"]["lm_head"].update(tied="transformer.ln_f"),
    "the weights lack lm_head.weight": lambda c: c["quantization_config"]["modules"]["lm_head"].pop("tied"),
    "makes it 256x32": lambda c: c.update(vocab_size=256),
    "n_layer is": lambda c: c.update(n_layer=10**9),
    "num_labels is": lambda c: c.update(num_labels=10**9),
    "lack|hold": lambda c: c.update(n_layer=3),
    "architectures": lambda c: c.update(architectures=["os"]),
    "cannot be loaded": lambda c: c.update(model_type="none of these"),
    "sha256": lambda c: c["quantization_config"].update(unquantized_dtype="float64"),
}


@pytest.mark.parametrize("message", CONFIGS)
def test_wrong_configuration(checkpoint, message):
    edit(checkpoint / CONFIG, CONFIGS[message])
    if message != "sha256":
        sign(checkpoint)
    with pytest.raises(AbridgedError, match=message if message != "sha256" else "unquantized_dtype"):
        load(checkpoint)


def test_a_changed_configuration_does_not_fit_the_digest(checkpoint):
    def swap(config):
        for path in ("transformer.wte", "lm_head"):
            config["quantization_config"]["modules"][path]["code_book"] = "quaternary"  # as many bits as ternary

    edit(checkpoint / CONFIG, swap)
    with pytest.raises(AbridgedError, match="do not match their sha256"):
        load(checkpoint)
    edit(checkpoint / CONFIG, lambda config: config["quantization_config"].pop("sha256"))
    with pytest.raises(AbridgedError, match="sha256 is missing"):
        load(checkpoint)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "9" * 10_000 + "}", "\ud800"]
)
def test_configuration_that_is_no_json_object(checkpoint, text):
    (checkpoint / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(AbridgedError, match=r"config\.json"):
        load(checkpoint)


@pytest.mark.parametrize("sha256", ["0" * 64, ""])
def test_sha256_of_the_record(checkpoint, sha256):
    edit(checkpoint / RECORD, lambda record: record["files"][WEIGHTS].update(sha256=sha256))
    with pytest.raises(AbridgedError, match="does not match its sha256 in abridged.json"):
        load(checkpoint)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, RECORD])
def test_symbolic_links_out_of_the_directory(checkpoint, tmp_path, name):
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AbridgedError, match="leads out of the directory"):
        load(checkpoint)


def test_the_hub_caches_links_are_followed(saved, student, tmp_path):
    model = tmp_path / "models--somebody--small"
    snapshot = model / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    shutil.copytree(saved, model / "blobs")
    for path in (model / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert torch.equal(logits(load(snapshot)), logits(student))


def test_no_directory_no_model_no_regular_file(tmp_path, checkpoint):
    for path, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "no config.json"),
        ("a\0b", "does not exist"),
    ):
        with pytest.raises(AbridgedError, match=message):
            load(path)
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(AbridgedError, match="holds no weights"):
        load(checkpoint)
    os.mkfifo(checkpoint / WEIGHTS)  # opening it would wait for ever
    with pytest.raises(AbridgedError, match="not a regular file"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../model.safetensors", "plain file name"),
        ("/etc/passwd", "not a safetensors file"),
        ("/etc/x.safetensors", "plain file name"),
        (7, "not a safetensors file"),
        ("model-9.safetensors", "is missing"),
    ],
)
def test_an_index_that_names_other_files(student, tmp_path, name, message):
    directory = tmp_path / "sharded"
    save_checkpoint(student, directory, None, {}, max_shard_size=6_000)
    assert torch.equal(logits(load(directory)), logits(student))
    index = directory / "model.safetensors.index.json"
    edit(index, lambda index: index["weight_map"].update({"transformer.ln_f.bias": name}))
    with pytest.raises(AbridgedError, match=message):
        load(directory)


STRANGE = [None, True, -1, 0, 3, 1 << 31, 1 << 40, 10**30, 1.5, float("nan"), "", "x", "../../up", [], {}, [[]]]


@st.composite
def mutations(draw):
    return (
        draw(st.sampled_from(["bytes", "cut", "header", "config", "spec", "value"])),
        draw(st.booleans()),
        draw(st.integers(0, 2**32)),
    )


def mutate(directory, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    weights, config = directory / WEIGHTS, directory / CONFIG
    if kind in ("bytes", "cut", "header"):
        data = bytearray(weights.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        if kind == "cut":
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(header if kind == "header" else len(data))] = rng.randrange(256)
        weights.write_bytes(data)
    elif kind == "value":
        data = bytearray(config.read_bytes())
        data[rng.randrange(len(data))] = rng.randrange(256)
        config.write_bytes(data)
    else:

        def change(data):
            node = data["quantization_config"] if kind == "spec" else data
            while True:
                key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
                if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.1:
                    break
                node = node[key]
            if rng.random() < 0.2 and isinstance(node, dict):
                del node[key]
            else:
                node[key] = rng.choice(STRANGE)

        edit(config, change)


@given(mutations())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_checkpoints_load_or_are_one_clear_error(saved, tmp_path, mutation):
    """Signed as a forger would or not: what loads is a model with valid codes, all else is an AbridgedError."""
    kind, signed, seed = mutation
    directory = tmp_path / "mutated"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(saved, directory)
    (directory / RECORD).unlink()
    mutate(directory, kind, seed)
    if signed:
        with contextlib.suppress(ValueError):  # the configuration is no JSON any more
            sign(directory)
    model, message = None, ""
    try:
        model = load(directory)
    except AbridgedError as error:
        message = str(error)
    if model is None:
        assert 0 < len(message) < 1000
        assert "\n" not in message
        return
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert sum(tensor.nbytes for tensor in model.parameters()) < 200_000
