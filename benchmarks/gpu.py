"""What is to be measured on a GPU, step by step; a step whose row is there is passed over. Called by benchmarks/gpu.sh.

    python benchmarks/gpu.py --data FOLDER --models FOLDER --work FOLDER [--only PATTERN] [--results FOLDER] [--tiny]

--data has `wikitext-2` and `novels` (texts in parts), `tokenizers/gpt2`, and `glue` for progressive BERT; --models has
`smollm2-135m` (made by benchmarks/real.py). What is missing there leaves out its steps, and says so. --work keeps
teachers, students and what a killed step had done of its training. `--tiny` makes its own data and small models, and
goes through every step on whatever device there is; its rows go to the work folder.

Rows are of benchmarks/results/gpu.jsonl, gpu_kernels.jsonl and training_cost.jsonl; each says the device's name.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from quantizers import bits, slug, train_and_measure
from results import RESULTS, append, read
from transformers import BertConfig, BertModel, BertTokenizerFast, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

import abridged
from abridged.core.hardware import describe
from abridged.core.record import RECORD
from abridged.data.text import load_text
from abridged.models.load import load_tokenizer
from abridged.recipe import Recipe

HERE = Path(__file__).parent
#: Seconds that a training may take where a GPU runs it: the real model's, a new teacher's, a student's.
SECONDS = {"real": 330, "teacher": 400, "student": 90}
GPTQ = ["stages.0.methods.quantize.gptq=true"]
#: Students of the headline teacher: name -> recipe, overrides. All take equal steps.
STUDENTS: dict[str, tuple[str, list[str]]] = {
    "quantgpt 8-8-8": ("quantgpt-8-8-8", []),
    "quantgpt 4-4-8": ("quantgpt-4-4-8", []),
    "quantgpt 2-2-8": ("quantgpt-2-2-8", []),
    "quantgpt 1-1-8": ("quantgpt-2-2-8", bits(1)),
    **{f"{name} 2-2-8": (f"{name}-2-2-8", []) for name in ("pact", "lsq", "laq", "twn")},
    "best 2-2-8": ("best-2-2-8", []),
}
#: GPT-2's sizes by parameters: width, layers, heads.
SHAPES = {"124M": (768, 12, 12), "355M": (1024, 24, 16), "774M": (1280, 36, 20)}


class Left(Exception):
    """A step that cannot be done here, and why."""


@dataclass
class Bench:
    """Where things are, and how long things take."""

    data: Path
    models: Path
    work: Path
    results: Path
    tiny: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its rows from others."""
        return {"device": describe()["gpu"] or "cpu"} | ({"tiny": True} if self.tiny else {})

    def needs(self, path: Path) -> Path:
        if not path.exists():
            raise Left(f"{path.name} is not there")
        return path

    def text(self) -> Path:
        """Novels and WikiText-2 to learn from, WikiText-2's other parts to be measured on."""
        folder = self.work / "text"
        if not folder.exists():
            names = ("wikitext-2",) if self.tiny else ("novels", "wikitext-2")
            texts = [load_text("wikitext-2" if self.tiny else str(self.needs(self.data / name))) for name in names]
            parts = {"train": "\n".join(text.train for text in texts)}
            parts |= {"validation": texts[-1].validation, "test": texts[-1].test}
            making = self.work / "text.new"
            making.mkdir(exist_ok=True)
            for part, words in parts.items():
                few = 20_000 if part == "train" else 3_000
                (making / f"{part}.txt").write_text(words[:few] if self.tiny else words)
            making.rename(folder)
        return folder

    def gpt2_tokenizer(self) -> GPT2TokenizerFast:
        """GPT-2's own, from its vocabulary."""
        folder = self.needs(self.data / "tokenizers" / "gpt2")
        return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))

    def fresh(self, shape: str) -> Path:
        """A GPT-2 of random weights of a true shape, with GPT-2's tokenizer."""
        folder = self.work / f"fresh-{shape}"
        if not folder.exists():
            width, layers, heads = (256, 2, 4) if self.tiny else SHAPES[shape]
            named = "bundled" if self.tiny else str(self.needs(self.data / "tokenizers" / "gpt2"))
            tokenizer = (
                load_tokenizer(named) if self.tiny else GPT2TokenizerFast(f"{named}/vocab.json", f"{named}/merges.txt")
            )
            sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 32 if self.tiny else 1024}
            end = tokenizer.eos_token_id
            torch.manual_seed(0)
            config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes)
            GPT2LMHeadModel(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    def teacher(self) -> Path:
        """The headline's teacher, which its step has made."""
        return self.needs(self.work / "teacher")

    def batch(self, size: int) -> list[str]:
        """Overrides that fill the device, and that a rehearsal has instead."""
        if self.tiny:
            words: dict[str, Any] = {"batch_size": 4, "compile": "no", "evaluate_tokens": 64, "context": 32}
        else:
            words = {"batch_size": size, "context": 512, "mixed_precision": "bf16"}
        words |= {"save_every": 50, "evaluate_every": 10**6}
        return [f"stages.*.{key}={value}" for key, value in words.items()]

    def steps(self, model: Path | str, recipe: str, overrides: list[str], seconds: float) -> int:
        """How many steps take so many seconds, by the difference of two short runs; kept for the next call."""
        if self.tiny:
            return 2
        name = f"steps of {recipe}, {Path(model).name}"
        for row in read("gpu", self.results, name=name, **self.settings):
            return max(1, int(seconds * row["steps_per_second"]))
        short, long = (self.timed(model, recipe, overrides, count) for count in (5, 25))
        speed = 20 / max(long - short, 1e-3)
        append("gpu", {"steps_per_second": speed}, self.results, name=name, settings=self.settings)
        return max(1, int(seconds * speed))

    def timed(self, model: Path | str, recipe: str, overrides: list[str], steps: int) -> float:
        return float(self.train(f"timing-{steps}", model, recipe, [*overrides, f"stages.*.steps={steps}"])["seconds"])

    def train(self, name: str, model: Path | str, recipe: str, overrides: list[str], **options: Any) -> dict[str, Any]:
        """`train_and_measure`, which a killed call's next one goes on with."""
        data = options.pop("data", None) or str(self.text())
        loaded = Recipe.load(recipe, ["stages.*.epochs=null", *overrides])
        return train_and_measure(self.work / slug(name), loaded, str(model), data, 0, **options)


Step = tuple[str, Callable[[Bench], dict[str, Any]]]


def plan() -> Iterator[Step]:
    """Every step by name, in order; see what each function says of itself."""
    yield "real, 2 bits", lambda bench: real(bench, "best-2-2-8")
    yield "real, ternary", lambda bench: real(bench, "best-ternary-2-2-8")
    yield "teacher", teacher
    for name, (recipe, overrides) in STUDENTS.items():
        yield name, lambda bench, recipe=recipe, overrides=overrides: student(bench, recipe, overrides)
    yield "bundled teacher, novels", lambda bench: bundled(bench, "novels")
    yield "bundled teacher, wikitext-2", lambda bench: bundled(bench, "wikitext-2")
    yield "suite", suite
    yield "kernels", kernels
    for shape in SHAPES:
        yield f"cost of training, {shape}", lambda bench, shape=shape: cost(bench, shape)
    for recipe in ("kngpt2", "vtrans"):
        yield recipe, lambda bench, recipe=recipe: student(bench, recipe, [])
    yield "progressive BERT", progressive_bert


def real(bench: Bench, recipe: str) -> dict[str, Any]:
    """A real teacher, SmolLM2-135M, in few bits: from the compensated start, then distilled."""
    model = bench.fresh("124M") if bench.tiny else bench.needs(bench.models / "smollm2-135m")
    shared = bench.batch(32)
    steps = bench.steps(model, recipe, shared, SECONDS["real"])
    return {"steps": steps} | bench.train(f"real-{recipe}", model, recipe, [*GPTQ, *shared, f"stages.*.steps={steps}"])


def teacher(bench: Bench) -> dict[str, Any]:
    """A GPT-2 of the 124M shape, trained from scratch on novels and WikiText-2."""
    return finetuned(bench, bench.fresh("124M"), bench.text(), bench.work / "teacher", 64, 3e-4)


def finetuned(bench: Bench, model: Path, data: Path | str, output: Path, batch: int, rate: float) -> dict[str, Any]:
    """Trained for SECONDS["teacher"]: the account of `abridged finetune`, of which a row keeps what was measured."""

    def run(steps: int, output: Path) -> dict[str, Any]:
        words = [word.removeprefix("stages.*.") for word in bench.batch(batch)]
        words += ["epochs=null", f"steps={steps}", f"learning_rate={rate}", "schedule=cosine"]
        resume = output.with_name(output.name + ".partial").exists()
        return abridged.finetune(str(model), str(data), output, overrides=words, resume=resume)

    steps = 3
    if not bench.tiny:
        known = [row["steps"] for row in read("gpu", bench.results, name=f"steps to {output.name}", **bench.settings)]
        if not known:
            took = []
            for count in (5, 25):
                timed = bench.work / f"{output.name}-{count}"
                for rubbish in (timed, timed.with_name(f"{timed.name}.partial")):  # of a call that was cut off
                    shutil.rmtree(rubbish, ignore_errors=True)
                begun = time.perf_counter()
                run(count, timed)
                took.append(time.perf_counter() - begun)
                shutil.rmtree(timed)
            known = [int(SECONDS["teacher"] * 20 / max(took[1] - took[0], 1e-3))]
            found = {"steps": known[0]}
            append("gpu", found, bench.results, name=f"steps to {output.name}", settings=bench.settings)
        steps = known[0]
    begun = time.perf_counter()
    # there, but without a row, where the time was up between the two
    account = json.loads((output / RECORD).read_text()) if output.exists() else run(steps, output)
    kept = {key: account[key] for key in ("validation", "test", "peak_memory_bytes") if key in account}
    return {"steps": steps, "seconds": round(time.perf_counter() - begun, 1), **kept}


def student(bench: Bench, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """A student of that teacher: as many steps as quantgpt-2-2-8 takes in SECONDS["student"]."""
    shared = bench.batch(32)
    steps = bench.steps(bench.teacher(), "quantgpt-2-2-8", shared, SECONDS["student"])
    own = [*overrides, *shared, f"stages.*.steps={steps}"]
    return {"steps": steps} | bench.train(f"student-{recipe}-{len(overrides)}", bench.teacher(), recipe, own)


def bundled(bench: Bench, data: str) -> dict[str, Any]:
    """A better model to come along: its architecture on the novels, then on WikiText-2."""
    first, second = bench.work / "bundled-novels", bench.work / "bundled"
    if data == "novels":
        text = bench.text() if bench.tiny else bench.needs(bench.data / "novels")
        described = bench.fresh("124M") if bench.tiny else HERE.parent / "src/abridged/assets/configs/small-gpt2.yaml"
        return finetuned(bench, described, text, first, 64, 1.5e-3)
    text = bench.text() if bench.tiny else bench.needs(bench.data / "wikitext-2")
    return finetuned(bench, bench.needs(first), text, second, 64, 5e-4)


def suite(bench: Bench) -> dict[str, Any]:
    """The tests that need a GPU; in a rehearsal, on the CPU."""
    environment = {**os.environ, "ABRIDGED_GPU_REHEARSAL": "1"} if bench.tiny else None
    where = "tests/integration/test_gpu.py" if bench.tiny else "tests"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", "gpu", where]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True)
    last = done.stdout.strip().splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    print(done.stdout[-3000:] if done.returncode else last)
    done.check_returncode()
    return {"counts": counts, "seconds": round(time.perf_counter() - begun, 1)}


def kernels(bench: Bench) -> dict[str, Any]:
    """Triton's kernels beside others': a row of gpu_kernels."""
    return script(bench, "gpu_kernels", ["--tiny"] if bench.tiny else [])


def cost(bench: Bench, shape: str) -> dict[str, Any]:
    """Tokens a second and memory of steps of every kind: a row of training_cost."""
    sizes = ["--batch-size", "2", "--context", "16", "--rounds", "1", "--steps", "1", "--warmup", "1"]
    rest = ["--only", "finetune", "quantgpt-2-2-8", "--no-memory"] if bench.tiny else ["--compile"]
    if not bench.tiny:
        sizes = ["--batch-size", "8", "--context", "512", "--rounds", "4"]
    data = str(bench.text())
    return script(bench, "training_cost", ["--model", str(bench.fresh(shape)), "--data", data, *sizes, *rest])


def script(bench: Bench, name: str, words: list[str]) -> dict[str, Any]:
    """Another benchmark, whose row stands in a file of its own."""
    command = [sys.executable, str(HERE / f"{name}.py"), *words, "--results", str(bench.results)]
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return {"seconds": round(time.perf_counter() - begun, 1)}


def progressive_bert(bench: Bench) -> dict[str, Any]:
    """Progressive BERT at BERT-base's shape on SST-2: that it runs, its time and memory."""
    glue = bench.needs(bench.data / "glue")
    words = bench.needs(bench.data / "tokenizers" / "bert-base-uncased")
    folder = bench.work / "fresh-bert"
    if not folder.exists():
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        tokenizer = BertTokenizerFast(str(words / "vocab.txt"))
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(tokenizer), **(small if bench.tiny else {}))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    steps = 2 if bench.tiny else 100
    own = [word for word in bench.batch(32) if "evaluate_tokens" not in word]
    if not (bench.work / "bert-teacher").exists():
        plain = [*(word.removeprefix("stages.*.") for word in own), f"steps={steps}"]
        abridged.finetune(str(folder), str(glue), bench.work / "bert-teacher", task="sst2", overrides=plain)
    return bench.train(
        "progressive-bert", bench.work / "bert-teacher", "progressive-bert-1-1-4",
        [*own, f"stages.*.steps={steps}"], data=str(glue), task="sst2",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "models"):
        parser.add_argument(f"--{name}", type=Path, default=Path(name))
    parser.add_argument("--work", type=Path, default=Path("build/gpu"))
    parser.add_argument("--results", type=Path, help="benchmarks/results; --work of a rehearsal")
    parser.add_argument("--only", default="*", help="steps whose name matches this pattern")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --tiny rehearses every step on the CPU")
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.results or (options.work / "results" if options.tiny else RESULTS)
    bench = Bench(options.data.resolve(), options.models.resolve(), options.work.resolve(), results, options.tiny)
    left = []
    for name, step in plan():
        if not fnmatch(name, options.only) or read("gpu", results, name=name, **bench.settings):
            continue
        begun = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            found = step(bench)
        except Left as why:
            left.append(f"{name} ({why})")
            continue
        except Exception as error:  # the other steps have minutes of their own
            left.append(f"{name} (failed: {error})")
            print(error, file=sys.stderr)
            continue
        append("gpu", found, results, name=name, settings=bench.settings)
        print(f"   {time.perf_counter() - begun:.0f} s", flush=True)
    print("all steps are done" if not left else f"left out: {'; '.join(left)}")
    failed = any("failed:" in one for one in left)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
