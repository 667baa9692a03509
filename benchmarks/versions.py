"""Packed models by this checkout and by another one, in turns within one run: whether a change made anything slower.

    git worktree add /tmp/other COMMIT && cp src/abridged/runtime/abridged_kernels.so /tmp/other/src/abridged/runtime/
    python benchmarks/versions.py /tmp/other [--threads 1] [--rounds 40]

The bundled teacher as best-1-1-8 begins with it, and BERT-base's true shape with random weights, `xtc-1-1-8` without
its training; both checkouts load the same files. Times are processor seconds, which other processes disturb less than
those of a clock. A ratio is the median, over the rounds, of the other's time by this
one's: above 1 this checkout is faster. A row of benchmarks/results/versions.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkouts import use

HERE = Path(__file__).resolve().parents[1]


def cases(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured: a name, and a call."""
    import torch

    from abridged.checkpoint.load import load

    student, bert = load(folder / "student"), load(folder / "bert")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (8, 128), generator=generator)

    def generate() -> Any:
        return student.generate(ids[:1, :16], max_new_tokens=64, min_new_tokens=64, do_sample=False)

    return {
        "student, 64 tokens one after another": generate,
        "student, 1x128": lambda: student(ids[:1], use_cache=False),
        "student, 8x128": lambda: student(ids, use_cache=False),
        "BERT-base, 1x16": lambda: bert(input_ids=ids[:1, :16]),
        "BERT-base, 1x128": lambda: bert(input_ids=ids[:1]),
        "BERT-base, 8x128": lambda: bert(input_ids=ids),
    }


def work(folder: Path, threads: int) -> None:
    """Read names of cases, and answer with processor seconds."""
    import torch

    torch.set_num_threads(threads)
    known = cases(folder)
    print(json.dumps(list(known)), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            begun = time.process_time()
            known[line.strip()]()
            print(time.process_time() - begun, flush=True)


class Worker:
    """A process that runs one checkout's code."""

    def __init__(self, checkout: Path, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, str(checkout), "--work", str(folder), "--threads", str(threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, case: str = "") -> str:
        """What it answers, to a case or as it begins."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if case:
            print(case, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


def build(folder: Path) -> None:
    """The two models, packed."""
    import encoders
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig

    from abridged import families
    from abridged.checkpoint.hf import digest_of
    from abridged.checkpoint.save import save_checkpoint
    from abridged.models.load import load_dense
    from abridged.recipe import Recipe
    from abridged.storage.format import parse_spec

    encoders.build(folder / "bert", BertConfig())
    model = load_dense("bundled")
    for method in Recipe.load("best-1-1-8").stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(torch.zeros(1, 8, dtype=torch.long)))
        attached.finish()
    record = {"recipe": {"name": "best-1-1-8"}, "teacher": "bundled", "seed": 0}
    save_checkpoint(model.eval(), folder / "student", None, record)
    for path in folder.glob("*/config.json"):  # the other checkout may know the first version of the format alone
        config = json.loads(path.read_text())
        first = {k: v for k, v in config["quantization_config"].items() if k not in ("view", "sha256", "files")}
        spec = parse_spec({**first, "version": 1})
        spec.sha256 = digest_of(load_file(path.with_name("model.safetensors")), spec)
        path.write_text(json.dumps({**config, "quantization_config": spec.to_dict()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        use(options.other)
        return work(options.work, options.threads)
    from results import append

    from abridged.runtime.kernels import kernels

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        workers = {
            "this": Worker(HERE, folder, options.threads),
            "other": Worker(options.other, folder, options.threads),
        }
        names = [json.loads(worker.ask()) for worker in workers.values()]
        results = {}
        for case in names[0]:
            taken: dict[str, list[float]] = {"this": [], "other": []}
            for turn in range(options.rounds + 2):
                order = list(workers) if turn % 2 else list(workers)[::-1]
                seconds = {name: float(workers[name].ask(case)) for name in order}
                if turn > 1:  # the first ones allocate
                    for name, one in seconds.items():
                        taken[name].append(one)
            ratio = statistics.median(other / this for this, other in zip(taken["this"], taken["other"], strict=True))
            milliseconds = {name: 1e3 * statistics.median(values) for name, values in taken.items()}
            best = {name: 1e3 * min(values) for name, values in taken.items()}
            results[case] = {"ratio": ratio, "milliseconds": milliseconds, "fastest": best}
            print(f"{case}: {ratio:.3f} times as fast; {milliseconds}, at best {best}", flush=True)
        for worker in workers.values():
            worker.end()
    commit = subprocess.run(
        ["git", "-C", str(options.other), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    compiled = kernels()
    found = {
        "other": commit.stdout.strip(),
        "kernels": compiled.path if compiled else "reference",
        "threads": options.threads,
        "rounds": options.rounds,
        "cases": results,
    }
    append("versions", found)


if __name__ == "__main__":
    main()
