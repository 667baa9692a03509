"""What this machine is, and what a process held."""

import multiprocessing
import sys

import pytest
import torch

from abridged.core.hardware import can_compile, describe, fast_bf16, give_back_memory, peak_memory, resident_memory


def held(queue):
    before = peak_memory()
    torch.zeros(30_000_000).add_(1)  # 120 MB, touched
    queue.put((before, peak_memory()))


def test_peak_memory_is_this_processes_own_and_stays():
    large = torch.ones(100_000_000)  # 400 MB that a new process does not hold
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=held, args=(queue,))
    process.start()
    before, after = queue.get(timeout=120)
    process.join()
    assert 100e6 < after - before < 200e6
    assert peak_memory() > large.nbytes + before / 2
    del large
    assert peak_memory() > 400e6


def test_the_description_is_json():
    import json

    assert json.loads(json.dumps(describe()))["cores"] >= 1
    assert fast_bf16() in (True, False)
    assert can_compile() in (True, False)


@pytest.mark.parametrize("feature", ["amx_tile", "avx512_bf16"])
def test_matmuls_run_in_bf16_where_the_processor_has_either_instruction(monkeypatch, feature):
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == feature, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fast_bf16()
    assert describe()["amx"] == (feature == "amx_tile")


def test_matmuls_stay_in_fp32_where_torch_does_not_tell(monkeypatch):
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not fast_bf16()


@pytest.mark.skipif(sys.platform != "linux", reason="another allocator's freed memory is its own affair")
def test_what_was_freed_between_what_is_kept_goes_back():
    pieces = [torch.ones(20_000) for _ in range(2_000)]  # 80 KB each: of the heap, not mapped one by one
    held = resident_memory()
    del pieces[:-1]
    give_back_memory()
    assert held - resident_memory() > 100e6
