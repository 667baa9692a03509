"""The folder for a browser: what is in it, where its engine is from, what is refused. `test_web_page` runs it."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from types import SimpleNamespace

import gguf
import pytest
import torch
from torch.nn.functional import linear, normalize
from transformers import BertConfig, BertForSequenceClassification, BertModel, T5Config, T5ForConditionalGeneration

from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.exporters.gguf_blocks import BLOCK_TYPES
from abridged.exporters.web import site
from abridged.exporters.web.npm import Package
from abridged.models.load import load_tokenizer
from abridged.storage.code_books import CODE_BOOKS
from students import quantized_student

RECORD = {"recipe": {"name": "t"}, "teacher": "t", "seed": 0}


@pytest.fixture
def engine(monkeypatch):
    """An engine whose files hold their names."""
    found = SimpleNamespace(files=lambda names: {name: name.encode() for name in names})
    monkeypatch.setattr(site, "WLLAMA", found)


@pytest.fixture
def small(tmp_path):
    tokenizer = load_tokenizer("bundled")
    model = quantized_student(weights={"bits": 2, "scale_dtype": "float16"}, embeddings={"bits": None})
    model.resize_token_embeddings(len(tokenizer))
    save_checkpoint(model, tmp_path / "small", tokenizer, RECORD)
    return tmp_path / "small"


def described(folder):
    return json.loads((folder / "site.json").read_text())


def unpacked(folder, name):
    return gzip.decompress((folder / name).read_bytes())


def tensors(folder, tmp_path):
    (tmp_path / "read.gguf").write_bytes(unpacked(folder, described(folder)["model"]))
    return {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "read.gguf").tensors}


def test_a_small_model_has_one_thread_and_weights_in_full(engine, small, tmp_path):
    account = export(small, tmp_path / "site", format="web")
    found, folder = described(tmp_path / "site"), tmp_path / "site"
    assert (found["kind"], found["threads"], found["context"]) == ("write", 1, 32)
    assert unpacked(folder, found["single"]) == b"esm/single-thread/wllama.wasm"
    assert "several" not in found
    assert found["bytes"] == len(unpacked(folder, found["model"]))
    assert found["sizes"][found["model"]] == (folder / found["model"]).stat().st_size
    assert account["file_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert {tensor.tensor_type.name for tensor in tensors(folder, tmp_path).values()} == {"F32"}
    assert (folder / "wllama-LICENSE.txt").read_bytes() == b"LICENCE"
    assert "ggml authors" in (folder / "llama.cpp-LICENSE.txt").read_text()


def test_another_has_its_codes_and_both_engines(engine, small, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "_IN_FULL", 0)
    export(small, tmp_path / "site", format="web")
    found, folder = described(tmp_path / "site"), tmp_path / "site"
    assert found["threads"] > 1
    assert unpacked(folder, found["several"]) == b"esm/multi-thread/wllama.wasm"
    assert {tensor.tensor_type.name for tensor in tensors(folder, tmp_path).values()} == {"F32", "Q4_0"}


def test_the_same_model_gives_the_same_names(engine, small, tmp_path):
    for output in ("one", "two"):
        export(small, tmp_path / output, format="web")
    assert described(tmp_path / "one") == described(tmp_path / "two")


def test_types_hold_every_level():
    room = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}
    for book, kind in site._TYPES.items():
        least, most = room[kind.name]
        assert least <= CODE_BOOKS[book][0] <= CODE_BOOKS[book][-1] <= most
    assert set(BLOCK_TYPES) - set(site._TYPES) == {book for book in BLOCK_TYPES if CODE_BOOKS[book][0] == 0}


def test_nothing_in_the_folder_comes_from_elsewhere(engine, small, tmp_path):
    export(small, tmp_path / "site", format="web")
    for name in ("index.html", "page.js", "engine.js", "service-worker.js", "page.css"):
        assert not re.search(r"https?:", (tmp_path / "site" / name).read_text()), name


def test_a_name_is_no_markup(engine, small, tmp_path):
    (tmp_path / "<b>&").symlink_to(small)
    export(tmp_path / "<b>&", tmp_path / "site", format="web")
    page = (tmp_path / "site" / "index.html").read_text()
    assert "<title>&lt;b&gt;&amp;</title>" in page
    assert "<b>" not in page


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_of_a_classifier_can_be_had_from_their_direction(bias):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=8, num_labels=3, **sizes)).eval()
    model.classifier.bias.data.normal_() if bias else setattr(model.classifier, "bias", None)
    hidden = torch.randn(5, 32)
    outputs = linear(hidden, model.classifier.weight, model.classifier.bias)
    site._add_scale(model)
    directions = normalize(model.classifier(hidden), dim=-1)
    assert directions.shape == (5, 32)
    assert torch.allclose(directions[:, :3] / directions[:, 3:4], outputs, atol=1e-5)
    assert model.config.num_labels == 32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda sizes: T5ForConditionalGeneration(T5Config(**sizes)), ["does neither", "--format gguf"]),
        (lambda sizes: BertModel(BertConfig(**sizes)), ["does neither", "--format onnx"]),
    ],
)
def test_what_the_page_has_no_use_for_is_refused(make, words, engine, tmp_path):
    make({"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}).save_pretrained(
        tmp_path / "model"
    )
    load_tokenizer("bundled").save_pretrained(tmp_path / "model")
    with pytest.raises(AbridgedError) as refused:
        export(tmp_path / "model", tmp_path / "site", format="web")
    assert all(word in str(refused.value) for word in words)
    assert not (tmp_path / "site").exists()


def test_what_the_engine_does_not_run_is_refused_with_what_would(engine, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaForSequenceClassification(RobertaConfig(**sizes)).save_pretrained(tmp_path / "model")
    load_tokenizer("bundled").save_pretrained(tmp_path / "model")
    with pytest.raises(AbridgedError, match="not models of type roberta; onnxruntime.*--format onnx"):
        export(tmp_path / "model", tmp_path / "site", format="web")
    assert not (tmp_path / "site").exists()


def test_what_is_too_large_for_the_engine_is_refused(engine, small, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "_MOST", 1000)
    with pytest.raises(AbridgedError, match="GB as GGUF.*--format gguf"):
        export(small, tmp_path / "site", format="web")
    assert not (tmp_path / "site").exists()


# Packages of npm.


def archive(content=b"the engine"):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        entry = tarfile.TarInfo("package/esm/engine.js")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def integrity(content):
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A place for what npm fetches, and npm itself, which says what it was asked for."""
    monkeypatch.setenv("ABRIDGED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "npm"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncp {tmp_path}/remote.tgz ./the-engine-1.2.3.tgz\n')
    program.chmod(0o755)
    (tmp_path / "remote.tgz").write_bytes(archive())
    return SimpleNamespace(program=program, remote=tmp_path / "remote.tgz", asked=tmp_path / "asked")


def package(content=None):
    return Package("@the/engine", "1.2.3", integrity(archive() if content is None else content))


def test_a_package_is_fetched_once(npm, monkeypatch):
    content = archive()
    npm.remote.write_bytes(content)
    assert package(content).files(["esm/engine.js"]) == {"esm/engine.js": b"the engine"}
    assert npm.asked.read_text() == "pack --silent --ignore-scripts @the/engine@1.2.3\n"
    monkeypatch.setenv("PATH", "")
    assert package(content).files(["esm/engine.js"]) == {"esm/engine.js": b"the engine"}


def test_a_damaged_archive_is_fetched_anew(npm, tmp_path):
    content = npm.remote.read_bytes()
    package(content).files([])
    kept = tmp_path / "cache" / "npm" / "the-engine-1.2.3.tgz"
    kept.write_bytes(content[:-3])
    assert package(content).files(["esm/engine.js"]) == {"esm/engine.js": b"the engine"}
    assert kept.read_bytes() == content


def test_another_archive_is_refused(npm, tmp_path):
    content = npm.remote.read_bytes()
    npm.remote.write_bytes(archive(b"another"))
    with pytest.raises(AbridgedError, match="its digest differs"):
        package(content).files([])
    assert not (tmp_path / "cache" / "npm" / "the-engine-1.2.3.tgz").exists()


def test_npm_that_cannot_is_said(npm, monkeypatch):
    npm.program.write_text("#!/bin/sh\necho the network is down >&2\nexit 1\n")
    with pytest.raises(AbridgedError, match=r"the network is down.*put its archive at .*the-engine-1\.2\.3\.tgz"):
        package().files([])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AbridgedError, match=r"there is no npm.*install Node\.js, or put"):
        package().files([])
