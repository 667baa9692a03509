"""What a training step costs: plain fine-tuning against a bare torch loop, distillation and QuantGPT against that.

    python benchmarks/training_cost.py [--model bundled] [--batch-size 16] [--context 256] [--compile] [--quick]

All contestants train copies of one model in one process, a few steps each in turn and in another order every round:
what else the machine does falls on all alike. Peak memory is measured in a process for each. A row of
benchmarks/results/training_cost.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from results import append, quick_settings, speed_options

from abridged import families
from abridged.core.hardware import peak_memory
from abridged.core.measurement import Measured
from abridged.core.names import public_name
from abridged.core.settings import TrainingSettings
from abridged.data.blocks import Blocks, tokenize
from abridged.data.text import load_text
from abridged.models.load import load_dense, load_tokenizer
from abridged.objectives.settings import Contrastive, Labels, Logits, Objective
from abridged.recipe import Recipe, Stage
from abridged.training.loop import Trainer
from abridged.training.modes import set_dropout
from abridged.training.processes import autocast
from abridged.training.runners import Pass, Whole
from abridged.training.workspace import Workspace

BANKS = ("none", "vocabulary", "position")
#: What each speed is set against.
AGAINST = {
    "finetune": "bare torch loop",
    "distillation": "finetune",
    "quantgpt-2-2-8": "finetune",
    "quantgpt-2-2-8 without contrastive": "finetune",
    **{f"quantgpt-2-2-8, bank {bank}": "quantgpt-2-2-8 without contrastive" for bank in BANKS},
}
CONTESTANTS = ("bare torch loop", *AGAINST)


class Bench:
    """One model and text, and the contestants made of them; each is a function that does one optimiser step."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.teacher = load_dense(options.model).requires_grad_(False)
        set_dropout(self.teacher, 0.0)
        self.view = families.view(self.teacher)
        tokens = tokenize(load_tokenizer(options.model, self.teacher), load_text(options.data).train)
        self.settings = TrainingSettings(
            steps=10**9, batch_size=options.batch_size, context=options.context, compile="no",
            save_every=10**9, evaluate_every=10**9,
        )  # fmt: skip
        self.context = self.settings.context_within(self.view.context)
        self.blocks = Blocks(tokens, self.context)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher.to(self.device)

    def contestant(self, name: str) -> Callable[[], None]:
        torch.manual_seed(0)
        student = copy.deepcopy(self.teacher).requires_grad_(True)
        if name == "bare torch loop":
            return self._bare(student)
        if name == "finetune":
            return self._ours(student, {"labels": Labels()}, {})
        if name == "distillation":
            return self._ours(student, {"logits": Logits()}, {})
        stage = Recipe.load("quantgpt-2-2-8").stages[0]
        objectives: dict[str, Objective] = dict(stage.objectives)
        contrastive = objectives.pop("contrastive")
        assert isinstance(contrastive, Contrastive)
        if "bank" in name:
            objectives["contrastive"] = contrastive.model_copy(update={"bank": name.rsplit(" ", 1)[1]})
        elif "without" not in name:
            objectives["contrastive"] = contrastive
        return self._ours(student, objectives, stage.methods)

    def _bare(self, model: Any) -> Callable[[], None]:
        """What anyone would write with Hugging Face and torch: all logits, cross-entropy, AdamW."""
        self._compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        order, steps = self.blocks.order(0, 1), iter(range(10**9))
        size = self.options.batch_size

        def step() -> None:
            start = next(steps) * size
            batch = self.blocks.batch(order[start : start + size]).to(self.device)
            inputs, labels = batch.input_ids, batch.labels
            with autocast(self.settings):
                logits = model(input_ids=inputs, use_cache=False).logits
                loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        model.train()
        return step

    def _ours(
        self, student: Any, objectives: Mapping[str, Objective], methods: Mapping[str, Any]
    ) -> Callable[[], None]:
        stage = Stage(methods=methods, objectives=objectives, training=self.settings)
        given = Pass(
            number=0,
            stage=stage,
            examples=self.blocks,
            work=Workspace(tempfile.gettempdir(), main=False),  # it writes nothing
            device=self.device,
            width=self.view.hidden_size,
            layers=self.view.layers,
            validate=lambda student: Measured,
            teacher=self.teacher if any(objective.needs_teacher for objective in objectives.values()) else None,
        )
        runner = Whole(given)
        trainer = Trainer(runner.training(student, runner.attach(student)))
        self._compile(student)
        trainer.run.system.train()

        def step() -> None:
            trainer.step()
            trainer.report(lambda *_, **__: None)

        return step

    def _compile(self, model: Any) -> None:
        if self.options.compile:
            for path in self.view.blocks:
                model.get_submodule(path).compile(dynamic=False)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_speed(bench: Bench, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Tokens per second of each contestant in each round."""
    options = bench.options
    if options.compile:  # the teacher's blocks too, as training does
        bench._compile(bench.teacher)
    steps = {name: bench.contestant(name) for name in names}
    for step in steps.values():
        for _ in range(options.warmup):
            step()
    speeds: dict[str, list[float]] = {name: [] for name in names}
    tokens = options.steps * options.batch_size * bench.context
    shuffle = random.Random(0)
    for number in range(options.rounds):
        for name in shuffle.sample(names, len(names)):
            synchronize()
            began = time.perf_counter()
            for _ in range(options.steps):
                steps[name]()
            synchronize()
            speeds[name].append(tokens / (time.perf_counter() - began))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return speeds


def measure_memory(bench: Bench, name: str) -> dict[str, int]:
    """Bytes at most before and while one contestant trains some steps, in a process that does nothing else."""
    before = peak_memory()  # libraries, text and teacher
    step = bench.contestant(name)
    for _ in range(max(3, bench.options.steps)):
        step()
    return {"peak_bytes_before": before, "peak_bytes": peak_memory()}


def memory_of(name: str) -> dict[str, int]:
    """`measure_memory` in a process of its own."""
    command = [sys.executable, *sys.argv, "--memory-of", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bank_bytes(bench: Bench) -> dict[str, int]:
    """What each kind of bank takes when the whole text was read: a byte a number, and a scale, for each row."""
    contrastive = Recipe.load("quantgpt-2-2-8").stages[0].objectives["contrastive"]
    rows = {"none": 0, "vocabulary": bench.teacher.config.vocab_size, "position": len(bench.blocks) * bench.context}
    return {bank: count * (contrastive.dimensions + 4) for bank, count in rows.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--context", type=int, help="all that the model's positions allow, if not given")
    parser.add_argument("--steps", type=int, default=3, help="of each contestant in a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--compile", action="store_true", help="torch.compile of every contestant's blocks")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--no-memory", action="store_true", help="measure speed alone")
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    few = ["bare torch loop", "finetune", "distillation", "quantgpt-2-2-8"]
    return speed_options(parser, rounds=2, steps=1, warmup=1, only=few, no_memory=True)


def main() -> None:
    options = parse()
    bench = Bench(options)
    if options.memory_of:
        print(json.dumps(measure_memory(bench, options.memory_of)))
        return
    names = tuple(options.only)
    speeds = measure_speed(bench, names)
    memory = {} if options.no_memory else {name: memory_of(name) for name in names}
    rows = {}
    for name in names:
        row: dict[str, Any] = {"tokens_per_second": statistics.median(speeds[name]), "rounds": speeds[name]}
        other = AGAINST.get(name)
        if other in names:
            row["against"] = other
            row["speed_ratio"] = statistics.median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))
        row |= memory.get(name, {})
        if other in memory:
            row["memory_ratio"] = memory[name]["peak_bytes"] / memory[other]["peak_bytes"]
        rows[name] = row
        ratio = f"{row['speed_ratio']:.3f} of {other}" if "speed_ratio" in row else ""
        size = f"{row['peak_bytes'] / 2**20:8,.0f} MB" if "peak_bytes" in row else ""
        print(f"{name:36} {row['tokens_per_second']:10,.0f} tokens/s {size}  {ratio}")
    result = {
        "data": public_name(options.data),
        "batch_size": options.batch_size,
        "context": bench.context,
        "compile": options.compile,
        "steps_a_round": options.steps,
        "contestants": rows,
        "bank_bytes_after_one_epoch": bank_bytes(bench),
    }
    about = {"model": public_name(options.model), "settings": quick_settings(options)}
    append("training_cost", result, options.results, **about)


if __name__ == "__main__":
    main()
