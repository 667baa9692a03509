"""The shipped recipes as they stand (or at other lengths), several seeds each: the losses of docs/results.md.

    python benchmarks/recipes.py quantgpt-2-2-8 best-2-2-8 [--seeds 0 1 2] [--set stages.0.steps=500]

Each run is written to benchmarks/results/recipes/ and skipped when it is there.
"""

import argparse
import json
from pathlib import Path

from quantizers import train_and_measure

from abridged.core.atomic import write_atomically
from abridged.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.recipes:
            recipe = Recipe.load(name, options.overrides)
            steps = [stage.training.steps for stage in recipe.stages]
            path = RESULTS / f"{name}-{sum(steps)}-seed{seed}.json"
            if path.exists():
                continue
            result = train_and_measure(path, recipe, options.model, options.data, seed)
            result |= {"name": path.stem, "recipe": name, "overrides": options.overrides, "steps": steps}
            write_atomically(path, json.dumps(result, indent=1))
            print(f"{path.stem}: {result['loss_percent']['perplexity']:.1f} %", flush=True)


if __name__ == "__main__":
    main()
