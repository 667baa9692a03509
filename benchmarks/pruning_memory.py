"""Memory of pruning a LLaMA of the 7B shape whose weights stay on disk, by layers, and what all 32 come to.

    python benchmarks/pruning_memory.py [--layers 2 …] [--recipe best-vtrans] [--set KEY=VALUE …] [--folder FOLDER]

Each row is the real command, `abridged compress --set 'stages.*.runner=frozen'`, in a process of its own on random bf16
weights of LLaMA-2-7B's sizes with so many layers (`benchmarks/blocks.py make`): masks in a few steps, the cut to half
of the layers' parameters, the fit, the file. Peaks are VmHWM, mapped pages included. All 32 layers, where they were not
run, are the row of most layers, and for each further one what is left of it in bf16, which is all that is kept of it.
Random weights measure memory and time, not quality. GB = 2^30 bytes. With FOLDER models and results are kept; those
that are there are not made again. The row is in
benchmarks/results/pruning_memory.jsonl.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from blocks import compress, config_of, make
from results import append
from transformers import LlamaForCausalLM

from abridged.core.record import RECORD
from abridged.families.standin import skeleton

SHAPE, LAYERS, MACHINE = "llama-2-7b", 32, 24 * 2**30
LEFT = 0.5
#: Few steps on few tokens; of the layers a half is to go, however many there are.
CHANGES = (
    "stages.*.runner=frozen", "budget.embeddings=false", f"budget.parameters={LEFT}", "fit_tokens=512", "widths=0",
    "stages.0.steps=5", "stages.1.steps=0", "stages.*.batch_size=1", "stages.*.context=256",
    "stages.*.evaluate_tokens=256", "stages.*.data_share=1",
)  # fmt: skip


def run(options: argparse.Namespace, layers: int, folder: Path) -> dict[str, Any]:
    """What the command took for a model of so many layers."""
    teacher, student = folder / f"teacher-{layers}", folder / f"student-{layers}"
    if not teacher.exists():
        make(teacher, SHAPE, layers)
    if not student.exists():
        compress(teacher, str(teacher / "data"), options.recipe, student, [*CHANGES, *options.changes])
    record = json.loads((student / RECORD).read_text())
    model = skeleton(LlamaForCausalLM, config_of(SHAPE, layers))
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "layer_parameters": sum(one.numel() for one in model.model.layers[0].parameters()),
        "teacher_bytes": sum(path.stat().st_size for path in teacher.glob("*.safetensors")),
        "peak_bytes": record["peak_memory_bytes"],
        "file_bytes": sum(file["bytes"] for file in record["files"].values()),
        "seconds": record["seconds"],
        "hidden": record["methods"]["prune"]["hidden"],
    }


def all_layers(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """All layers, from the row of most."""
    most = max(rows)
    row, more = rows[most], LAYERS - most
    added = 2 * LEFT * row["layer_parameters"]
    return {
        "parameters": row["parameters"] + more * row["layer_parameters"],
        "layer_bytes": added,
        "peak_bytes": row["peak_bytes"] + more * added,
        "machine_bytes": MACHINE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--recipe", default="best-vtrans")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rows = {layers: run(options, layers, folder) for layers in sorted(options.layers)}
    result, changes = {"rows": rows, "all_layers": all_layers(rows)}, [*CHANGES, *options.changes]
    append("pruning_memory", result, recipe=options.recipe, model=SHAPE, overrides=changes)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
