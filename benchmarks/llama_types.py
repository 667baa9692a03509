"""What a model loses in llama.cpp's own types, beside the recipes without training: the ptq rows of recipes.py.

    python benchmarks/llama_types.py LIBRARY [--model bundled] [--data wikitext-2] [--types Q8_0 Q4_K_M Q3_K_M Q2_K]

LIBRARY is a libllama.so, such as the one in npm's @node-llama-cpp/linux-x64, or llama-cpp-python's. It quantises the
model's FP32 GGUF file by llama.cpp's own rules, without an importance matrix; the file is read back, and measured as a
recipe's student is on the validation text: in FP32, so that its products of inputs rounded to 8 bits are left out. A
row of benchmarks/results/llama_types.jsonl each, and one of the model itself; one that is there is skipped.
`tensor_bytes` are those of the tensors alone, without the vocabulary that the file has.
"""

import argparse
import ctypes
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from results import append, read

from abridged.core.names import public_name
from abridged.core.settings import TrainingSettings
from abridged.data.opening import open_data
from abridged.exporters.gguf import export_gguf
from abridged.models.load import load_model
from abridged.tasks import task_for

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


def measured(model: str | Path, data: str) -> dict[str, Any]:
    """A model on as much validation text as training looks at."""
    loaded, tokenizer = load_model(model)
    task = task_for(loaded, tokenizer, open_data(data, None, None))
    return json.loads(json.dumps(task.validation(loaded, TrainingSettings())()))


def contents(file: Path) -> dict[str, Any]:
    """What is in a GGUF file."""
    tensors = GGUFReader(file).tensors
    return {
        "file_bytes": file.stat().st_size,
        "tensor_bytes": sum(int(tensor.n_bytes) for tensor in tensors),
        "types": Counter(tensor.tensor_type.name for tensor in tensors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=[*TYPES])
    options = parser.parse_args()
    about = {"model": public_name(options.model), "task": "text"}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.gguf"
        export_gguf(options.model, whole, dtype="float32")
        for name in ("F32", *options.types):
            if read("llama_types", name=name, **about):
                continue
            file = whole
            if name != "F32":
                file = whole.with_name(f"{name}.gguf")
                quantise(ctypes.CDLL(options.library), whole, file, TYPES[name])
            found = {"validation": measured(file, options.data), **contents(file)}
            append("llama_types", {**found, "library": Path(options.library).name}, name=name, **about)
            print(f"{name}: {found['validation']['perplexity']:.3f}, {found['tensor_bytes']:,} bytes", flush=True)


if __name__ == "__main__":
    main()
