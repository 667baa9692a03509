"""Pruning: VTrans and its variants against L0, Taylor, magnitude and random, in one trainer under one counted budget.

    python benchmarks/pruning.py quality [--glue FOLDER] [--seeds 0 1 2] [--steps 300] [--minutes 60] [--only PATTERN]
    python benchmarks/pruning.py speed
    python benchmarks/pruning.py cost

`quality` trains the bundled GPT-2 on WikiText-2 and, with --glue, MiniLM-L6 on SST-2, RTE and MRPC (see glue.py); each
run is a row of benchmarks/results/pruning.jsonl, and skipped when it is there. `speed` times models cut to half of the
FLOPs against the whole ones, `cost` a training step with masks against one of plain distillation: all in turn, in one
process, so that what else the machine does falls on all alike.
"""

import argparse
import copy
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from quantizers import Trial, pending, shared_out, slug, train_and_measure
from results import append
from size import untrained

import abridged
from abridged import families
from abridged.core.names import public_name
from abridged.data.blocks import Blocks, tokenize
from abridged.data.text import load_text
from abridged.evaluation.speed import in_turns
from abridged.methods.pruning.method import Prune
from abridged.models.load import load_dense, load_tokenizer
from abridged.objectives.base import ObjectiveContext, StudentForward
from abridged.recipe import Recipe
from abridged.training.loop import Run, Trainer
from abridged.training.modes import set_dropout
from abridged.training.workspace import Workspace

TASKS = ("sst2", "rte", "mrpc")
STEPS = 300
#: Shares of all parameters that are left.
SHARES = (0.5, 0.3, 0.1)
#: Shares of the layers' parameters that are left, embeddings not counted: CoFi's sparsities of 60, 80 and 95 %.
ENCODER_SHARES = (0.4, 0.2, 0.05)
PRUNE = "stages.0.methods.prune"
#: L0 as published: masks that start alike, and a penalty for the budget.
PUBLISHED = [f"{PRUNE}.measure=0", f"{PRUNE}.constraint=lagrangian"]
#: The hidden width as the masks keep it, not as principal components.
UNITS = [f"{PRUNE}.hidden=units"]
RATE = "stages.0.training.learning_rates.mask=0.05"
#: Rates after the cut on tasks: of what is fitted to the whole model before, and of all else.
FITTED_RATE, TASK_RATE = 1e-4, 5e-4
FITTED = ("best-bert-vtrans", "faster-vtrans")
LOW_RATE, HIGH_RATE = ([f"stages.1.learning_rate={rate}"] for rate in (FITTED_RATE, TASK_RATE))
#: What takes a recipe's place on tasks.
ON_TASKS = {"best-vtrans": "best-bert-vtrans"}
#: Contestant -> recipe, and what is changed in it.
CONTESTANTS: dict[str, tuple[str, list[str]]] = {
    "best-vtrans": ("best-vtrans", []),
    "best-vtrans, single units": ("best-vtrans", UNITS),
    "vib": ("vtrans", []),
    "vib, as published": ("vtrans", [*PUBLISHED, RATE]),
    "l0": ("vtrans", [f"{PRUNE}.masks=l0", *PUBLISHED, RATE]),
    "l0, measured start": ("vtrans", [f"{PRUNE}.masks=l0"]),
    **{masks: ("vtrans", [f"{PRUNE}.masks={masks}"]) for masks in ("taylor", "magnitude", "random")},
    "taylor, twice the rate": ("vtrans", [f"{PRUNE}.masks=taylor", "stages.1.learning_rate=1e-3"]),
    "taylor, low rate": ("vtrans", [f"{PRUNE}.masks=taylor", *LOW_RATE]),
    "l0, low rate": ("vtrans", [f"{PRUNE}.masks=l0", *PUBLISHED, RATE, *LOW_RATE]),
    "l0, reconstructed": ("best-vtrans", [f"{PRUNE}.masks=l0"]),
}
#: What is run on tasks alone. Trimmed: without tokens that neither the task nor, ten times, WikiText-2 uses.
TASK_CONTESTANTS = {
    "best-vtrans, high rate": ("best-vtrans", HIGH_RATE),
    "best-vtrans, single units, high rate": ("best-vtrans", [*UNITS, *HIGH_RATE]),
    **{f"{name}, trimmed": CONTESTANTS[name] for name in ("best-vtrans", "taylor", "l0")},
}
TRIM = {"also": "wikitext-2", "min_count": 10}
#: Pruned and then quantised, on the text alone.
COMPOSED = ("vtrans-quantgpt", "best-vtrans-2-2-8")
#: Tokens that `speed` has written.
WRITTEN = 32


