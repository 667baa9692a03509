"""Peak memory of compressing a GPT-2 of the true 124M shape, teacher included: the real command on random weights.

    python benchmarks/memory.py [--recipe quantgpt-2-2-8] [--batch-size 4] [--context 512] [--steps 3]

The text is short, so that the perplexities before and after take little; what they hold is within the peak too. Each
way is a row of benchmarks/results/memory.jsonl. GB = 2^30 bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from results import append
from transformers import GPT2Config, GPT2LMHeadModel

from abridged.data.text import load_text
from abridged.models.load import load_tokenizer

LIMIT = 6 * 2**30


def compress(options: argparse.Namespace, recipe: str, changes: list[str], folder: Path) -> dict:
    """What `abridged compress` says it held, in a process of its own."""
    settings = {
        "steps": options.steps, "batch_size": options.batch_size, "context": options.context, "compile": "no",
        "evaluate_tokens": options.context,
    }  # fmt: skip
    changes = [*changes, *(f"stages.*.{key}={value}" for key, value in settings.items())]
    command = [sys.executable, "-m", "abridged", "compress", str(folder / "teacher"), "--recipe", recipe]
    command += ["--data", str(folder / "text.txt"), "--output", str(folder / "student"), "--overwrite", "--json"]
    done = subprocess.run(
        [*command, *(word for change in changes for word in ("--set", change))], stdout=subprocess.PIPE, check=True
    )
    record = json.loads(done.stdout)
    peak = record["peak_memory_bytes"]
    return {"peak_bytes": peak, "within": peak <= LIMIT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="quantgpt-2-2-8")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "teacher")
        load_tokenizer("bundled").save_pretrained(folder / "teacher")
        (folder / "text.txt").write_text(load_text("wikitext-2").train[:200_000])
        changes = {
            "as shipped": [],
            "gradient checkpointing": ["stages.*.gradient_checkpointing=true"],
            "gradient accumulation of 2": ["stages.*.gradient_accumulation=2"],  # the same batch, half of it at a time
        }
        settings = {key: getattr(options, key) for key in ("batch_size", "context", "steps")}
        for name, changed in changes.items():
            found = compress(options, options.recipe, changed, folder)
            print(f"{options.recipe}, {name:24} {found['peak_bytes'] / 2**30:6.2f} GB (limit {LIMIT / 2**30:g})")
            about = {"recipe": options.recipe, "overrides": changed, "settings": settings}
            append("memory", found, name=name, model="GPT-2 124M", **about)


if __name__ == "__main__":
    main()
