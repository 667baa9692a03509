"""Mutated checkpoints: drawing what is done to one, doing it, and what each verb may then say."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import forgery
import kinds
from abridged.checkpoint.files import CONFIG, GENERATION, RECORD, WEIGHTS
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.core.errors import AbridgedError
from abridged.evaluation.generation import generate
from abridged.evaluation.perplexity import perplexity
from abridged.exporters import export
from abridged.models.load import load_model

SECONDS = 10
#: Values that stand for others, as JSON.
STRANGE = [
    None, True, False, -1, 0, 1, 2, 3, 7, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 40, 10**30, 0.5, 1e-5, 1e38, math.nan,
    math.inf, "", "x", "gelu", "silu", "float16", "float64", "../../up", "\ud800", [], {}, [[]], [0], {"": 0},
]  # fmt: skip
NUMBERS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-30, 1e38, 3.0, -(2.0**31), 2.0**30]
DEEP = "deep"  # stands for JSON that is nested a hundred thousand times over, which JSON could not hold here
LONG = "long"  # an integer of five thousand digits
_SIDECARS = {
    "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "x", "r": 4}',
    "chat_template.jinja": "{{ messages }}",
    "added_tokens.json": '{"<more>": 300}',
    "special_tokens_map.json": '{"eos_token": "a"}',
    "vocab.json": '{"a": 0}',
    "merges.txt": "a b\n",
    "processor_config.json": "{}",
    "config.4.0.0.json": "{}",
    "additional_chat_templates/x.jinja": "x",
    "model.safetensors.index.json": '{"weight_map": {"x": "model-9.safetensors"}}',
}


#: What an edit raises where one before it has left nothing to edit.
_NOTHING_LEFT = (ValueError, KeyError, TypeError, FileNotFoundError, SafetensorError)


class Hang(BaseException):
    """It took longer than `SECONDS`."""


def draw(seed: int) -> dict[str, Any]:
    """What is tried: the kind of checkpoint, the verb, what is done to it, and whether its digests are made to fit."""
    rng = random.Random(seed)
    verb = rng.choices(list(VERBS), [0.1 if name == "onnx" else 2 for name in VERBS])
    edits = [_edit(rng) for _ in range(rng.choice([1, 1, 1, 2]))]
    return {
        "kind": rng.choice(list(kinds.KINDS)) if verb != ["onnx"] else "quantised",  # torch takes seconds to write one
        "verb": verb[0],
        "signed": rng.random() < 0.3,
        "edits": edits,
        "seed": seed,
    }


def _edit(rng: random.Random) -> list[Any]:
    settings = [CONFIG, CONFIG, GENERATION, "tokenizer.json", "tokenizer_config.json", RECORD]
    how = rng.choice(["bytes", "bytes", "header", "cut", "set", "set", "spec", "spec", "swap", "tensor", "side"])
    if how == "bytes":
        return [
            how,
            rng.choice([WEIGHTS, *settings]),
            [[rng.random(), rng.randrange(8)] for _ in range(rng.randint(1, 3))],
        ]
    if how == "header":
        return [how, [[rng.random(), rng.randrange(256)] for _ in range(rng.randint(1, 3))]]
    if how == "cut":
        return [how, rng.choice([WEIGHTS, *settings]), rng.random()]
    if how == "set":
        return [how, rng.choice(settings), [rng.random() for _ in range(6)], rng.choice([*STRANGE, DEEP, LONG])]
    if how == "spec":
        return ["set", CONFIG, ["quantization_config", *(rng.random() for _ in range(6))], rng.choice(STRANGE)]
    if how == "swap":  # a setting for another that a config might well have
        key, value = rng.choice(
            [("n_head", 4), ("n_layer", (1 << 31) - 1), ("n_layer", 900), ("layer_norm_epsilon", 0.1), ("n_inner", 7),
             ("activation_function", "relu"), ("vocab_size", 1 << 30), ("architectures", ["BertForMaskedLM"]),
             ("scale_attn_weights", False), ("num_labels", 10**9), ("auto_map", {"AutoConfig": "x.Y"}),
             ("configuration_files", ["config.4.0.0.json"]), ("tie_word_embeddings", False), ("n_positions", 1 << 40),
             ("num_beams", 100_000), ("eos_token_id", 5), ("reorder_and_upcast_attn", True), ("dtype", "float16")]
        )  # fmt: skip
        return ["swap", rng.choice([CONFIG, CONFIG, GENERATION]), key, value]
    if how == "tensor":
        return [how, rng.random(), rng.choice(["value", "value", "all", "drop", "dtype", "shape", "empty"]),
                rng.random(), rng.choice(NUMBERS)]  # fmt: skip
    return rng.choice([["remove", rng.choice([WEIGHTS, *settings])], ["link", rng.choice([WEIGHTS, *settings])],
                       *([["add", name] for name in _SIDECARS])])  # fmt: skip


def mutate(directory: Path, trial: dict[str, Any]) -> None:
    """Do to a checkpoint what a trial says."""
    for how, *given in trial["edits"]:
        with contextlib.suppress(*_NOTHING_LEFT):
            _EDITS[how](directory, *given)
    if trial["signed"]:
        with contextlib.suppress(ValueError, RecursionError, AbridgedError):
            forgery.sign(directory)


def _flip(directory: Path, name: str, bits: list[Any]) -> None:
    data = bytearray((directory / name).read_bytes())
    for place, bit in bits:
        data[int(place * len(data))] ^= 1 << bit
    (directory / name).write_bytes(data)


def _header(directory: Path, places: list[Any]) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    length = 8 + int.from_bytes(data[:8], "little")
    for place, value in places:
        data[int(place * length)] = value
    (directory / WEIGHTS).write_bytes(data)


def _cut(directory: Path, name: str, share: float) -> None:
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[: int(share * len(data))])


def _set(directory: Path, name: str, path: list[Any], value: Any) -> None:
    data = node = json.loads((directory / name).read_text())
    for step in path:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = step if isinstance(step, str) else keys[int(step * len(keys))]
        if not isinstance(node[key], (dict, list)) or not node[key] or step == path[-1]:
            break
        node = node[key]
    node[key] = "\0" if value in (DEEP, LONG) else value
    text = json.dumps(data)
    for name_of, written in ((DEEP, "[" * 100_000), (LONG, "9" * 5_000)):
        text = text.replace('"\\u0000"', written) if value == name_of else text
    (directory / name).write_text(text)


def _swap(directory: Path, name: str, key: str, value: Any) -> None:
    forgery.edit(directory / name, lambda data: data.update({key: value}))


def _tensor(directory: Path, place: float, how: str, where: float, number: float) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = sorted(tensors)[int(place * len(tensors))]
    tensor = tensors[name].clone()
    whole = tensor.flatten()
    if how in ("value", "all") and tensor.numel():
        limits = None if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
        value = number if limits is None else int(min(max(number if number == number else 0, limits.min), limits.max))
        whole[slice(None) if how == "all" else int(where * len(whole))] = value
    elif how == "drop":
        del tensors[name]
    elif how == "dtype":
        tensor = tensor.to(random.Random(where).choice([torch.float16, torch.bfloat16, torch.float64, torch.int32]))
    elif how == "shape":
        tensor = whole[: int(where * len(whole))].clone()
    elif how == "empty":
        tensors |= {f"{name}.{i}": torch.zeros(0) for i in range(5_000)}
    if name in tensors:
        tensors[name] = tensor
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def _add(directory: Path, name: str) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(_SIDECARS[name])


def _link(directory: Path, name: str) -> None:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    shutil.move(directory / name, elsewhere / name)
    (directory / name).symlink_to(elsewhere / name)


_EDITS = {
    "bytes": _flip, "header": _header, "cut": _cut, "set": _set, "swap": _swap, "tensor": _tensor, "add": _add,
    "link": _link, "remove": lambda directory, name: (directory / name).unlink(),
}  # fmt: skip


@torch.no_grad()
def _logits(model: Any) -> Any:
    return model(kinds.IDS).logits.tolist()


def _inspected(directory: Path) -> Any:
    account = inspect(directory)
    return account["modules"], account["parts"], account["verified"]


def _evaluated(directory: Path) -> Any:
    measured = perplexity(*load_model(directory), "a few words that are read, and a few more", limit=30)
    values = [one.value for one in measured.measurements]
    assert all(math.isfinite(value) or value == math.inf for value in values), "a measurement is not a number"
    return values


def _exported(directory: Path, format: str, **options: Any) -> Any:
    output = directory.parent / "exported"
    try:
        export(directory, output, format=format, **options)
        files = [path for path in [output, *sorted(output.rglob("*"))] if path.is_file() and path.name != "README.md"]
        return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    finally:
        shutil.rmtree(output, ignore_errors=True) if output.is_dir() else output.unlink(missing_ok=True)


VERBS = {
    "load": lambda directory: _logits(load(directory)),
    "from_pretrained": lambda directory: _logits(AutoModelForCausalLM.from_pretrained(directory)),
    "inspect": _inspected,
    "generate": lambda directory: list(generate(*load_model(directory), "a b", max_new_tokens=4, temperature=0)),
    "evaluate": _evaluated,
    "dense": lambda directory: _exported(directory, "dense", uniform=True),
    "gguf": lambda directory: _exported(directory, "gguf", dtype="float32", uniform=True),
    "compressed-tensors": lambda directory: _exported(directory, "compressed-tensors"),
    "onnx": lambda directory: _exported(directory, "onnx"),
}


class Trials:
    """Tries mutations of the checkpoints in `folder`, one of each kind, made from a teacher when first asked."""

    def __init__(self, teacher: Path, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.place = folder / "place" / "checkpoint"  # the same for all: exports tell a model's name
        self._expected: dict[tuple[str, str], Any] = {}
        self.refused = 0
        disable_progress_bar()

    def _put(self, kind: str) -> None:
        if not (whole := self.folder / kind).exists():
            kinds.write(self.teacher, kind, whole)
        shutil.rmtree(self.place.parent, ignore_errors=True)
        shutil.copytree(whole, self.place)

    def _run(self, verb: str) -> Any:
        """(what came of it or its error, whether a note or a warning was printed)."""
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            try:
                result = VERBS[verb](self.place)
                return result, any("note:" in line or "warning" in line for line in printed.getvalue().splitlines())
            except AbridgedError as error:
                return error, False

    def expected(self, kind: str, verb: str) -> Any:
        """What comes of a checkpoint that nobody has touched: a result, or a refusal."""
        if (kind, verb) not in self._expected:
            self._put(kind)
            self._expected[kind, verb] = self._run(verb)[0]
        return self._expected[kind, verb]

    def wrong(self, trial: dict[str, Any]) -> str | None:
        """What is wrong with what comes of a trial: a crash, a hang, another result without a word. None: nothing."""
        expected = self.expected(trial["kind"], trial["verb"])
        self._put(trial["kind"])
        mutate(self.place, trial)
        signal.signal(signal.SIGALRM, _hang)
        signal.alarm(SECONDS if trial["verb"] != "onnx" else 6 * SECONDS)
        try:
            result, noted = self._run(trial["verb"])
        except Hang:
            return f"it hangs: more than {SECONDS} seconds"
        except Exception as error:
            if trial["verb"] == "from_pretrained" and not isinstance(error, (MemoryError, AssertionError)):
                self.refused += 1  # transformers itself refuses in words of its own
                return None
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            signal.alarm(0)
        if isinstance(result, AbridgedError):
            self.refused += 1
            text = str(result)
            return None if 0 < len(text) < 1_000 and "\n" not in text else f"no sentence: {text[:300]!r}"
        if trial["signed"] or noted or json.dumps(result) == json.dumps(expected, default=str):
            return None
        return "another result, without a word"


def _hang(*_: Any) -> None:
    raise Hang
