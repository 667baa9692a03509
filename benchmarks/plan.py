"""Whether a plan knows beforehand what a choice of bits will cost, and whether it is better than one width for all.

    python benchmarks/plan.py [--model bundled] [--data wikitext-2] [--recipe best-2-2-8]
        [--ways fisher,measured,interpolated] [--mixed 24] [--tokens 4096] [--evaluate 8192] [--sizes 40MB,50MB]

Nothing is trained. Some mixed assignments are drawn; of each the loss that each way of finding sensitivity expects
stands beside what is measured on validation text: the rise of log perplexity, in nats a token. Then one form is given
to all matrices alike, and beside it stands a plan of the same bytes; with --sizes, plans of those sizes stand beside
the best uniform choice that is no larger. The row is in benchmarks/results/plan.jsonl; what was measured is kept
under benchmarks/results/plan until then, so that a run that was stopped goes on.
"""

import argparse
import hashlib
import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from results import RESULTS, append

from abridged import families
from abridged.core.atomic import write_atomically
from abridged.core.settings import TrainingSettings
from abridged.data.opening import open_data
from abridged.models.described import described
from abridged.models.load import load_dense, load_tokenizer
from abridged.planning.make import batches
from abridged.planning.plan import Planner, Point, front_of
from abridged.planning.sensitivity import Text, find_costs, stored_so
from abridged.planning.words import size_in_bytes
from abridged.recipe import Recipe
from abridged.tasks import task_for

CONTEXT = 256


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def kept_costs(folder: Path, way: Any, tokens: int, text: Callable[[], Text], planner: Planner) -> dict[str, Any]:
    """Costs, found once and kept: a run that was stopped goes on with them."""
    about = {"tokens": tokens, "forms": {name: [f.words for f in own] for name, own in planner.forms.items()}}
    path = folder / f"{way}.json"
    if path.exists() and (kept := json.loads(path.read_text()))["about"] == about:
        return kept
    costs = find_costs(text(), planner.matrices, planner.forms, way)
    found = {"about": about, "costs": costs}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found))
    return found


def key_of(assignment: dict[str, Any], evaluated: int, context: int) -> str:
    """An assignment and the text that it is measured on, in a word."""
    told = [evaluated, context, sorted((name, form.words) for name, form in assignment.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def drawn(planner: Planner, seed: int) -> dict[str, Any]:
    """An assignment between two widths that are drawn themselves, so that losses from small to large occur."""
    draw = random.Random(seed)
    widths = sorted({form.bits for forms in planner.forms.values() for form in forms})
    low, high = sorted(draw.choices(range(len(widths)), k=2))
    return {
        name: draw.choice([form for form in forms if widths[low] <= form.bits <= widths[high]])
        for name, forms in planner.forms.items()
    }


def uniform(planner: Planner) -> dict[str, dict[str, Any]]:
    """Forms that fit all matrices, by their description: a scale a row or for groups of 64."""
    common = [form for form in next(iter(planner.forms.values())) if all(form in f for f in planner.forms.values())]
    common = [
        form
        for form in common
        if form.whole
        and form.weights.group_size in (None, 64)
        and (form.weights.grid != "ternary" or form.weights.packing == "base3")
    ]
    return {form.words: dict.fromkeys(planner.forms, form) for form in common}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--recipe", default="best-2-2-8")
    parser.add_argument("--ways", default="fisher,measured,interpolated", help="the last one's costs are planned by")
    parser.add_argument("--mixed", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--evaluate", type=int, default=8192)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--sizes", default="", help="of plans beside the best uniform choice; else all uniform ones'")
    options = parser.parse_args()
    ways = options.ways.split(",")

    kind, config = described(options.model)
    recipe = Recipe.load(options.recipe)
    planner = Planner(kind, config, families.view_of_config(kind, config), recipe)
    model = load_dense(options.model)
    task = task_for(model, load_tokenizer(options.model, model), open_data(options.data))
    settings = TrainingSettings(context=options.context, evaluate_tokens=options.evaluate)
    text = partial(Text, model, batches(task.examples(settings), options.tokens))
    validate = task.validation(model, settings)
    before = validate().headline.value

    name = Path(options.model).name
    costs = RESULTS / "plan" / "costs" / name
    kept = costs / "losses.json"
    losses: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}

    def measure(assignment: dict[str, Any]) -> float:
        """The rise of log perplexity, measured once and kept."""
        key = key_of(assignment, options.evaluate, options.context)
        if key not in losses:
            with stored_so(model, planner.matrices, assignment):
                losses[key] = math.log(validate().headline.value / before)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(losses))
        return losses[key]

    def row(point: Point) -> dict[str, Any]:
        bits = {name: form.bits for name, form in point.assignment.items()}
        measured = measure(dict(point.assignment))
        return {"file_bytes": point.file_bytes, "expected": point.loss, "measured": measured, "bits": bits}

    found = {way: kept_costs(costs, way, options.tokens, text, planner) for way in ways}
    assignments = [drawn(planner, seed) for seed in range(options.mixed)]
    expected: dict[str, list[float]] = {}
    for way, one in found.items():
        planner.take(one["costs"], way, options.tokens)
        expected[way] = [planner.assess(assignment).loss for assignment in assignments]
    result: dict[str, Any] = {
        "data": options.data,
        "tokens": options.tokens,
        "evaluated_tokens": options.evaluate,
        "context": options.context,
        "perplexity": before,
        "dense_bytes": planner.dense_bytes,
        "forms": [form.words for form in dict.fromkeys(form for own in planner.forms.values() for form in own)],
        "planned_by": ways[-1],
        "front": [[point.file_bytes, point.loss] for point in front_of([planner])],
        "rank_correlation": {},
        "mixed": [],
        "against_uniform": [],
    }

    def keep(part: str, one: dict[str, Any]) -> None:
        result[part].append(one)
        truth = [one["measured"] for one in result["mixed"]]
        if len(truth) > 2:
            known = {way: values[: len(truth)] for way, values in expected.items()}
            result["rank_correlation"] = {way: rank_correlation(values, truth) for way, values in known.items()}
        print(json.dumps({key: value for key, value in one.items() if key != "planned_bits"}), flush=True)

    for number, assignment in enumerate(assignments):
        own = {way: values[number] for way, values in expected.items()}
        keep("mixed", {"expected": own, "measured": measure(assignment)})
    alike = {form: planner.assess(one) for form, one in uniform(planner).items()}
    sizes = [size_in_bytes(size) for size in options.sizes.split(",") if size]
    if sizes:
        near = {form: point for form, point in alike.items() if 0.7 * min(sizes) < point.file_bytes <= max(sizes)}
        rows = {form: row(point) for form, point in near.items()}
        for size in sizes:
            form = min((f for f in rows if rows[f]["file_bytes"] <= size), key=lambda f: rows[f]["measured"])
            keep("against_uniform", {"size": size, "uniform": form, **_sides(rows[form], row(planner.at(size)))})
    else:
        for form, point in sorted(alike.items(), key=lambda one: -one[1].file_bytes):
            keep("against_uniform", {"uniform": form, **_sides(row(point), row(planner.at(point.file_bytes)))})
    append("plan", result, recipe=options.recipe, model=name)


def _sides(alike: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
    return {
        "uniform_bytes": alike["file_bytes"],
        "uniform_loss": alike["measured"],
        "planned_bytes": planned["file_bytes"],
        "planned_loss": planned["measured"],
        "planned_expected": planned["expected"],
        "planned_bits": planned["bits"],
    }


if __name__ == "__main__":
    main()