def plan(tasks: list[str], options: argparse.Namespace) -> Iterator[Trial]:
    """Every run on the text and on tasks: one seed of all first. Other lengths than the usual stand beside it."""
    for seed in options.seeds:
        for task in ("text", *tasks):
            contestants = CONTESTANTS if task == "text" else {**CONTESTANTS, **TASK_CONTESTANTS}
            for share in SHARES:
                for name, (recipe, changes) in contestants.items():
                    yield trial(options, task, seed, share, name, recipe, changes)
                for recipe in ("fast-vtrans", "faster-vtrans", *(COMPOSED if task == "text" else ())):
                    yield trial(options, task, seed, share, recipe, recipe)
            for share in ENCODER_SHARES:
                cofi = [*CONTESTANTS["l0"][1], f"{PRUNE}.structures=[heads, ffn, blocks]"]
                yield trial(options, task, seed, share, "cofi", "vtrans", cofi, of="layers")
                yield trial(options, task, seed, share, "best-vtrans", "best-vtrans", of="layers")


def trial(
    options: argparse.Namespace,
    task: str,
    seed: int,
    share: float,
    name: str,
    recipe: str,
    changes: Sequence[str] = (),
    of: str = "parameters",
) -> Trial:
    """A contestant at a share of all parameters, or of those of the layers."""
    recipe = recipe if task == "text" else ON_TASKS.get(recipe, recipe)
    steps = shared_out(recipe, round(options.steps * share_of_steps(recipe)))
    budget = [f"budget.parameters={share}", *(["budget.embeddings=false"] if of == "layers" else [])]
    overrides = [*steps, *([] if task == "text" else task_settings(recipe)), *budget, *changes, *options.overrides]
    model = public_name(options.model) if task == "text" else "minilm"
    length = "" if options.steps == STEPS else f"-{options.steps}-steps"
    label = f"{slug(name)}-{task}-{'encoder' if of == 'layers' else ''}{share}{length}-seed{seed}"
    settings = {"share": share, "of": of, "steps": options.steps}
    return Trial(label, name, recipe, overrides, seed, model, task, settings)


def task_settings(recipe: str) -> list[str]:
    """What a run on a task has, whatever its contestant; faster-vtrans keeps its own small batches, and is shorter."""
    faster = ["stages.1.steps=60", f"{PRUNE}.fit_tokens=4096"]
    return [
        "stages.*.context=128",
        f"stages.1.learning_rate={FITTED_RATE if recipe in FITTED else TASK_RATE}",
        *(faster if recipe == "faster-vtrans" else ["stages.*.batch_size=32"]),
    ]


def trimmed(model: str, data: str, task: str) -> tuple[str, int]:
    """A teacher without the tokens that `TRIM` leaves out, and the parameters that it had with them."""
    where = Path(f"{model}-trimmed")
    if not where.exists():
        abridged.trim(model, data, where, task=task, **TRIM)
    return str(where), json.loads((where / "abridged.json").read_text())["parameters"]["before"]


@functools.cache
def share_of_steps(recipe: str) -> float:
    """A recipe's steps by those of vtrans: the variants are shorter, and stay so; what quantises, too, is longer."""
    own, whole = (sum(stage.training.steps or 0 for stage in Recipe.load(name).stages) for name in (recipe, "vtrans"))
    return own / whole


def quality(options: argparse.Namespace) -> None:
    """Train and measure what has no row yet."""
    from glue import FOLDERS, teacher

    tasks = list(options.tasks) if options.glue else []
    for work, run in pending(plan(tasks, options), "pruning quality", options):
        model, data, task = options.model, options.data, None if run.task == "text" else run.task
        if task is not None:
            folder = Path(options.glue) / FOLDERS[task]
            model, data = str(teacher(task, Path(options.glue))), str(folder)
            if run.name.endswith(", trimmed"):  # shares are of what the model had before
                model, whole = trimmed(model, str(folder), task)
                budget = f"budget.parameters={round(run.settings['share'] * whole)}"
                run = replace(run, overrides=[*run.overrides, budget])
        found = train_and_measure(work, Recipe.load(run.recipe, run.overrides), model, data, run.seed, task=task)
        run.record("pruning quality", found)
        key = "perplexity" if task is None else "score"
        before, after = found["teacher"][key], found["student"][key]
        print(f"{run.label}: {before:.2f} -> {after:.2f} in {found['seconds']:.0f} s", flush=True)


def cut_to_half(model: Any, round_to: int, context: int) -> Any:
    """A copy of a model, cut to half of its FLOPs by magnitude; only its sizes matter here."""
    small = copy.deepcopy(model)
    method = Prune.model_validate({"budget": {"flops": 0.5, "context": context}, "masks": "magnitude"})
    method = method.model_copy(update={"round_to": round_to, "structures": ("hidden", "heads", "ffn")})
    attached = method.build(small, families.view(small), lambda model: None)
    attached.finish()
    return small.eval()


