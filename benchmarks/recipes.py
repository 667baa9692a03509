"""The shipped recipes as they stand (or at other lengths), several seeds each: the losses of docs/quantizers.md.

    python benchmarks/recipes.py quantgpt-2-2-8 best-2-2-8 [--seeds 0 1 2] [--set stages.0.steps=500]

Each run is a row of benchmarks/results/recipes.jsonl, and skipped when it is there.
"""

import argparse

from quantizers import train_and_measure
from results import RESULTS, append, read

from abridged.core.names import public_name
from abridged.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    work = RESULTS / "recipes"
    work.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.recipes:
            recipe = Recipe.load(name, options.overrides)
            steps = [stage.training.steps for stage in recipe.stages]
            about = {"recipe": name, "model": public_name(options.model), "task": "text", "seed": seed}
            about |= {"overrides": options.overrides, "settings": {"steps": sum(steps)}}
            if read("recipes", **about):
                continue
            label = f"{name}-{sum(steps)}-seed{seed}"
            known = read("recipes", model=about["model"])
            found = train_and_measure(work / label, recipe, options.model, options.data, seed, known=known)
            append("recipes", {**found, "stage_steps": steps}, **about)
            print(f"{label}: {found['loss_percent']['perplexity']:.1f} %", flush=True)


if __name__ == "__main__":
    main()
