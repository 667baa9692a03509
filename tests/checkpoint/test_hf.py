"""transformers loads, saves and refuses packed checkpoints by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModel, AutoModelForCausalLM

import abridged
from abridged.checkpoint.files import read_header
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import packed_modules
from students import IDS, logits, quantized_student

SETTINGS = {
    "1 bit": {"weights": {"bits": 1}, "embeddings": {"bits": 1}},
    "2 bits": {},
    "2 bits base3": {"weights": {"packing": "base3"}, "embeddings": {"packing": "base3"}},
    "2 bits balanced, rows": {"weights": {"quantizer": "paretoq", "granularity": "per_channel"}},
    "4 bits, groups, FP16 scales": {
        "weights": {"bits": 4, "granularity": "per_group", "group_size": 16, "scale_dtype": "float16"},
        "embeddings": {"bits": 4, "granularity": "per_group", "group_size": 8},
    },
    "8 bits": {"weights": {"bits": 8}, "embeddings": {"bits": 8}},
    "5 bits, 3 for embeddings": {"weights": {"bits": 5}, "embeddings": {"bits": 3}},
    "zero points": {
        "weights": {"bits": 3, "quantizer": "minmax", "symmetric": False, "granularity": "per_group", "group_size": 16},
        "embeddings": {"bits": 6, "quantizer": "lsq", "symmetric": False, "scale_dtype": "float16"},
    },
    "zero points, 2 and 8 bits": {
        "weights": {"bits": 2, "quantizer": "lsq", "symmetric": False, "initialization": "weighted"},
        "embeddings": {"bits": 8, "quantizer": "minmax", "symmetric": False},
        "gptq": True,
    },
    "weights alone": {"embeddings": {"bits": None}, "activations": {"bits": None}},
    "embeddings alone, per token": {"weights": {"bits": None}, "activations": {"quantizer": "dynamic"}},
    "FP16 rest": {"unquantized": "float16"},
}


def run_python(code: str, *arguments: str) -> str:
    """What a fresh process prints."""
    env = {**os.environ, "PYTHONPATH": str(Path(abridged.__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def case(request, tmp_path_factory):
    student = quantized_student(**SETTINGS[request.param])
    directory = tmp_path_factory.mktemp("case")
    pack_model(student).save_pretrained(directory)
    return student, directory


def test_logits_of_the_loaded_model_are_the_students(case):
    student, directory = case
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert not loaded.training
    assert (logits(loaded) - logits(student)).abs().max() <= 1e-4


def test_stored_levels_times_scales_are_the_training_weights_exactly(case):
    student, directory = case
    for path, packed in packed_modules(AutoModelForCausalLM.from_pretrained(directory)).items():
        source = student.get_submodule(path).source
        assert torch.equal(packed.dequantized(), source())
        assert torch.equal(packed.packed.levels(), source.stored().levels)


def test_load_save_load_is_byte_identical(case, tmp_path):
    _, directory = case
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(AutoModelForCausalLM.from_pretrained(directory)))


def test_tied_matrix_is_shared_and_written_once(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert model.lm_head.codes is model.transformer.wte.codes
    assert model.lm_head.scales is model.transformer.wte.scales
    names = read_header(saved / "model.safetensors")
    assert [name for name in names if name.startswith("lm_head")] == [
        "lm_head.input_quantizer.scale",
        "lm_head.input_quantizer.zero_point",
    ]


def test_weights_stay_packed_in_memory(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    logits(model)
    in_memory = sum(
        tensor.nbytes for tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.values()
    )
    assert in_memory <= (saved / "model.safetensors").stat().st_size
    assert not any(
        parameter.requires_grad for module in packed_modules(model).values() for parameter in module.parameters()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_loads_and_keeps_scales_in_fp32(student, saved, dtype):
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    assert model.transformer.wpe.weight.dtype == dtype
    assert {module.scales.dtype for module in packed_modules(model).values()} == {torch.float32}
    assert model.lm_head.input_quantizer.scale.dtype == torch.float32
    output = logits(model)
    assert output.dtype == dtype
    assert (output.float() - logits(student)).abs().max() < 0.05


def test_casting_a_loaded_model_keeps_scales(student, saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    scales = {path: module.scales.clone() for path, module in packed_modules(model).items()}
    model.to(torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    for path, module in packed_modules(model).items():
        assert torch.equal(module.scales, scales[path])
    assert model.lm_head.scales is model.transformer.wte.scales


def test_sharded_save_loads_the_same(student, tmp_path):
    save_checkpoint(student, tmp_path / "out", None, {}, max_shard_size=4000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(pack_model(student)))


def test_low_memory_load_with_a_device_map(student, saved):
    model = AutoModelForCausalLM.from_pretrained(saved, device_map={"": "cpu"}, low_cpu_mem_usage=True)
    assert (logits(model) - logits(student)).abs().max() <= 1e-4


def test_base_model_loads_alone(student, saved):
    base = AutoModel.from_pretrained(saved)
    with torch.no_grad():
        assert torch.equal(base(IDS)[0], pack_model(student).transformer(IDS)[0])


def test_the_future_does_not_leak_and_the_cache_agrees(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 128
    with torch.no_grad():
        whole, other = model(IDS).logits, model(changed).logits
        past = model(IDS[:, :-1], use_cache=True).past_key_values
        last = model(IDS[:, -1:], past_key_values=past).logits
    assert torch.equal(whole[:, :-1], other[:, :-1])
    assert (last[:, 0] - whole[:, -1]).abs().max() < 1e-4


def test_generates(saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert model.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 20)


def test_packing_leaves_the_student_as_it_was(student):
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    packed = pack_model(student)
    packed.transformer.ln_f.weight.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert any(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    "order", ["import abridged, transformers", "import transformers, transformers.quantizers.auto, abridged"]
)
def test_either_import_order_registers(saved, order):
    code = f"""
{order}
model = transformers.AutoModelForCausalLM.from_pretrained({str(saved)!r})
print(type(model.lm_head).__name__)
"""
    assert run_python(code).split()[-1] == "PackedLinear"


def test_import_alone_loads_neither_torch_nor_transformers():
    code = "import sys, abridged; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert run_python(code) == "[]\n"


def test_a_process_without_abridged_gets_an_error_at_every_width(tmp_path):
    directories = []
    for name, settings in SETTINGS.items():
        if "alone" not in name:
            directories.append(tmp_path / name)
            pack_model(quantized_student(**settings)).save_pretrained(directories[-1])
    code = """
import sys
from transformers import AutoModelForCausalLM
assert "abridged" not in sys.modules
for directory in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(directory)
        print("loaded", directory)
    except RuntimeError as error:
        print("refused")
"""
    assert run_python(code, *map(str, directories)).splitlines() == ["refused"] * len(directories)


def test_push_to_hub(saved, tmp_path, monkeypatch):
    uploaded = {}

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            with operation.as_file() as file:
                uploaded[operation.path_in_repo] = file.read()

    def no_card(*args, **kwargs):
        raise EntryNotFoundError("no card there")

    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_card)
    monkeypatch.setattr(huggingface_hub.ModelCard, "validate", lambda self, **kwargs: None)
    AutoModelForCausalLM.from_pretrained(saved).push_to_hub("somebody/small")
    assert uploaded["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    for name, data in uploaded.items():
        (tmp_path / name).write_bytes(data)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "abridged"
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(AutoModelForCausalLM.from_pretrained(saved))
    )
