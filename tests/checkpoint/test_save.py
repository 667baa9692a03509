"""Checkpoints are written whole or not at all."""

import hashlib
import json
import resource
import signal
import subprocess
from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from students import logits, quantized_student


def test_what_is_in_the_directory(student, tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    record = {
        "recipe": {"name": "quantgpt-2-2-8", "paper": "Tao et al."},
        "teacher": {"name": "somebody/teacher", "license": "mit"},
        "data": {"name": "wikitext-2", "license": "CC BY-SA 4.0"},
        "metrics": {"after": {"perplexity": 12.3456}},
        "seed": 7,
    }
    written = save_checkpoint(student, tmp_path / "small", tokenizer, record)
    directory = tmp_path / "small"
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert AutoTokenizer.from_pretrained(directory).get_vocab() == {"a": 0, "b": 1}
    stored = json.loads((directory / "abridged.json").read_text())
    assert stored == written
    assert {key: stored[key] for key in record} == record
    weights = (directory / "model.safetensors").read_bytes()
    assert stored["files"] == {
        "model.safetensors": {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    }
    assert stored["size"]["file_bytes"] == len(weights)
    card = (directory / "README.md").read_text()
    for told in ("somebody/teacher", 'license: "mit"', "wikitext-2", "quantgpt-2-2-8", "12.35", "from_pretrained"):
        assert told in card


def test_an_existing_directory_keeps_other_files_and_loses_stale_shards(student, tmp_path):
    save_checkpoint(student, tmp_path / "out", None, {}, max_shard_size=6_000)
    (tmp_path / "out" / "metrics.jsonl").write_text("{}")
    save_checkpoint(student, tmp_path / "out", None, {})
    assert (tmp_path / "out" / "metrics.jsonl").exists()
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    assert torch.equal(logits(load(tmp_path / "out")), logits(student))


@contextmanager
def no_room():
    """No file may grow beyond 8 KB, as if the quota were used up; pytest's own output too, so it must be over soon."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_quota_used_up(student, tmp_path):
    with pytest.raises(AbridgedError, match=r"cannot write .*out: .*(large|space)"), no_room():
        save_checkpoint(student, tmp_path / "out", None, {})
    assert list(tmp_path.iterdir()) == []


def test_disk_full(student, tmp_path):
    """On a file system of 16 KB, where we may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(AbridgedError, match=r"cannot write .*out: .*No space"):
            save_checkpoint(student, disk / "out", None, {})
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_failed_save_leaves_the_old_checkpoint(student, tmp_path):
    save_checkpoint(student, tmp_path / "out", None, {"seed": 1})
    with pytest.raises(AbridgedError, match="cannot write"), no_room():
        save_checkpoint(student, tmp_path / "out", None, {"seed": 2})
    assert json.loads((tmp_path / "out" / "abridged.json").read_text())["seed"] == 1
    assert torch.equal(logits(load(tmp_path / "out")), logits(student))


def test_a_place_that_is_no_directory(student, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AbridgedError, match="cannot write"):
        save_checkpoint(student, tmp_path / "file" / "out", None, {})


def test_nothing_quantised_and_weights_that_are_not_finite():
    with pytest.raises(AbridgedError, match="nothing in this model is compressed"):
        pack_model(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16, n_positions=8)))
    student = quantized_student()
    student.transformer.h[0].mlp.c_fc.source.weight.data[0, 0] = float("nan")
    with pytest.raises(AbridgedError, match="c_fc are not all finite"):
        pack_model(student)
