"""How fast a model reads and writes, and how much memory it takes, on this machine."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.core.hardware import describe
from abridged.core.progress import seconds_since
from abridged.families.kinds import context_of, is_encoder_decoder, is_language_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: Hypotheses that an encoder-decoder keeps: summaries are searched for, not drawn.
BEAMS = 4
#: Texts that a model without a decoder reads at once: as they come in, and by the batch.
BATCHES = (1, 32)


def prompt_seconds(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Seconds in which a model reads ids (B, T) and gives the logits of the last position, or an encoder its
    states, or a model of whole texts its answer."""
    begun = time.perf_counter()
    with torch.inference_mode():
        if is_encoder_decoder(model):
            model.get_encoder()(input_ids=ids)
        elif not model.can_generate():
            model(input_ids=ids)
        else:
            model(input_ids=ids, logits_to_keep=1, use_cache=True)
    return seconds_since(begun)


def decode_seconds(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> float:
    """Seconds for each of `tokens` that `generate` writes one by one after ids (B, T), the prompt's left out.

    An encoder-decoder searches with `BEAMS` hypotheses.
    """
    beams = BEAMS if is_encoder_decoder(model) else 1

    def seconds(count: int) -> float:
        begun = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            num_beams=beams,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - begun

    return max(seconds(tokens + 1) - seconds(1), 1e-9) / tokens


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each contestant's measurements, taken in turn, so that what else the machine does falls on all.

    A first round, in which memory is taken and caches are filled, does not count.
    """
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measure in contestants.items():
            seconds = measure()
            if number:
                measured[name].append(seconds)
    return {name: statistics.median(values) for name, values in measured.items()}


#: What a process of its own runs to see what a model takes: the libraries first, which every model needs.
_MEMORY = """
import json, sys, time
import abridged, torch, transformers
from abridged.checkpoint.files import is_compressed
from abridged.checkpoint.load import load
from abridged.core.hardware import peak_memory, resident_memory
from abridged.core.names import trusts_code
from abridged.families.kinds import class_named
transformers.utils.logging.disable_progress_bar()
where = sys.argv[1]
config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=trusts_code())
kind = class_named(config)
if is_compressed(where):
    import abridged.checkpoint.skeleton, abridged.runtime.decoding
    from abridged.runtime.kernels import kernels
    kernels()
dtype = getattr(torch, sys.argv[2])
before, begun = resident_memory(), time.perf_counter()
model = load(where) if is_compressed(where) else kind.from_pretrained(where, dtype=dtype)
seconds, resident = time.perf_counter() - begun, resident_memory()
measured = {
    "load_seconds": seconds,
    "resident_bytes": resident - before,
    "peak_bytes": max(resident, peak_memory()) - before,  # Linux counts pages per core and adds them up only roughly
}
with torch.inference_mode():  # a file is read when it is used: what is mapped but not yet read takes no memory
    model(torch.zeros(1, 16, dtype=torch.long))
print(json.dumps(measured | {"in_use_bytes": resident_memory() - before}))
"""


def memory(directory: str | Path, dtype: str = "float32") -> dict[str, Any]:
    """What loading a directory takes in a new process, above one that has imported abridged and the model's class.

    Returns "load_seconds", "resident_bytes" (after loading), "peak_bytes" (while loading) and "in_use_bytes" (after a
    first text of 16 tokens; dense weights are mapped from their file and not in memory before).
    Raises AbridgedError where it cannot be loaded.
    """
    command = [sys.executable, "-W", "ignore", "-c", _MEMORY, str(directory), dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AbridgedError(f"cannot measure {directory}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def bench(
    directory: str | Path, *, prompt_tokens: int | None = None, new_tokens: int = 64, rounds: int = 5
) -> dict[str, Any]:
    """Measure a compressed directory beside its dense export in FP32.

    Args:
        prompt_tokens: how many are read at once: by default 512, and 128 of each text where nothing is written.

    Returns "packed" and "dense", each with "prompt_tokens_per_second" and "decode_tokens_per_second", or of a model
    that writes nothing "texts_per_second" by batch size; "file_bytes" and what `memory` says; and the lengths, the
    path through the kernels and the hardware; of a decoder "fast_steps", whether it writes by them, and "why_not".
    Raises AbridgedError for a directory that is no compressed model, and for lengths beyond its positions.
    """
    from abridged.checkpoint.inspect import inspect
    from abridged.checkpoint.load import load
    from abridged.exporters.dense import dense_model
    from abridged.runtime.kernels import kernels

    packed = load(directory)
    models = {"packed": packed, "dense": dense_model(packed, torch.float32)}
    if packed.can_generate():
        lengths, speeds = _reading_and_writing(models, prompt_tokens or 512, new_tokens, rounds)
    else:
        lengths, speeds = _reading(models, prompt_tokens or 128, rounds)
    compiled = kernels()
    result: dict[str, Any] = {
        **lengths,
        "kernels": "reference" if compiled is None else compiled.path,
        "hardware": describe(),
        **steps_of(packed),
    }
    with tempfile.TemporaryDirectory() as folder:
        models["dense"].save_pretrained(folder)
        for name, where in {"packed": Path(directory), "dense": Path(folder)}.items():
            result[name] = {**speeds[name], **memory(where), "file_bytes": inspect(where)["file_bytes"]}
    return result


def steps_of(model: Any) -> dict[str, Any]:
    """Of a packed decoder in memory "fast_steps", whether it writes by them, and "why_not"; of others nothing."""
    from abridged.runtime.decoding import why_slow

    if not is_language_model(model):
        return {}
    reason = why_slow(model)
    return {"fast_steps": reason is None, "why_not": reason}


Measured = tuple[dict[str, Any], dict[str, dict[str, Any]]]  # lengths, and of each model its speeds


def _reading_and_writing(models: dict[str, Any], prompt_tokens: int, new_tokens: int, rounds: int) -> Measured:
    packed = models["packed"]
    limit = context_of(packed.config)
    both = is_encoder_decoder(packed)  # then source and summary have positions of their own
    prompt_tokens = min(prompt_tokens, limit if both else limit - new_tokens - 1)
    if prompt_tokens < 1 or new_tokens + 2 > limit:
        raise AbridgedError(f"{new_tokens} new tokens leave no room for a prompt in the model's {limit} positions")
    ids = _random_ids(packed, 1, prompt_tokens)
    prompts = in_turns({name: lambda m=m: prompt_seconds(m, ids) for name, m in models.items()}, rounds)  # type: ignore[misc]
    decodes = in_turns({name: lambda m=m: decode_seconds(m, ids, new_tokens) for name, m in models.items()}, rounds)  # type: ignore[misc]
    speeds = {
        name: {
            "prompt_tokens_per_second": prompt_tokens / prompts[name],
            "decode_tokens_per_second": 1 / decodes[name],
        }
        for name in models
    }
    return {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "beams": BEAMS if both else 1}, speeds


def _reading(models: dict[str, Any], length: int, rounds: int) -> Measured:
    limit = families.view(models["dense"]).context
    if length > limit:
        raise AbridgedError(f"{length} tokens are more than the model's {limit} positions")
    speeds: dict[str, dict[str, Any]] = {name: {"texts_per_second": {}} for name in models}
    for size in BATCHES:
        ids = _random_ids(models["packed"], size, length)
        taken = in_turns({name: lambda m=m, i=ids: prompt_seconds(m, i) for name, m in models.items()}, rounds)  # type: ignore[misc]
        for name, seconds in taken.items():
            speeds[name]["texts_per_second"][size] = size / seconds
    return {"prompt_tokens": length}, speeds


def _random_ids(model: Any, rows: int, length: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
