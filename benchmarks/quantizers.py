"""Every quantiser from the same teacher with equal steps, and the ablations of QuantGPT; one row a run, resumable.

    python benchmarks/quantizers.py [--model bundled] [--data wikitext-2] [--steps 400] [--minutes 60]
        [--only PATTERN]

The runs come in the order of `plan`: learning rates at 2-2-8 for every method, then seeds of the best, then 1-1-8,
4-4-8 and 8-8-8 at the rates found, then ablations. A run whose row is there is skipped, so that the command can be
stopped and started again; `--minutes` stops before a run that would begin later. `benchmarks/tables.py` makes
docs/quantizers.md of it.
"""

import argparse
import contextlib
import functools
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from results import RESULTS, Row, append, read

from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.hardware import peak_memory
from abridged.core.measurement import loss_percent
from abridged.core.names import public_name
from abridged.recipe import Recipe
from abridged.storage.compressed import compressed_of
from abridged.training.job import Job
from abridged.training.opened import Opened
from abridged.training.publisher import Publisher
from abridged.training.stages import Stages

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


@dataclass(frozen=True)
class Trial:
    """A run that a plan has: what its row says, and what is trained."""

    label: str  #: what `--only` is matched with, and what is half done is kept under
    name: str  #: of the contestant
    recipe: str
    overrides: list[str]
    seed: int = 0
    model: str = "bundled"
    task: str = "text"
    settings: dict[str, Any] = field(default_factory=dict)

    def among(self, rows: Iterable[Row]) -> bool:
        """Whether one of the rows is its own, whatever its recipe and overrides were then."""
        about = {"name": self.name, "seed": self.seed, "model": self.model, "task": self.task, **self.settings}
        return any(all(row.get(key) == value for key, value in about.items()) for row in rows)

    def record(self, benchmark: str, found: dict[str, Any], folder: Path = RESULTS) -> None:
        """Append its row."""
        append(benchmark, found, folder, **{key: value for key, value in vars(self).items() if key != "label"})


def best_rate(method: str) -> float:
    """The rate of the grid with the lowest validation perplexity at 2-2-8, among those that have run."""
    done = read("quantizers", name=method, bits="2-2-8", changed=None, seed=0)
    found = {row["learning_rate"]: row["validation"]["perplexity"] for row in done}
    return min(found, key=lambda r: found[r]) if found else RATES[1]


def plan(model: str) -> Iterator[Trial]:
    """Every run, in order; rates are looked up when a run's turn comes."""

    def tried(method: str, value: float, seed: int) -> Trial:
        label, settings = f"{method}-2-2-8-lr{value:g}-seed{seed}", {"bits": "2-2-8", "learning_rate": value}
        return Trial(label, method, METHODS[method], rate(value), seed, model, settings=settings)

    for method in METHODS:
        for value in RATES:
            yield tried(method, value, 0)
    for seed in (1, 2):
        for method in ("dynamic", "lsq", "twn"):  # QuantGPT and the two best baselines
            yield tried(method, best_rate(method), seed)
    for width in (1, 4, 8):
        for method, recipe in METHODS.items():
            if width == 1 and method in ("twn", "minmax"):
                continue  # they have no binary form
            if width > 2 and method == "twn":
                continue  # ternary by definition
            label, overrides = f"{method}-{width}-{width}-8-seed0", [*rate(best_rate(method)), *bits(width)]
            yield Trial(label, method, recipe, overrides, model=model, settings={"bits": f"{width}-{width}-8"})
    for name, overrides in ABLATIONS.items():
        overrides, settings = [*rate(best_rate("dynamic")), *overrides], {"bits": "2-2-8", "changed": name}
        yield Trial(f"ablation-{name}", "dynamic", METHODS["dynamic"], overrides, model=model, settings=settings)


def slug(name: str) -> str:
    """A contestant's name as a file's."""
    return name.replace(", ", "-").replace(" ", "-")


@functools.cache
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
    work: Path,
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

    What a killed run left beside `work` is taken up; `seconds` then counts from there, and `resumed` says so.
    They are those of training; what methods then did to the student took `finish_seconds`.
    """
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
        if not validation:  # nothing was trained
            settings = recipe.stages[-1].training
            validation = [{"stage": 0, "step": 0, **opened.task.validation(packed, settings)()}]
    for rubbish in filter(None, (folder, cache)):
        shutil.rmtree(rubbish, ignore_errors=True)
    return {
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
    }


def pending(
    plan: Iterable[Trial], benchmark: str, options: argparse.Namespace, folder: Path = RESULTS
) -> Iterator[tuple[Path, Trial]]:
    """The runs of a plan that match and have no row yet, each with a place for what is half done; until time is up."""
    began, place, rows = time.monotonic(), folder / benchmark.split()[0], read(benchmark, folder)
    for run in plan:
        if not fnmatch(run.label, options.only) or run.among(rows):
            continue
        if time.monotonic() - began > 60 * options.minutes:
            break
        place.mkdir(parents=True, exist_ok=True)
        yield place / run.label, run
        rows = read(benchmark, folder)  # others may have run some, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose label matches this pattern")
    options = parser.parse_args()
    for work, run in pending(plan(public_name(options.model)), "quantizers", options):
        recipe = Recipe.load(run.recipe, [f"stages.*.steps={options.steps}", *run.overrides])
        offline = "offline" in run.label
        found = train_and_measure(work, recipe, options.model, options.data, run.seed, offline=offline)
        run.record("quantizers", {**found, "steps": options.steps})
        print(f"{run.label}: {found['loss_percent']['perplexity']:.1f} % in {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
