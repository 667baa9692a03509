"""Kronecker factors: their speed by shape, what they leave of GPT-2 124M, and what they lose beside their rivals.

    python benchmarks/kronecker.py speed [--threads 2] [--tokens 512] [--rounds 15]
    python benchmarks/kronecker.py size
    python benchmarks/kronecker.py quality [--model bundled] [--data wikitext-2] [--steps 1000] [--minutes 60]
        [--only PATTERN] [--results DIR]

`quality` trains every contestant for the same steps with the same batches, one row a run in
benchmarks/results/kronecker.jsonl, and skips those that are there. The tables of docs/kronecker.md are made of it.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from quantizers import Trial, pending, shared_out, train_and_measure
from results import RESULTS, append
from size import CASES, MEGABYTE, untrained
from torch import nn

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.save import save_checkpoint
from abridged.core.names import public_name
from abridged.evaluation.speed import in_turns
from abridged.models.load import load_dense
from abridged.recipe import Recipe
from abridged.runtime.kronecker import KroneckerLinear, factored_modules, layout
from abridged.storage.compressed import compressed_of
from abridged.storage.factors import Factors

WIDTH, INNER, VOCABULARY = 768, 3072, 50257
#: Name -> factors of a layer of GPT-2 124M: the paper's, and others of half the parameters or fewer.
SHAPES = {
    "attention, columns": Factors((768, 384), (1, 2)),
    "attention, rows": Factors((384, 768), (2, 1)),
    "up, columns": Factors((INNER, 384), (1, 2)),
    "up, rows": Factors((1536, WIDTH), (2, 1)),
    "down, columns": Factors((WIDTH, 1536), (1, 2)),
    "down, rows": Factors((384, INNER), (2, 1)),
    "up, columns, 16 terms": Factors((INNER, 24), (1, 32), rank=16),
    "up, rows, 16 terms": Factors((96, WIDTH), (32, 1), rank=16),
    "up, low rank": Factors((INNER, 1), (1, WIDTH), rank=307),
    "up, square, 1 term": Factors((96, 24), (32, 32)),
    "up, square, 64 terms": Factors((192, 48), (16, 16), rank=64),
    "head, columns": Factors((VOCABULARY, 384), (1, 2)),
}
#: A start of the scales that takes no search: only bytes are measured.
QUICK = [f"stages.1.methods.quantize.{part}.initialization=own" for part in ("weights", "embeddings")]
#: Layouts of GPT-2 124M -> overrides of kngpt2.
LAYOUTS = {"odd layers and embedding": [], "every layer and embedding": ["stages.*.methods.kronecker.layers=all"]}
KRONECKER, OBJECTIVES = "stages.*.methods.kronecker", "stages.*.objectives"
ILKD = ("hidden", "attention", "feed_forward")
WITHOUT_ILKD = [f"{OBJECTIVES}.{name}=null" for name in ILKD]
#: Contestant -> recipe, and what is changed in it.
CONTESTANTS: dict[str, tuple[str, list[str]]] = {
    "kngpt2": ("kngpt2", []),
    "kngpt2, plain LM loss": ("kngpt2", WITHOUT_ILKD),
    "kngpt2, soft labels": ("kngpt2", [*WITHOUT_ILKD, f"{OBJECTIVES}.logits.weight=1.0"]),
    "kngpt2, 16 terms": ("kngpt2", [f"{KRONECKER}.rank=16"]),
    "kngpt2, 16 terms, soft labels": (
        "kngpt2",
        [f"{KRONECKER}.rank=16", *WITHOUT_ILKD, f"{OBJECTIVES}.logits.weight=1.0"],
    ),
    "kngpt2, start on inputs": ("kngpt2", [f"{KRONECKER}.initialization=inputs"]),
    "best-kngpt2": ("best-kngpt2", []),
    "best-kngpt2, nearest start": ("best-kngpt2", [f"{KRONECKER}.initialization=nearest"]),
    "best-kngpt2, 32 terms": ("best-kngpt2", [f"{KRONECKER}.form=nearest", f"{KRONECKER}.rank=32"]),
    "random start": ("kngpt2", [f"{KRONECKER}.initialization=random"]),
    "truncated SVD": ("kngpt2", [f"{KRONECKER}.form=low_rank"]),
    "truncated SVD, soft labels": (
        "kngpt2",
        [f"{KRONECKER}.form=low_rank", *WITHOUT_ILKD, f"{OBJECTIVES}.logits.weight=1.0"],
    ),
    "distilgpt2": ("distilgpt2", []),
    "distilgpt2, plain LM loss": ("distilgpt2", [f"{OBJECTIVES}.logits=null"]),
    "quantgpt-2-2-8": ("quantgpt-2-2-8", []),
    "kngpt2-2-2-8": ("kngpt2-2-2-8", []),
    "kngpt2-2-2-8, every layer": ("kngpt2-2-2-8", [f"{KRONECKER}.layers=all"]),
    "best-2-2-8, compensated": ("best-2-2-8", ["stages.0.methods.quantize.gptq=true"]),
    "best-kngpt2-2-2-8": ("best-kngpt2-2-2-8", []),
    "best-kngpt2-2-2-8, 16 a batch": ("best-kngpt2-2-2-8", ["stages.*.batch_size=16"]),
    "best-kngpt2-2-2-8, 16 a batch, odd layers and embedding": (
        "best-kngpt2-2-2-8",
        ["stages.*.batch_size=16", f"{KRONECKER}.layers=odd", f"{KRONECKER}.matrices=[embedding, attention, ffn]"],
    ),
    "best-kngpt2, every layer": ("best-kngpt2", [f"{KRONECKER}.layers=all"]),
    "best-kngpt2, every layer, not the embedding": (
        "best-kngpt2",
        [f"{KRONECKER}.layers=all", f"{KRONECKER}.matrices=[attention, ffn]"],
    ),
    "quantgpt-2-2-8, 8 a batch": ("quantgpt-2-2-8", ["stages.*.batch_size=8"]),
}
#: Sequences a step, whose number `--steps` counts: who reads fewer takes more steps.
BATCH = 16


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each shape beside the dense layer, forward and in a training step, in FP32 and bf16."""
    torch.set_num_threads(options.threads)
    rows = {}
    for name, factors in SHAPES.items():
        rows[name] = measured = {
            "factors": str(factors),
            "operations": factors.operations / (factors.rows * factors.columns),
            "parameters": factors.parameters / (factors.rows * factors.columns),
            "weight_bytes": 4 * factors.parameters,
            "dense_bytes": 4 * factors.rows * factors.columns,
        }
        for dtype in (torch.float32, torch.bfloat16):
            measured[str(dtype).removeprefix("torch.")] = times(factors, dtype, options.tokens, options.rounds)
        print(name, {k: round(v["forward_ratio"], 2) for k, v in measured.items() if isinstance(v, dict)}, flush=True)
    return {"tokens": options.tokens, "threads": options.threads, "rows": rows}


