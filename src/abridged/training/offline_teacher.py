"""A teacher's answers, computed once and kept on disk, so that training does without the teacher in memory.

A folder holds `cache.json`, which says what was asked of whom, and shards of consecutive blocks in safetensors:
`log_probabilities` (n, T, k) and `indices` (n, T, k) of the likeliest k entries, `log_rest` (n, T) of all others
together, `label_log_probability` (n, T), and `last_hidden` (n, T, d). Numbers are FP16: log probabilities, unlike
logits, lose little by it where it matters, near 0.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from abridged.core.atomic import write_atomically, written_file
from abridged.core.errors import AbridgedError
from abridged.core.modes import evaluating
from abridged.core.progress import progress
from abridged.data.batch import Batch
from abridged.data.blocks import Blocks
from abridged.models.load import weights_hash
from abridged.objectives.base import CachedOutputs, Outputs, TopLogits, outputs_of
from abridged.objectives.chunked import chunks, entries

PARTS = frozenset({"top_logits", "last_hidden"})
VERSION = 1
_DESCRIPTION = "cache.json"
_SHARD_TOKENS = 2**16
_LIMIT = 65504.0  # the largest FP16 number


def cache_teacher(
    teacher: nn.Module,
    blocks: Blocks,
    directory: str | Path,
    *,
    parts: Collection[str] = PARTS,
    top_k: int = 64,
    temperature: float = 1.0,
    batch_size: int = 8,
    show: bool = True,
) -> None:
    """Asks `teacher` about every block and writes what it says to `directory`; goes on where an earlier call ended.

    Processes of one run share the work, in a directory that all of them reach. Matrix products follow autocast.

    Args:
        teacher: a Hugging Face causal language model.
        blocks: the training text.
        directory: made if need be.
        parts: what is kept, "top_logits" or "last_hidden" or both (see `Objective.cached_parts`).
        top_k: how many of the likeliest vocabulary entries are kept.
        temperature: divides the logits, as in the objective that will read them.
        batch_size: blocks in a forward pass.
        show: draw a progress bar.

    Raises:
        AbridgedError: the directory holds answers to other questions, or cannot be written.
    """
    directory = Path(directory)
    top_k = min(top_k, teacher.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    wanted = {
        "teacher": weights_hash(teacher),
        "data": blocks.fingerprint(),
        "blocks": len(blocks),
        "context": blocks.context,
        "top_k": top_k,
        "temperature": temperature,
    }
    alone = not (distributed.is_available() and distributed.is_initialized())
    rank, processes = (0, 1) if alone else (distributed.get_rank(), distributed.get_world_size())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / _DESCRIPTION).exists():
            _check(directory, wanted, parts)
        else:
            description = {"version": VERSION, **wanted, "parts": sorted(parts), "shard_blocks": _shard_blocks(blocks)}
            write_atomically(directory / _DESCRIPTION, json.dumps(description, indent=1))
        kept = _describe(directory)
        size = kept["shard_blocks"]
        with progress("teacher", len(blocks), show=show) as update, evaluating(teacher):
            for number, start in enumerate(range(0, len(blocks), size)):
                stop = min(start + size, len(blocks))
                path = _shard(directory, number)
                if number % processes == rank and not path.exists():
                    tensors = _answers(teacher, blocks, start, stop, kept, batch_size)
                    with written_file(path) as temporary:
                        save_file(tensors, temporary)
                update(stop)
    except OSError as error:
        raise AbridgedError(f"cannot write the teacher cache {directory}: {error}") from error
    if not alone:
        distributed.barrier()


@torch.no_grad()
def _answers(
    teacher: nn.Module, blocks: Blocks, start: int, stop: int, kept: dict[str, Any], batch_size: int
) -> dict[str, Tensor]:
    device = next(teacher.parameters()).device
    batches = []
    for first in range(start, stop, batch_size):
        index = torch.arange(first, min(first + batch_size, stop))
        batch = blocks.batch(index).to(device)
        outputs = outputs_of(teacher, batch)
        tensors = {}
        if "last_hidden" in kept["parts"]:
            tensors["last_hidden"] = outputs.last_hidden.float().clamp(-_LIMIT, _LIMIT).half()
        if "top_logits" in kept["parts"]:
            tensors.update(top_logits(outputs, batch.labels, kept["top_k"], kept["temperature"]))
        batches.append({name: tensor.cpu() for name, tensor in tensors.items()})
    with torch.autocast("cpu", enabled=False):  # autocast promotes the tensors of a cat, and knows no FP16 on CPUs
        return {name: torch.cat([tensors[name] for tensors in batches]) for name in batches[0]}


@torch.no_grad()
def top_logits(outputs: Outputs, labels: Tensor, top_k: int, temperature: float = 1.0) -> dict[str, Tensor]:
    """The likeliest entries of the next-token distributions, as stored.

    Args:
        outputs: of the teacher, on B sequences of T tokens.
        labels: (B, T) int64.
        top_k: k.
        temperature: divides the logits, but not those that `label_log_probability` comes from.

    Returns:
        `log_probabilities` (B, T, k) float16, `indices` (B, T, k) int32 (uint16 up to 65,536 entries), `log_rest`
        and `label_log_probability` (B, T) float16.
    """
    head = outputs.language_head
    weight, bias = head.weights()
    hidden, wanted = head.inputs(outputs.last_hidden).flatten(0, -2), labels.clamp_min(0).flatten()
    parts = []
    for rows, log_q in chunks(hidden, weight, bias, head.cap):
        label = log_q.gather(1, wanted[rows].unsqueeze(-1)).squeeze(-1)
        if temperature != 1:
            torch.log_softmax(log_q / temperature, -1, out=log_q)
        top, indices = log_q.topk(top_k)
        rest = log_q.scatter_(1, indices, -torch.inf).logsumexp(-1)
        parts.append((top, indices, rest, label))
    small = torch.uint16 if entries(weight) <= 2**16 else torch.int32
    names = {
        "log_probabilities": torch.half,
        "indices": small,
        "log_rest": torch.half,
        "label_log_probability": torch.half,
    }
    return {
        name: torch.cat(tensors).to(kind).view(*labels.shape, *tensors[0].shape[1:])
        for (name, kind), tensors in zip(names.items(), zip(*parts, strict=True), strict=True)
    }


class OfflineTeacher:
    """Stands in for a teacher: `offline(batch)` is what `cache_teacher` kept of its answers on `batch`.

    Args:
        directory: as given to `cache_teacher`.
        blocks: the training text, of which only the identity is checked.
        teacher: the teacher's `weights_hash`; None = whichever it was.

    Raises:
        AbridgedError: the cache is missing, incomplete, damaged, or of another teacher or text.
    """

    def __init__(self, directory: str | Path, blocks: Blocks, teacher: str | None = None) -> None:
        self.directory = Path(directory)
        wanted = {"data": blocks.fingerprint(), "blocks": len(blocks), "context": blocks.context}
        if teacher is not None:
            wanted["teacher"] = teacher
        self.description = _check(self.directory, wanted)
        self._size = self.description["shard_blocks"]
        count = -(-len(blocks) // self._size)
        missing = [i for i in range(count) if not _shard(self.directory, i).exists()]
        if missing:
            raise AbridgedError(f"the teacher cache {directory} lacks {len(missing)} of {count} shards: make it again")
        self._shards: dict[int, Any] = {}

    def __call__(self, batch: Batch) -> CachedOutputs:
        """The kept parts for a batch, on its device, in FP32."""
        device = batch.index.device
        rows = [self._row(i) for i in batch.index.tolist()]
        with torch.autocast("cpu", enabled=False):
            tensors = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
        hidden = tensors.get("last_hidden")
        top = None
        if "log_probabilities" in tensors:
            top = TopLogits(
                log_probabilities=tensors["log_probabilities"].float(),
                indices=tensors["indices"].long(),
                log_rest=tensors["log_rest"].float(),
                label_log_probability=tensors["label_log_probability"].float(),
                temperature=self.description["temperature"],
            )
        return CachedOutputs(top, None if hidden is None else hidden.float())

    def _row(self, index: int) -> dict[str, Tensor]:
        number, row = divmod(index, self._size)
        try:
            if number not in self._shards:
                self._shards[number] = safe_open(_shard(self.directory, number), "pt")
            shard = self._shards[number]
            return {name: shard.get_slice(name)[row] for name in shard.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, IndexError) as error:
            raise AbridgedError(
                f"{_shard(self.directory, number)} is damaged ({error}): delete it and cache again"
            ) from error


def _shard_blocks(blocks: Blocks) -> int:
    return max(1, _SHARD_TOKENS // blocks.context)


def _shard(directory: Path, number: int) -> Path:
    return directory / f"targets-{number:05d}.safetensors"


def _describe(directory: Path) -> dict[str, Any]:
    path = directory / _DESCRIPTION
    try:
        description = json.loads(path.read_text())
        assert isinstance(description, dict)
        assert isinstance(description["shard_blocks"], int)
        assert description["shard_blocks"] > 0
        assert set(description["parts"]) <= PARTS
    except FileNotFoundError:
        raise AbridgedError(f"{directory} holds no teacher cache") from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise AbridgedError(f"{path} is damaged: delete the folder and cache again") from error
    if description.get("version") != VERSION:
        raise AbridgedError(f"{path} is of version {description.get('version')}, this program reads {VERSION}")
    return description


def _check(directory: Path, wanted: dict[str, Any], parts: Collection[str] = ()) -> dict[str, Any]:
    """The description of a cache that agrees with `wanted` and has `parts`.

    Raises:
        AbridgedError: it does not, naming the first difference.
    """
    description = _describe(directory)
    for key, value in wanted.items():
        if description.get(key) != value:
            raise AbridgedError(
                f"the teacher cache {directory} was made with {key} {description.get(key)}, not {value}: "
                "take another folder, or delete this one"
            )
    absent = sorted(set(parts) - set(description["parts"]))
    if absent:
        raise AbridgedError(
            f"the teacher cache {directory} has no {absent[0]}: take another folder, or delete this one"
        )
    return description
