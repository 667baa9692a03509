"""Every quantiser from the same teacher with equal steps, and the ablations of QuantGPT; one JSON a run, resumable.

    python benchmarks/quantizers.py [--model bundled] [--data wikitext-2] [--steps 400] [--minutes 60]
        [--only PATTERN]

The runs come in the order of `plan`: learning rates at 2-2-8 for every method, then seeds of the best, then 1-1-8,
4-4-8 and 8-8-8 at the rates found, then ablations. A run whose JSON exists is skipped, so that the command can be
stopped and started again; `--minutes` stops before a run that would begin later. `benchmarks/tables.py` makes
docs/results.md of it.
"""

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.atomic import write_atomically
from abridged.core.hardware import peak_memory
from abridged.core.measurement import loss_percent
from abridged.core.record import environment
from abridged.recipe import Recipe
from abridged.storage.compressed import compressed_of
from abridged.training.job import Job
from abridged.training.opened import Opened
from abridged.training.publisher import Publisher
from abridged.training.stages import Stages

Run = TypeVar("Run", bound=tuple[Any, ...])
RESULTS = Path(__file__).parent / "results" / "quantizers"
RATES = (5e-4, 1e-3, 2e-3)
#: method -> its recipe at 2-2-8
METHODS = {
    "dynamic": "quantgpt-2-2-8",
    "lsq": "lsq-2-2-8",
    "pact": "pact-2-2-8",
    "laq": "laq-2-2-8",
    "twn": "twn-2-2-8",
    "minmax": "minmax-2-2-8",
}
ABLATIONS = {
    "no-contrastive": ["stages.0.objectives.contrastive=null"],
    "bank-none": ["stages.0.objectives.contrastive.bank=none"],
    "bank-vocabulary": ["stages.0.objectives.contrastive.bank=vocabulary"],
    "negatives-student": ["stages.0.objectives.contrastive.negatives=student"],
    "negatives-vocabulary": ["stages.0.objectives.contrastive.negatives=vocabulary"],
    "lambda-0.01": ["stages.0.objectives.contrastive.weight=0.01"],
    "lambda-1": ["stages.0.objectives.contrastive.weight=1.0"],
    "gamma-clipped-only": [
        "stages.0.methods.quantize.weights.scale_gradient=clipped_only",
        "stages.0.methods.quantize.embeddings.scale_gradient=clipped_only",
    ],
    "gamma-least-squares": [
        "stages.0.methods.quantize.weights.initialization=least_squares",
        "stages.0.methods.quantize.embeddings.initialization=least_squares",
    ],
    "weight-straight-through": [
        "stages.0.methods.quantize.weights.weight_gradient=straight_through",
        "stages.0.methods.quantize.embeddings.weight_gradient=straight_through",
    ],
    "activations-constant": ["stages.0.methods.quantize.activations.initial=constant"],
    "labels-too": ["stages.0.objectives.labels.weight=0.5"],
    "tsld": ["stages.0.objectives.logits.token_weights=tsld"],
    "offline-teacher": [],  # its 64 likeliest tokens from a cache
}


def bits(weights: int) -> list[str]:
    """Overrides that set the bits of weights and embeddings."""
    return [f"stages.0.methods.quantize.{part}.bits={weights}" for part in ("weights", "embeddings")]


def rate(value: float) -> list[str]:
    """Overrides that set the weights' learning rate."""
    return [f"stages.0.learning_rate={value}"]


def best_rate(method: str) -> float:
    """The rate of the grid with the lowest validation perplexity at 2-2-8, among those that have run."""
    done = {r: RESULTS / f"{method}-2-2-8-lr{r:g}-seed0.json" for r in RATES}
    found = {r: json.loads(p.read_text())["validation"]["perplexity"] for r, p in done.items() if p.exists()}
    return min(found, key=lambda r: found[r]) if found else RATES[1]


def plan() -> Iterator[tuple[str, str, list[str], int]]:
    """(name, recipe, overrides, seed) of every run, in order; rates are looked up when a run's turn comes."""
    for method, recipe in METHODS.items():
        for value in RATES:
            yield f"{method}-2-2-8-lr{value:g}-seed0", recipe, rate(value), 0
    for seed in (1, 2):
        for method in ("dynamic", "lsq", "twn"):  # QuantGPT and the two best baselines
            value = best_rate(method)
            yield f"{method}-2-2-8-lr{value:g}-seed{seed}", METHODS[method], rate(value), seed
    for width in (1, 4, 8):
        for method, recipe in METHODS.items():
            if width == 1 and method in ("twn", "minmax"):
                continue  # they have no binary form
            if width > 2 and method == "twn":
                continue  # ternary by definition
            yield f"{method}-{width}-{width}-8-seed0", recipe, [*rate(best_rate(method)), *bits(width)], 0
    for name, overrides in ABLATIONS.items():
        yield f"ablation-{name}", "quantgpt-2-2-8", [*rate(best_rate("dynamic")), *overrides], 0


