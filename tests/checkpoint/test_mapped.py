"""Packed weights stay in the files that are mapped, verified on all cores."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from abridged.checkpoint.files import RECORD, WEIGHTS, read_header
from abridged.checkpoint.load import load
from abridged.checkpoint.mapped import let_go
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from forgery import change_config

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what is mapped")


def mappings(file):
    """(begin, end, resident KB) of each."""
    found, text = [], Path("/proc/self/smaps").read_text()
    for line, rest in re.findall(r"^([0-9a-f]+-[0-9a-f]+ .*)\n((?:[A-Z].*\n)+)", text, re.MULTILINE):
        if line.endswith(str(file)):
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            found.append((begin, end, int(re.search(r"^Rss:\s+(\d+)", rest, re.MULTILINE)[1])))
    return found


def test_codes_stay_in_the_file(checkpoint):
    modules = packed_modules(load(checkpoint)).values()
    places = mappings(checkpoint / WEIGHTS)
    for module in modules:
        assert any(begin <= module.codes.data_ptr() < end for begin, end, _ in places)


def test_pages_that_nobody_reads_are_given_back_and_can_be_read_again(tmp_path):
    tensors = {"kept": torch.arange(1 << 20, dtype=torch.int32), "gone": torch.arange(1 << 20, dtype=torch.int32)}
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in tensors}
    for name, tensor in found.items():
        assert torch.equal(tensor, tensors[name])
    before = sum(resident for _, _, resident in mappings(tmp_path / WEIGHTS))
    let_go([read_header(tmp_path / WEIGHTS)["gone"]])
    after = sum(resident for _, _, resident in mappings(tmp_path / WEIGHTS))
    assert before - after > 4000
    assert after > 4000
    assert torch.equal(found["gone"], tensors["gone"])


def test_all_cores_find_what_one_finds(checkpoint, monkeypatch):
    monkeypatch.setattr("abridged.core.parallel.MUCH", 0)
    load(checkpoint)
    (checkpoint / RECORD).unlink()
    data = bytearray((checkpoint / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (checkpoint / WEIGHTS).write_bytes(data)
    with pytest.raises(AbridgedError, match="do not match their sha256 in quantization_config"):
        load(checkpoint)


@pytest.mark.parametrize("version", [3, 4])
def test_a_digest_of_one_piece_is_read_as_before(checkpoint, version):
    change_config(checkpoint, lambda config: config["quantization_config"].update(version=version))
    load(checkpoint)
    data = bytearray((checkpoint / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (checkpoint / WEIGHTS).write_bytes(data)
    with pytest.raises(AbridgedError, match="do not match their sha256"):
        load(checkpoint)