def times(factors: Factors, dtype: torch.dtype, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of the dense layer, of the factored one, and of a factored one that builds its matrix."""
    torch.manual_seed(0)
    dense = nn.Linear(factors.columns, factors.rows, bias=False)
    factored = KroneckerLinear(factors)
    with torch.no_grad():
        weights = layout(factors, torch.randn(factors.rank, *factors.left), torch.randn(factors.rank, *factors.right))
        for child, weight in zip((factored.left, factored.right), weights, strict=True):
            child.weight.copy_(weight)
    dense, factored = dense.to(dtype), factored.to(dtype).eval()
    x = torch.randn(1, tokens, factors.columns, dtype=dtype)

    def forward(layer: Callable[[torch.Tensor], torch.Tensor]) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            layer(x)
        return time.perf_counter() - began

    def step(layer: Callable[[torch.Tensor], torch.Tensor]) -> float:
        inputs = x.clone().requires_grad_(True)
        began = time.perf_counter()
        layer(inputs).sum().backward()
        return time.perf_counter() - began

    def built(inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, factored.dequantized())

    layers = {"dense": dense, "factored": factored, "built": built}
    forwards = in_turns({n: lambda layer=layer: forward(layer) for n, layer in layers.items()}, rounds)
    steps = in_turns({n: lambda layer=layer: step(layer) for n, layer in layers.items()}, max(3, rounds // 3))
    return {
        **{f"forward_{name}": seconds for name, seconds in forwards.items()},
        **{f"step_{name}": seconds for name, seconds in steps.items()},
        "forward_ratio": forwards["factored"] / forwards["dense"],
        "step_ratio": steps["factored"] / steps["dense"],
        "step_built_ratio": steps["built"] / steps["dense"],
    }


def size(options: argparse.Namespace) -> dict[str, Any]:
    """What is left of GPT-2's true shape, the time and memory that it takes, and the files in 2 bits."""
    layouts = {}
    for name, overrides in LAYOUTS.items():
        model = untrained("gpt2")
        method = Recipe.load("kngpt2", overrides).stages[0].methods["kronecker"]
        before = sum(p.numel() for p in model.parameters())
        began, worked = time.perf_counter(), time.process_time()
        method.build(model, families.view(model), lambda model: None)
        layouts[name] = {
            "seconds": round(time.perf_counter() - began, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),  # of one core, whatever else the machine did
            "parameters_before": before,
            "parameters": sum(p.numel() for p in model.parameters()),
            "factored": len(factored_modules(model)),
        }
        layouts[name]["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(name, layouts[name], flush=True)
        del model
    files = {}
    for name in (name for name in CASES if name.startswith("kngpt2")):
        _, recipe, overrides, limit = CASES[name]
        account = weigh(Recipe.load(recipe, [*overrides, *QUICK]), untrained("gpt2"))
        megabytes = account["file_bytes"] / MEGABYTE
        files[name] = {**account, "file_mb": round(megabytes, 3), "limit_mb": limit, "within": megabytes <= limit}
        print(f"{name}: {megabytes:.2f} MB (limit {limit})", flush=True)
    return {"layouts": layouts, "files": files}


def plan(steps: int, model: str) -> Iterator[Trial]:
    """Every run: as many sequences for each, shared among a recipe's stages as it does."""
    for name, (recipe, overrides) in CONTESTANTS.items():
        more = BATCH / Recipe.load(recipe, overrides).stages[0].training.batch_size
        yield Trial(name, name, recipe, [*overrides, *shared_out(recipe, round(steps * more))], model=model)


def weigh(recipe: Recipe, student: Any) -> dict[str, Any]:
    """Parameters and bytes of what a recipe makes of a model, which it changes; they do not depend on training.

    The error at the start is told where it follows from the weights alone: no data is read here.
    """
    ids = torch.randint(student.config.vocab_size, (1, 16))
    methods = list(recipe.stages[-1].methods.values())
    for method in methods:
        attached = method.build(student, families.view(student), lambda model, tokens=None: model(ids))
        attached.finish()
    from_weights = not any(getattr(method, "initialization", None) == "inputs" for method in methods)
    errors = list(compressed_of(student).errors.values()) if from_weights else []
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(student, Path(folder) / "student", None, {})
        account = inspect(Path(folder) / "student")
    return {
        "parameters": account["stored_parameters"],
        "file_bytes": account["file_bytes"],
        "ratio": round(account["ratio"], 2),
        "error_at_start": sum(errors) / len(errors) if errors else None,
    }


def quality(options: argparse.Namespace) -> None:
    """Train and measure the contestants whose rows are not there."""
    runs = plan(options.steps, public_name(options.model))
    for work, run in pending(runs, "kronecker quality", options, options.results):
        recipe = Recipe.load(run.recipe, run.overrides)
        found = train_and_measure(work, recipe, options.model, options.data, run.seed)
        found |= {"steps": options.steps, "size": weigh(recipe, load_dense(options.model))}
        run.record("kronecker quality", found, options.results)
        print(f"{run.label}: {found['loss_percent']['perplexity']:.1f} % in {found['seconds']:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "size", "quality"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--steps", type=int, default=1000, help="of each run, over all stages")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose name matches this pattern")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "quality":
        return quality(options)
    measured = {"speed": speed, "size": size}[options.what](options)
    append(f"kronecker {options.what}", measured, options.results)
    return None


if __name__ == "__main__":
    main()
