"""Sentences per second of a packed BERT-base on this CPU beside torch and onnxruntime, in one run.

    pip install onnx onnxscript onnxruntime      # for the rows of onnxruntime; left out where they are missing
    python benchmarks/encoders.py [--threads 2] [--length 128] [--rounds 5] [--memory-only] [--quick]

BERT-base's true shape with random weights, `xtc-1-1-8` without its training. A row of benchmarks/results/encoders.jsonl
for each kind of kernels.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import append, latest, quick_settings, speed_options
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.evaluation.speed import in_turns, memory
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.recipe import Recipe
from abridged.runtime.kernels import kernels
from runtime import QUICK

RECIPE = "xtc-1-1-8"
BATCHES = (1, 32)


#: Some kilobytes: what a first load costs, of whatever model.
TINY = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=100)


def build(folder: Path, config: BertConfig) -> Path:
    """A packed BERT of random weights."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    ids = torch.zeros(1, 8, dtype=torch.long)
    for method in Recipe.load(RECIPE, QUICK).stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(input_ids=ids))
        attached.finish()
    save_checkpoint(model, folder, None, {"recipe": {"name": RECIPE}, "teacher": "random weights", "seed": 0})
    return folder


def seconds(model: Any, ids: torch.Tensor) -> float:
    """Seconds in which a model labels ids (B, T)."""
    begun = time.perf_counter()
    with torch.inference_mode():
        model(input_ids=ids)
    return time.perf_counter() - begun


def onnx_models(
    where: Path, dense: Any, folder: Path, threads: int, length: int
) -> dict[str, Callable[[torch.Tensor], float]]:
    """onnxruntime in FP32, in dynamic int8, and on what `abridged export` makes; nothing where it is not installed."""
    try:
        import onnxruntime
        from onnx_int8 import dynamic_int8
    except ImportError:
        return {}
    plain, small = folder / "model.onnx", folder / "int8.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    ids = torch.zeros(2, length, dtype=torch.long)
    torch.onnx.export(
        dense,
        (ids,),
        str(plain),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes=({0: batch}, None, None, None, None, None)[:1],
        dynamo=True,
    )
    dynamic_int8(plain, small)
    export(where, folder / "ours.onnx", format="onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        f"onnxruntime {name}": onnxruntime.InferenceSession(str(path), options)
        for name, path in {"FP32": plain, "int8": small, "on our export": folder / "ours.onnx"}.items()
    }

    def measure(session: Any) -> Callable[[torch.Tensor], float]:
        def run(ids: torch.Tensor) -> float:
            begun = time.perf_counter()
            more = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
            given = {"input_ids": ids, **more}
            session.run(None, {put.name: given[put.name].numpy() for put in session.get_inputs()})
            taken = time.perf_counter() - begun
            time.sleep(0.3)  # its threads go on waiting for work, and would take it from whoever is next
            return taken

        return run

    return {name: measure(session) for name, session in sessions.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-only", action="store_true", help="measure memory anew, and keep the speeds there are")
    options = speed_options(parser, rounds=1)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = build(folder / "packed", BertConfig())
        held = {"file_bytes": inspect(where)["file_bytes"]}
        if not options.quick:
            held |= memory(where)
            held["tiny_resident_bytes"] = memory(build(folder / "tiny", TINY))["resident_bytes"]
        compiled = kernels()
        kind = {"kernels": compiled.path if compiled else "reference"}
        about = {"recipe": RECIPE, "model": "BERT-base", "settings": kind | quick_settings(options)}
        if options.memory_only:
            found = latest("encoders", options.results, **kind)["metrics"] | {"memory": held}
            return append("encoders", found, options.results, **about)
        packed = load(where)
        dense = dense_model(packed, torch.float32)
        models: dict[str, Any] = {
            "packed": packed,
            "packed, loaded in bf16": load(where).to(torch.bfloat16),
            "torch FP32": dense,
        }
        if not options.quick:
            from torch.ao.quantization import quantize_dynamic

            copied = dense_model(packed, torch.float32)
            models["torch bf16"] = dense_model(packed, torch.bfloat16)
            models["torch int8, dynamic"] = quantize_dynamic(copied, {nn.Linear}, dtype=torch.qint8)
        contestants: dict[str, Callable[[torch.Tensor], float]] = {
            key: (lambda ids, m=m: seconds(m, ids)) for key, m in models.items()
        }
        if not options.quick:
            copied = dense_model(packed, torch.float32)
            contestants |= onnx_models(where, copied, folder, options.threads, options.length)
        speeds = {}
        for size in BATCHES[:1] if options.quick else BATCHES:
            ids = torch.randint(1000, 30_000, (size, options.length), generator=torch.Generator().manual_seed(0))
            turns = in_turns(
                {key: lambda run=run, ids=ids: run(ids) for key, run in contestants.items()}, options.rounds
            )
            speeds[size] = {key: size / value for key, value in turns.items()}
            print(size, json.dumps({key: round(value, 1) for key, value in speeds[size].items()}), flush=True)
        result = {
            "threads": options.threads,
            "length": options.length,
            "sentences_per_second": speeds,
            "memory": held,
        }
    return append("encoders", result, **about)


if __name__ == "__main__":
    main()
