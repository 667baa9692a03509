"""Memory and speed of pruning a LLaMA of the 7B shape with masks alone, by layers, and what all 32 would take.

    python benchmarks/pruning_memory.py [--layers 1 2] [--context 256] [--steps 2]

Each row is the real command, `abridged compress --recipe faster-vtrans-lora`, in a process of its own on random
weights of LLaMA-2-7B's sizes with so many layers. What a layer adds is the difference of two of them; with it the row
in benchmarks/results/pruning_memory.jsonl says what 32 layers come to on paper. GB = 2^30 bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from results import append
from transformers import LlamaConfig, LlamaForCausalLM

from abridged.data.text import load_text
from abridged.models.load import load_tokenizer
from abridged.training.workspace import METRICS

RECIPE = "faster-vtrans-lora"
LAYERS, MACHINE = 32, 24 * 2**30


def run(options: argparse.Namespace, layers: int, folder: Path) -> dict[str, Any]:
    """What `abridged compress` held, and the tokens a second of its last logged step with masks."""
    teacher, student = folder / "teacher", folder / "student"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, max_position_embeddings=4096, dtype="float32"))
    parameters = sum(p.numel() for p in model.parameters())
    per_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    model.save_pretrained(teacher)
    load_tokenizer("bundled").save_pretrained(teacher)
    del model
    (folder / "text.txt").write_text(load_text("wikitext-2").train[:400_000])
    settings = {
        "steps": options.steps, "batch_size": 1, "context": options.context, "data_share": 1, "compile": "no",
        "evaluate_tokens": options.context, "evaluate_every": 1000, "save_every": 1000,
    }  # fmt: skip
    command = [sys.executable, "-m", "abridged", "compress", str(teacher), "--recipe", RECIPE]
    command += ["--data", str(folder / "text.txt"), "--output", str(student), "--overwrite", "--json"]
    command += [word for key, value in settings.items() for word in ("--set", f"stages.*.training.{key}={value}")]
    record = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    steps = [line for text in (student / METRICS).read_text().splitlines() if (line := json.loads(text))["stage"] == 0]
    speeds = [line["tokens_per_second"] for line in steps if line["event"] == "train"]
    return {
        "parameters": parameters,
        "layer_parameters": per_layer,
        "peak_bytes": record["peak_memory_bytes"],
        "tokens_per_second": speeds[-1],
    }


def on_paper(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """All layers, from what one adds: as measured, and where teacher and student share frozen weights in bf16."""
    few, many = min(rows), max(rows)
    added = (rows[many]["peak_bytes"] - rows[few]["peak_bytes"]) / (many - few)
    seconds = {layers: 1 / row["tokens_per_second"] for layers, row in rows.items()}
    slower = (seconds[many] - seconds[few]) / (many - few)
    parameters = rows[few]["parameters"] + (LAYERS - few) * rows[few]["layer_parameters"]
    as_is = rows[few]["peak_bytes"] + (LAYERS - few) * added
    beside = as_is - 8 * parameters  # two copies in FP32
    return {
        "layer_bytes": added,
        "layer_bytes_per_parameter": added / rows[few]["layer_parameters"],
        "parameters": parameters,
        "peak_bytes": as_is,
        "tokens_per_second": 1 / (seconds[few] + (LAYERS - few) * slower),
        "shared_bf16_bytes": 2 * parameters + max(0.0, beside),
        "machine_bytes": MACHINE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    rows = {}
    for layers in sorted(options.layers):
        with tempfile.TemporaryDirectory() as name:
            rows[layers] = run(options, layers, Path(name))
        row = rows[layers]
        print(
            f"{layers} layers: {row['peak_bytes'] / 2**30:.1f} GB, {row['tokens_per_second']:.1f} tokens/s", flush=True
        )
    result = {"context": options.context, "rows": rows, "on_paper": on_paper(rows)}
    append("pruning_memory", result, recipe=RECIPE, model="LLaMA-2-7B")
    print(json.dumps(result["on_paper"], indent=1))


if __name__ == "__main__":
    main()
