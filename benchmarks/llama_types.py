"""What a model loses in llama.cpp's own types, beside the recipes without training: the ptq rows of recipes.py.

    python benchmarks/llama_types.py LIBRARY [--model bundled] [--data wikitext-2] [--types Q8_0 Q4_K_M Q3_K_M Q2_K]

LIBRARY is a libllama.so, such as the one in npm's @node-llama-cpp/linux-x64, or llama-cpp-python's. It quantises the
model's FP32 GGUF file by llama.cpp's own rules, without an importance matrix; the file is read back, and measured as
everything else is: in FP32, on the same text. So its products of inputs rounded to 8 bits are left out. A row of
benchmarks/results/llama_types.jsonl each; one that is there is skipped. `tensor_bytes` are those of the tensors alone,
without the vocabulary that the file has.
"""

import argparse
import ctypes
import json
import tempfile
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from results import append, read

from abridged.core.measurement import loss_percent
from abridged.core.names import public_name
from abridged.exporters.gguf import export_gguf
from abridged.pipeline import evaluate

#: What is asked for, and its number in llama.h (enum llama_ftype).
TYPES = {"Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10}


class Settings(ctypes.Structure):
    """llama_model_quantize_params: what is set here comes first, and the rest, which releases change, stays opaque."""

    _fields_ = (("threads", ctypes.c_int32), ("type", ctypes.c_int32), ("rest", ctypes.c_byte * 248))


def quantise(library: ctypes.CDLL, whole: Path, output: Path, kind: int) -> None:
    """Write a GGUF file in a type of llama.cpp's."""
    library.llama_model_quantize_default_params.restype = Settings
    settings = library.llama_model_quantize_default_params()
    settings.threads, settings.type = 1, kind
    if library.llama_model_quantize(str(whole).encode(), str(output).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp cannot write {output.name}")


def measured(file: Path, data: str, teacher: dict[str, Any]) -> dict[str, Any]:
    """What is in a GGUF file, and what it loses."""
    tensors = GGUFReader(file).tensors
    types = {kind: sum(t.tensor_type.name == kind for t in tensors) for kind in {t.tensor_type.name for t in tensors}}
    student = evaluate(file, data)
    return {
        "teacher": teacher,
        "student": json.loads(json.dumps(student)),
        "loss_percent": {key: round(value, 3) for key, value in loss_percent(teacher, student).items()},
        "file_bytes": file.stat().st_size,
        "tensor_bytes": sum(int(tensor.n_bytes) for tensor in tensors),
        "types": types,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=[*TYPES])
    options = parser.parse_args()
    about = {"model": public_name(options.model), "task": "text"}
    known = read("recipes", **about)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.gguf"
        teacher = known[0]["teacher"] if known else json.loads(json.dumps(evaluate(options.model, options.data)))
        for name in options.types:
            if read("llama_types", name=name, **about):
                continue
            if not whole.exists():
                export_gguf(options.model, whole, dtype="float32")
            output = whole.with_name(f"{name}.gguf")
            quantise(ctypes.CDLL(options.library), whole, output, TYPES[name])
            found = {**measured(output, options.data, teacher), "library": Path(options.library).name}
            append("llama_types", found, name=name, **about)
            print(f"{name}: {found['loss_percent']['perplexity']:.2f} % in {found['tensor_bytes']:,} bytes", flush=True)


if __name__ == "__main__":
    main()
