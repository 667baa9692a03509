"""Loading checkpoints by this checkout and by one before digests covered more than weights, in turns within one run.

    git worktree add /tmp/other COMMIT && cp src/abridged/runtime/abridged_kernels.so /tmp/other/src/abridged/runtime/
    python benchmarks/loading.py /tmp/other [--version 2] [--threads 1] [--rounds 20] [--quick]

The bundled teacher as best-1-1-8 begins with it, and BERT-base's true shape with random weights, each with a
tokenizer: here as it is written now, there in a version of the format that the other one reads. Times are processor
seconds; a ratio is the median, over the rounds, of this one's time by the other's: below 1 this checkout is faster.
Without another checkout this one is measured alone. A row of benchmarks/results/loading.jsonl.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkouts import use

HERE = Path(__file__).resolve().parents[1]
WAYS = ("load", "from_pretrained")
MODELS = ("student", "bert")


def build(folder: Path, version: int) -> None:
    """Both models, as this checkout writes them in `this`, and in `other` in that version."""
    import encoders
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig

    from abridged import families
    from abridged.checkpoint.hf import digest_of
    from abridged.checkpoint.load import load
    from abridged.checkpoint.save import save_checkpoint
    from abridged.models.load import load_dense, load_tokenizer
    from abridged.recipe import Recipe
    from abridged.storage.format import parse_spec

    tokenizer, record = load_tokenizer("bundled"), {"teacher": "bundled", "seed": 0}
    model = load_dense("bundled")
    for method in Recipe.load("best-1-1-8").stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(torch.zeros(1, 8, dtype=torch.long)))
        attached.finish()
    encoders.build(folder / "bert", BertConfig())
    save_checkpoint(model.eval(), folder / "this" / "student", tokenizer, record)
    save_checkpoint(load(folder / "bert"), folder / "this" / "bert", tokenizer, record)
    for name in MODELS:
        path = shutil.copytree(folder / "this" / name, folder / "other" / name) / "config.json"
        config = json.loads(path.read_text())
        newer = {key: None for key, first in (("view", 2), ("files", 3)) if version < first}
        spec = parse_spec({**config["quantization_config"], **newer, "version": version})
        spec.sha256 = digest_of(load_file(path.with_name("model.safetensors")), spec)
        path.write_text(json.dumps({**config, "quantization_config": spec.to_dict()}))


def work(checkout: Path, folder: Path, threads: int) -> None:
    """Read "way model", and answer with processor seconds."""
    use(checkout)
    import torch
    import transformers

    from abridged.checkpoint.load import load

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    classes = {
        name: getattr(transformers, json.loads((folder / name / "config.json").read_text())["architectures"][0])
        for name in MODELS
    }
    print("ready", flush=True)
    for line in sys.stdin:
        way, name = line.split()
        begun = time.process_time()
        load(folder / name) if way == "load" else classes[name].from_pretrained(folder / name)
        print(time.process_time() - begun, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--version", type=int, default=2, help="of the format, that the other checkout reads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    from results import append, quick_settings, speed_options

    options = speed_options(parser, rounds=3)
    checkouts = {"this": HERE} | ({"other": options.other} if options.other else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, options.version)
        sizes = {name: (folder / "this" / name / "model.safetensors").stat().st_size for name in MODELS}
        workers = {}
        for side, checkout in checkouts.items():
            command = [sys.executable, __file__, "work", str(checkout), str(folder / side), str(options.threads)]
            workers[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert workers[side].stdout.readline() == "ready\n"
        seconds = {f"{way} {name}": {side: [] for side in checkouts} for way in WAYS for name in MODELS}
        for number in range(options.rounds + 2):
            for case, sides in seconds.items():
                for side in sides if number % 2 else reversed(sides):
                    print(case, file=workers[side].stdin, flush=True)
                    answer = float(workers[side].stdout.readline())
                    if number >= 2:  # the first ones import what is needed
                        sides[side].append(answer)
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    found = {case: {side: statistics.median(taken) for side, taken in sides.items()} for case, sides in seconds.items()}
    if options.other:
        for case, sides in seconds.items():
            ratios = (a / b for a, b in zip(sides["this"], sides["other"], strict=True))
            found[case]["ratio"] = statistics.median(ratios)
    result = {
        "cases": found,
        "file_bytes": sizes,
        "rounds": options.rounds,
        "version": options.version,
        "threads": options.threads,
    }
    append("loading", result, options.results, settings=quick_settings(options))
    for case, row in found.items():
        there = f", {row['other']:.3f} s there, ratio {row['ratio']:.2f}" if options.other else ""
        print(f"{case}: {row['this']:.3f} s here{there}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
