"""Memory of pruning a LLaMA of the 7B shape whose weights stay on disk, by layers, and what all 32 come to.

    python benchmarks/pruning_memory.py [--layers 1 2] [--recipe best-vtrans] [--set KEY=VALUE …]

Each row is the real command, `abridged compress --set 'stages.*.runner=frozen'`, in a process of its own on random bf16
weights of LLaMA-2-7B's sizes with so many layers (`benchmarks/blocks.py make`): masks in a few steps, the cut to half
of the layers' parameters, the fit, the file. Peaks are VmHWM, mapped pages included. What a layer adds is the
difference of two rows; with it the JSON in benchmarks/results/pruning_memory.json says what 32 layers come to. Random
weights measure memory and time, not quality. GB = 2^30 bytes.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from blocks import compress, config_of, make
from transformers import LlamaForCausalLM

from abridged.core.atomic import write_atomically
from abridged.core.record import environment
from abridged.families.standin import skeleton

RESULTS = Path(__file__).parent / "results" / "pruning_memory.json"
SHAPE, LAYERS, MACHINE = "llama-2-7b", 32, 24 * 2**30
#: Few steps on few tokens; of the layers a half is to go, however many there are.
CHANGES = (
    "stages.*.runner=frozen", "budget.embeddings=false", "fit_tokens=512", "widths=0", "stages.0.steps=5",
    "stages.1.steps=0", "stages.*.batch_size=1", "stages.*.context=256", "stages.*.evaluate_tokens=256",
    "stages.*.data_share=1",
)  # fmt: skip


def run(options: argparse.Namespace, layers: int, folder: Path) -> dict[str, Any]:
    """What the command took for a model of so many layers."""
    make(folder / "teacher", SHAPE, layers)
    changes = [*CHANGES, *options.changes]
    row = compress(folder / "teacher", str(folder / "teacher" / "data"), options.recipe, folder / "student", changes)
    model = skeleton(LlamaForCausalLM, config_of(SHAPE, layers))
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "layer_parameters": sum(one.numel() for one in model.model.layers[0].parameters()),
        **{key: row[key] for key in ("peak_bytes", "file_bytes", "seconds", "parts")},
    }


def all_layers(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """All layers, from what one adds."""
    few, many = min(rows), max(rows)
    added = (rows[many]["peak_bytes"] - rows[few]["peak_bytes"]) / max(1, many - few)
    return {
        "layer_bytes": added,
        "layer_bytes_per_parameter": added / rows[few]["layer_parameters"],
        "parameters": rows[few]["parameters"] + (LAYERS - few) * rows[few]["layer_parameters"],
        "peak_bytes": rows[few]["peak_bytes"] + (LAYERS - few) * added,
        "machine_bytes": MACHINE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recipe", default="best-vtrans")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    options = parser.parse_args()
    rows = {}
    for layers in sorted(options.layers):
        with tempfile.TemporaryDirectory() as name:
            rows[layers] = run(options, layers, Path(name))
        print(f"{layers} layers: {rows[layers]['peak_bytes'] / 2**30:.2f} GB", flush=True)
    result = {"recipe": options.recipe, "changes": [*CHANGES, *options.changes], "rows": rows}
    result |= {"all_layers": all_layers(rows)} if len(rows) > 1 else {}
    write_atomically(RESULTS, json.dumps({**result, "environment": environment()}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