def speed(options: argparse.Namespace) -> None:
    """Tokens a second of a prompt and of 32 sentences at once, and of writing one token after another."""
    found, parameters = {}, {}
    for shape, (sequences, length) in {"gpt2": (1, 512), "bert": (32, 128)}.items():
        whole = untrained(shape)
        models = {"whole": whole, **{f"half, widths of {n}": cut_to_half(whole, n, length) for n in (1, 32)}}
        ids = torch.randint(100, whole.config.vocab_size, (sequences, length))
        contestants = {name: reader(model, ids) for name, model in models.items()}
        with torch.inference_mode():
            read = timed(contestants, options.rounds)
            found[f"{shape}, {sequences} x {length} tokens"] = {n: ids.numel() / s for n, s in read.items()}
            if whole.can_generate():
                written = timed({name: writer(model) for name, model in models.items()}, options.rounds)
                found[f"{shape}, writing"] = {name: WRITTEN / seconds for name, seconds in written.items()}
        parameters[shape] = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    save("speed", {"tokens_per_second": found, "parameters": parameters, "threads": torch.get_num_threads()})


def reader(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """A function that reads ids (B, T) at once: of a causal model the last position's logits."""
    more = {"use_cache": False, "logits_to_keep": 1} if model.can_generate() else {}
    return lambda: model(ids, **more)


def writer(model: Any) -> Callable[[], None]:
    """A function that writes some tokens one after another."""
    settings = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(torch.full((1, 8), 100), **settings)


def cost(options: argparse.Namespace) -> None:
    """Seconds of a step with masks, of plain distillation and of the other masks."""
    teacher = load_dense(options.model).requires_grad_(False)
    set_dropout(teacher, 0.0)
    tokens = tokenize(load_tokenizer(options.model, teacher), load_text(options.data).train[:2_000_000])
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            name: stepper(name, teacher, Blocks(tokens, options.context), options.batch_size, Path(folder))
            for name in ("distillation", "vib", "l0", "taylor", "magnitude")
        }
        found = timed(contestants, options.rounds)
    more = {name: seconds / found["distillation"] - 1 for name, seconds in found.items() if name != "distillation"}
    setting = {"batch_size": options.batch_size, "context": options.context, "threads": torch.get_num_threads()}
    save("cost", {"seconds_per_step": found, "more_than_distillation": more, **setting})


def stepper(name: str, teacher: Any, blocks: Blocks, batch_size: int, folder: Path) -> Callable[[], None]:
    """A function that takes one step of the first stage of vtrans with such masks, or without any."""
    masks = [] if name == "distillation" else [f"{PRUNE}.masks={name}", f"{PRUNE}.measure=0"]  # at work from the start
    stage = Recipe.load("vtrans", masks).stages[0]
    student = copy.deepcopy(teacher).requires_grad_(True)
    settings = [] if name == "distillation" else list(stage.methods.values())
    methods = [method.build(student, families.view(student), lambda model: None) for method in settings]
    groups = {key: group for method in methods for key, group in method.parameter_groups().items()}
    system = StudentForward(
        student,
        stage.objectives,
        ObjectiveContext.of(teacher, blocks),
        lambda: {key: value for method in methods for key, value in method.penalties().items()},
    )
    changed = {"batch_size": batch_size, "steps": 10**6, "compile": "no", "save_every": 10**9, "evaluate_every": 10**9}
    if not methods:
        changed["learning_rates"] = {}
    work = Workspace(folder / name, main=False)  # it writes nothing
    run = Run(
        system=system,
        examples=blocks,
        settings=stage.training.model_copy(update=changed),
        work=work,
        targets=lambda batch: system.teach(teacher, batch),
        before_step=lambda progress: [method.step(progress) for method in methods] and None,
        groups=groups,
    )
    trainer = Trainer(run)
    system.train()
    return trainer.step


def timed(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each, all in turn."""

    def seconds(act: Callable[[], object]) -> float:
        began = time.perf_counter()
        act()
        return time.perf_counter() - began

    return in_turns({name: lambda act=act: seconds(act) for name, act in contestants.items()}, rounds)


def save(name: str, result: dict[str, Any]) -> None:
    """Append a row, and show it."""
    append(f"pruning {name}", result)
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["quality", "speed", "cost"])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--glue", help="the folder of GLUE's tasks; without it only the text is measured")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="of vtrans and the baselines, over both stages")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", default="*", help="runs whose label matches this pattern")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="a further override of recipes")
    parser.add_argument("--rounds", type=int, default=15, help="of speed and cost")
    parser.add_argument("--context", type=int, default=128, help="tokens of a sequence, of cost")
    parser.add_argument("--batch-size", type=int, default=8, help="of cost")
    options = parser.parse_args()
    {"quality": quality, "speed": speed, "cost": cost}[options.what](options)


if __name__ == "__main__":
    main()
