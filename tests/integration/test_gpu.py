"""On a GPU a student trains, packs, loads, answers and writes with the CPU's numbers, but for rounding.

Without one, ABRIDGED_GPU_REHEARSAL=1 goes through all of this on the CPU: packed layers by Triton's interpreter, beside
the compiled kernels.
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

import abridged
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.hardware import describe, peak_memory
from abridged.evaluation.generation import generate
from abridged.models.load import load_tokenizer
from abridged.objectives.chunked import teacher_divergence
from abridged.runtime import backends
from abridged.runtime.modules import PackedLinear
from students import IDS, quantized_student

pytestmark = pytest.mark.gpu
GROUPS = {"granularity": "per_group", "group_size": 32, "scale_dtype": "float16"}
#: What is stored in which way.
STORED = {
    "binary": {"weights": {"bits": 1}, "embeddings": {"bits": 1}},
    "ternary, five in a byte": {"weights": {"bits": 2, "packing": "base3"}},
    "balanced": {"weights": {"bits": 2, "levels": "balanced", "granularity": "per_channel"}},
    "3 bits in groups with zero points, inputs as they are": {
        "weights": {"bits": 3, "quantizer": "lsq", "symmetric": False, **GROUPS},
        "activations": {"bits": None},
    },
}


@pytest.fixture(params=STORED, ids=str)
def packed(request, tmp_path):
    save_checkpoint(quantized_student(**STORED[request.param]), tmp_path / "packed", None, {})
    return load(tmp_path / "packed")


@pytest.fixture
def there(device, monkeypatch):
    """moves(model): a copy on the device, whose packed layers Triton's kernels serve."""

    def moves(model):
        if device == "cpu":
            monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
            monkeypatch.setattr(backends, "_interprets", lambda: True)
        moved = copy.deepcopy(model).to(device)
        for layer in moved.modules():
            if isinstance(layer, PackedLinear):
                x = torch.zeros(1, layer.columns, device=device)
                assert backends.choose(layer.packed, x, layer.rounding()).name == "triton"
        return moved

    return moves


def difference(ours, theirs):
    """What two logits differ by, of their size."""
    return float((ours.cpu().float() - theirs.float()).norm() / theirs.float().norm())


@torch.no_grad()
def test_a_packed_model_answers_as_on_the_cpu(packed, there, device):
    expected = packed(IDS).logits
    exact = copy.deepcopy(packed).to(torch.bfloat16)(IDS).logits
    moved = there(packed)
    logits = moved(IDS.to(device)).logits
    assert logits.device.type == device
    assert difference(logits, expected) < 0.01  # a rounding may move an activation to its next level
    halved = moved.to(torch.bfloat16)(IDS.to(device)).logits
    assert halved.dtype == torch.bfloat16
    assert difference(halved, expected) < max(0.02, 2 * difference(exact, expected))


@torch.no_grad()
def test_it_writes_as_on_the_cpu(there, device, tmp_path):
    save_checkpoint(quantized_student(), tmp_path / "packed", None, {})
    packed, start = load(tmp_path / "packed"), IDS[:1, :6]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = packed.generate(start, **settings)
    written = there(packed).generate(start.to(device), **settings)
    assert written.device.type == device
    assert torch.equal(written.cpu(), expected)


def test_gradients_go_through_a_packed_model(there, device, tmp_path):
    save_checkpoint(quantized_student(), tmp_path / "packed", None, {})
    packed = load(tmp_path / "packed")
    gradients = []
    for model, ids in ((packed, IDS), (there(packed), IDS.to(device))):
        model.transformer.h[0].ln_1.bias.requires_grad_(True)
        model(ids, labels=ids).loss.backward()
        gradients.append(model.transformer.h[0].ln_1.bias.grad)
    assert difference(gradients[1], gradients[0]) < 0.02


def test_a_student_on_the_device_packs_into_the_same_codes(device):
    student = quantized_student(weights={"bits": 2, "granularity": "per_channel"})
    here, moved = pack_model(copy.deepcopy(student)), pack_model(copy.deepcopy(student).to(device))
    for name, value in here.state_dict().items():
        assert torch.equal(value, moved.state_dict()[name].cpu()) or value.is_floating_point(), name


def test_soft_labels_and_their_gradients(device):
    """By chunks of rows, whose size the device sets."""
    losses = []
    for where in ("cpu", device):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(40, 16, generator=generator).to(where).requires_grad_(True)
        head, theirs = (torch.randn(300, 16, generator=generator).to(where) for _ in range(2))
        seen = torch.randn(40, 16, generator=generator).to(where)
        loss = teacher_divergence(hidden, head, None, (seen, theirs, None), torch.ones(40, device=where))
        loss.backward()
        losses.append((loss.detach().cpu(), hidden.grad.cpu()))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-6)


@pytest.mark.timeout(900)
def test_the_whole_way_from_a_teacher_to_text(device, teacher, text, recipe_file, tmp_path):
    """`abridged compress` here, and in a process that sees no GPU: the same numbers but for rounding."""
    recipe, outputs = recipe_file(steps=4), {"here": tmp_path / "here", "cpu": tmp_path / "cpu"}
    account = abridged.compress(teacher, recipe, text, outputs["here"])
    command = [sys.executable, "-m", "abridged", "compress", str(teacher), "--recipe", str(recipe)]
    command += ["--data", str(text), "--output", str(outputs["cpu"]), "--json"]
    done = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = json.loads(done.stdout)
    for who in ("teacher", "student"):
        ours, theirs = account["metrics"][who]["perplexity"], other["metrics"][who]["perplexity"]
        assert abs(ours / theirs - 1) < 0.02, who
    sizes = [inspect(output)["file_bytes"] for output in outputs.values()]
    assert sizes[0] == sizes[1]
    model = load(outputs["here"]).to(device)
    written = generate(model, load_tokenizer(outputs["here"]), "ab", max_new_tokens=4, temperature=0)
    assert "".join(written)
    assert written.tokens == 4


def test_hardware_says_what_it_is(device):
    if device == "cuda":
        torch.zeros(1 << 20, device=device)
        assert describe()["gpu"] == torch.cuda.get_device_name()
        assert peak_memory() == torch.cuda.max_memory_allocated() >= 1 << 22
    else:
        assert describe()["gpu"] is None