def slug(name: str) -> str:
    """A contestant's name as a file's."""
    return name.replace(", ", "-").replace(" ", "-")


def shared_out(recipe: str, steps: int) -> list[str]:
    """Overrides that give a recipe's stages so many steps in all, in the proportions of its own epochs, or steps."""
    own = [stage.training.epochs or stage.training.steps for stage in Recipe.load(recipe).stages]
    lengths = [f"stages.{i}.steps={round(steps * length / sum(own))}" for i, length in enumerate(own)]
    return ["stages.*.epochs=null", *lengths]


def forget_peak() -> None:
    """Let the peak of host memory count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def train_and_measure(
    path: Path,
    recipe: Recipe,
    model: str,
    data: str,
    seed: int,
    offline: bool = False,
    task: str | None = None,
    known: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Train one student and measure it, packed; `offline` caches the teacher's answers and trains from those.

    `known` are results on the same data with the same lengths: where one is of the same teacher, its numbers are taken.

    What a killed run left beside `path` is taken up; `seconds` then counts from there, and `resumed` says so.
    They are those of training; what methods then did to the student took `finish_seconds`.
    """
    work = path.with_suffix("")
    resumed = work.with_name(work.name + ".partial").exists()
    cache = work.with_name(work.name + ".cache") if offline else None
    forget_peak()
    job = Job(
        model=model, recipe=recipe, data=data, output=work, task=task, resume=resumed, seed=seed, teacher_cache=cache
    )
    with Opened(job) as opened:
        stages = Stages(opened)
        publisher = Publisher(opened, stages)
        stages.run()
        peak = peak_memory()
        opened.task.rouge_pairs = None  # all
        teacher = next((r["teacher"] for r in known if r["teacher_hash"] == opened.hash), None)
        packed = pack_model(stages.student)
        teacher, student = teacher or publisher.measure(opened.teacher), publisher.measure(packed)
        folder = opened.work.folder
        save_checkpoint(packed, folder / "packed", None, {})
        file_bytes = inspect(folder / "packed")["file_bytes"]
        validation = [m for m in opened.work.metrics() if m["event"] == "evaluate"]
    for rubbish in filter(None, (folder, cache)):
        shutil.rmtree(rubbish, ignore_errors=True)
    return {
        "seed": seed,
        "model": opened.model_name,
        "teacher_hash": opened.hash,
        "teacher": teacher,
        "student": student,
        "loss_percent": {key: round(value, 3) for key, value in loss_percent(teacher, student).items()},
        "validation": validation[-1],
        "curve": [[m["stage"], m["step"], m.get("perplexity", m.get("score"))] for m in validation],
        "seconds": round(stages.seconds["training"], 1),
        "file_bytes": file_bytes,
        "facts": {name: dict(found) for name, found in compressed_of(stages.student).facts.items()},
        "finish_seconds": round(stages.seconds["finishing"], 1),
        "peak_bytes": peak,
        "resumed": resumed,
        "environment": environment(),
    }


def pending(plan: Iterable[Run], folder: Path, options: argparse.Namespace) -> Iterator[tuple[Path, Run]]:
    """The runs of a plan, named first, whose JSON is not in `folder` and whose name matches; until time is up."""
    began = time.monotonic()
    for run in plan:
        path = folder / f"{run[0]}.json"
        if path.exists() or not fnmatch(run[0], options.only):
            continue
        if time.monotonic() - began > 60 * options.minutes:
            break
        yield path, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose name matches this pattern")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path, (name, recipe, overrides, seed) in pending(plan(), RESULTS, options):
        chosen = Recipe.load(recipe, [f"stages.*.steps={options.steps}", *overrides])
        result = train_and_measure(path, chosen, options.model, options.data, seed, offline="offline" in name)
        result |= {"name": name, "recipe": recipe, "overrides": overrides, "steps": options.steps}
        write_atomically(path, json.dumps(result, indent=1))
        print(f"{name}: {result['loss_percent']['perplexity']:.1f} % in {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
