"""Every type of model that is served, through everything that is done to models; the table of docs/models.md.

    python benchmarks/families.py
    python benchmarks/families.py --only qwen3 t5 [--dry]    # dry: says what it finds, and writes nothing

Tiny random models of two layers (tests/tiny.py). Each is quantised at 2 and at 1 bits and trained for a step, factored,
and pruned; each result is packed, written, and reloaded in a fresh process, which answers, and writes or labels; the
quantised one is exported dense. A cell is the largest difference from the trained model in standard deviations of its
answers, or the one sentence of a refusal. Each type is a row of benchmarks/results/families.jsonl, of which the page is
made anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from results import RESULTS, append, read

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.pruning.method import Prune
from abridged.methods.quantization.method import Quantize
from abridged.training.gates import ALL, answers, cut_gate, difference, logits_gate, refuse, steps_gate
from abridged.training.modes import make_trainable

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import tiny  # noqa: E402

PAGE = ROOT / "docs/models.md"
#: What is left to prune where whole blocks must stay.
NO_BLOCKS = ("hidden", "heads", "ffn")
GROUPS = {
    "first": tiny.FIRST,
    "second": tiny.SECOND,
    "library": tiny.LIBRARY,
    "heads": tiny.HEADS_OF,
    "refused": tiny.REFUSED,
}
TOKENS = 6  #: that a fresh process writes


def quantize(bits: int) -> Quantize:
    """Quantisation of all matrices; activations stay, as a dense export has no place for theirs."""
    settings = {"weights": {"bits": bits}, "embeddings": {"bits": bits}, "activations": {"bits": None}}
    return Quantize.model_validate(settings)


#: What is done to a model, by the column of the table.
METHODS = {
    "2 bits": quantize(2),
    "1 bit": quantize(1),
    "factored": Kronecker(),
    "pruned": Prune.model_validate({"budget": {"parameters": 0.7}, "masks": "magnitude"}),
}


def trained(model: Any, method: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """The model after a stage of one step that asks it to answer as before."""
    student: Any = make_trainable(copy.deepcopy(model))
    wanted = answers(model, inputs)
    attached = method.build(student, families.view(student), lambda model, tokens=None: model(**inputs))
    attached.step(0.0)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    found = [x for x in student(**inputs).values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    loss = sum((x - y).square().mean() for x, y in zip(found, wanted, strict=True))
    loss.backward()
    if not any(p.grad is not None and bool(p.grad.any()) for p in parameters):
        raise RuntimeError("the loss has no gradient")
    optimizer.step()
    attached.step(1.0)
    attached.finish()
    return student.eval()


def written(model: Any, inputs: dict[str, torch.Tensor]) -> list[Any]:
    """Tokens that a model writes greedily, or the labels or places that it gives; nothing where it does neither."""
    if model.can_generate():
        given = {name: x.clone() for name, x in inputs.items() if name != "decoder_input_ids"}  # BLIP writes into its
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        found: list[Any] = model.generate(**given, **options)[:, -TOKENS:].tolist()
        return found
    with torch.no_grad():
        answer = model(**inputs)
    logits = getattr(answer, "logits", getattr(answer, "start_logits", None))
    return [] if logits is None else logits.argmax(-1).tolist()


def row(name: str, directory: Path) -> dict[str, Any]:
    """Everything but the fresh process, whose directories are left in `directory`."""
    began = time.perf_counter()
    kind, config = (tiny.TINY | tiny.REFUSED)[name]()
    group = next(group for group, names in GROUPS.items() if name in names)
    found: dict[str, Any] = {"group": group, "type": config.model_type, "class": kind.__name__, "cells": {}}
    try:
        view = families.view_of_config(kind, config)
        if group != "library":  # where nobody refuses: convolutions weigh more in models as small as these
            families.refuse_uncompressed(view)
    except AbridgedError as error:
        return {**found, "refused": str(error)}
    model = tiny.build(name)
    inputs = tiny.inputs(model)
    cells = found["cells"]
    for column, method in METHODS.items():
        where = directory / f"{name}={column}"

        def made(where: Path = where, method: Any = method) -> Any:
            try:  # of the others the row itself is the gate
                refuse(kind, config, [method] if isinstance(method, Prune) else [])
            except AbridgedError as error:
                if "leave blocks out" not in str(error):
                    raise
                method = Prune.model_validate({**method.model_dump(), "structures": NO_BLOCKS})
                found["note"] = str(error)
            student = trained(model, method, inputs)
            save_checkpoint(student, where, None, {})
            expected = {"inputs": inputs, "answers": answers(student, inputs), "written": written(student, inputs)}
            torch.save(expected, where / "expected.pt")

        cells[column] = tried(made)
    if cells["pruned"] is None:
        cells["cut"] = tried(lambda: cut_gate(model, view, frozenset(NO_BLOCKS) if "note" in found else ALL))
    if view.logits is not None:
        cells["logits"] = tried(lambda: logits_gate(model, view))
    if model.can_generate() and set(inputs) == {"input_ids"}:
        cells["steps"] = tried(lambda: steps_gate(model))
    packed = directory / f"{name}=2 bits"
    if cells["2 bits"] is None:
        cells["dense"] = tried(lambda: dense(packed, directory / f"{name} dense"))
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def dense(packed: Path, output: Path) -> float:
    """How far the dense export of a checkpoint is from what it answers."""
    export(packed, output, dtype="float32")
    expected = torch.load(packed / "expected.pt", weights_only=True)
    kind = type(load(packed))
    return difference(answers(kind.from_pretrained(output), expected["inputs"]), expected["answers"])


def tried(what: Any) -> Any:
    """What it gives, the sentence with which it is refused, or the error that it should not have ended in."""
    try:
        return what()
    except AbridgedError as error:
        return {"refused": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def reload(directory: Path) -> dict[str, Any]:
    """In a fresh process: what each checkpoint answers, and whether it writes what it did when it was made."""
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*=*")):
        if not (path / "expected.pt").exists():
            continue
        expected = torch.load(path / "expected.pt", weights_only=True)

        def answered(path: Path = path, expected: Any = expected) -> dict[str, Any]:
            model = load(path)
            apart = difference(answers(model, expected["inputs"]), expected["answers"])
            same = written(model, expected["inputs"]) == expected["written"]
            return {"reloaded": apart, "writes": same if expected["written"] else None}

        found[path.name] = tried(answered)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="rows of the table by name")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="only make docs/models.md of the rows that are there")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.reload:
        print(json.dumps(reload(options.reload)))
        return
    every = [*tiny.TINY, *tiny.REFUSED]
    if not options.page:
        for name, found in measure(options.only or every).items():
            if not options.dry:
                append("families", found, options.results, name=name)
    if options.page or (options.results == RESULTS and not options.dry):
        from models_page import page

        rows = {row["name"]: row for row in read("families")}
        PAGE.write_text(page({name: rows[name] for name in every if name in rows}))


def measure(names: list[str]) -> dict[str, Any]:
    """The rows of the table, each with what a fresh process found; said as they come."""
    with tempfile.TemporaryDirectory() as temporary:
        rows = {}
        for name in names:
            rows[name] = row(name, Path(temporary))
            told = rows[name].get("refused") or {k: v for k, v in rows[name]["cells"].items() if v is not None}
            print(f"{name}: {told} {rows[name].get('seconds', '')}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--reload", temporary]
        fresh = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for where, found in fresh.items():
            name, _, column = where.partition("=")
            rows[name]["cells"][column] = found
            print(f"{name}, {column}, reloaded: {found}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
