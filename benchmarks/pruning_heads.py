"""Do heads that look at special tokens and at their own token go first? Masks of VTrans beside what heads look at.

    python benchmarks/pruning_heads.py [--glue FOLDER] [--steps 150] [--seeds 0 1 2]

The first stage of `vtrans` to half of the parameters: the bundled GPT-2 on WikiText-2 (whose texts have no special
tokens: the first token counts) and, with --glue, MiniLM-L6 on SST-2 (see glue.py). One row a run in
benchmarks/results/pruning_heads.jsonl, skipped when it is there: of each head the shares of attention, its score and
whether it was removed, and Spearman's rank correlations of the score with them.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from glue import FOLDERS, teacher
from quantizers import Trial, pending

from abridged.evaluation.probe import against_masks, probe_heads
from abridged.recipe import Recipe
from abridged.storage.compressed import compressed_of
from abridged.training.job import Job
from abridged.training.opened import Opened
from abridged.training.stages import Stages

#: Training examples whose attention is looked at, and how many at once.
LOOKED_AT, AT_ONCE = 128, 8


def masks_and_attention(
    work: Path, recipe: Recipe, model: str, data: str, task: str | None, seed: int
) -> dict[str, Any]:
    """Train the masks of a recipe's first stage, and probe the teacher's heads on training examples."""
    job = Job(model=model, recipe=recipe, data=data, output=work, task=task, overwrite=True, seed=seed)
    with Opened(job) as opened:
        stages = Stages(opened)
        stages.run_stage(0)
        examples = opened.examples(0)
        order = examples.order(0, AT_ONCE)
        batches = (examples.batch(order[i : i + AT_ONCE]) for i in range(0, LOOKED_AT, AT_ONCE))
        probed = probe_heads(opened.teacher, batches, opened.tokenizer.all_special_ids)
        folder = opened.work.folder
    shutil.rmtree(folder, ignore_errors=True)
    return against_masks(probed, compressed_of(stages.student).heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", type=Path, help="the folder of GLUE's tasks; without it only the text is measured")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose label matches this pattern")
    options = parser.parse_args()
    common = ["budget.parameters=0.5", f"stages.0.steps={options.steps}"]
    tasks = {"text": ("bundled", [])}
    if options.glue:
        tasks = {"sst2": ("minilm", ["stages.0.context=128", "stages.0.batch_size=32"]), **tasks}
    plan = (
        Trial(f"{task}-seed{seed}", "vtrans", "vtrans", [*common, *changes], seed, model, task)
        for seed in options.seeds
        for task, (model, changes) in tasks.items()
    )
    for work, run in pending(plan, "pruning_heads", options):
        model, data, task = "bundled", "wikitext-2", None
        if run.task != "text":
            model, data, task = str(teacher(run.task, options.glue)), str(options.glue / FOLDERS[run.task]), run.task
        found = masks_and_attention(work, Recipe.load(run.recipe, run.overrides), model, data, task, run.seed)
        run.record("pruning_heads", found)
        told = {measure: value and round(value, 2) for measure, value in found["correlation"].items()}
        print(run.label, told, flush=True)


if __name__ == "__main__":
    main()
