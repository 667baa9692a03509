"""Leaves the tokens out of a model that a text never uses: the largest matrix of a small model is mostly such rows.

Texts of words that are left are read as before; an unseen word is read in more pieces, since every character stays.
Removing rows and entries by a text is also done by TextPruner (Yang et al., arXiv:2203.15996).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import pre_tokenizers

from abridged.core.errors import AbridgedError
from abridged.core.names import public_name, resolve
from abridged.core.record import RECORD, environment
from abridged.core.settings import TrainingSettings
from abridged.data.blocks import tokenize
from abridged.data.opening import open_data
from abridged.data.text import load_text
from abridged.models.load import load_dense, load_tokenizer
from abridged.tasks import task_for
from abridged.training.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from abridged.data.examples import Examples

#: Examples that are read at once to count their tokens.
_AT_ONCE = 64


def trim(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
    also: str | Path | None = None,
    min_count: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a full-precision model without the tokens that the training part of `data` does not use.

    Special tokens, characters of what is left, and what a BPE builds its tokens from always stay, so that the training
    part is read as before. The output is an ordinary Hugging Face directory, and a teacher like any other.

    Args:
        model: a hub name, a directory of any supported model, or `bundled`.
        columns, task: of labelled texts or pairs, as for `abridged.compress`.
        also: a further text, such as `wikitext-2`: the tokens that it uses stay, for words that `data` happens to lack.
        min_count: tokens that `also`, or `data` where there is no other text, uses less often go, too.

    Returns:
        The record that is also in OUTPUT/abridged.json: `vocabulary` and `parameters`, each `before` and `after`.

    Raises:
        AbridgedError: bad input, or a tokenizer of a kind that cannot be changed; in one sentence.
    """
    work = Workspace(output, overwrite=overwrite, inputs=(resolve(model), data, also))
    opened = open_data(data, columns, task)
    dense = load_dense(model)
    tokenizer = load_tokenizer(model, dense)
    read = task_for(dense, tokenizer, opened)
    read.data.announce()
    counts = count_tokens(read.examples(TrainingSettings()))
    further = counts
    if also is not None:
        text = load_text(also)
        text.announce()
        further = Counter(tokenize(tokenizer, text.train).tolist())
    used = {token for token, count in further.items() if count >= min_count}
    if also is not None:
        used |= counts.keys()
    with work:
        finished = work.finished
        tokenizer.save_pretrained(finished)
        kept = trim_tokenizer(finished, used)
        sizes = {"vocabulary": dense.config.vocab_size, "parameters": dense.num_parameters()}
        keep_tokens(dense, kept)
        after = {"vocabulary": len(kept), "parameters": dense.num_parameters()}
        dense.save_pretrained(finished)
        record = {
            "kind": "trim",
            "model": public_name(model),
            "data": public_name(read.name),
            "also": None if also is None else public_name(also),
            "min_count": min_count,
            **{what: {"before": before, "after": after[what]} for what, before in sizes.items()},
            "environment": environment(),
        }
        (finished / RECORD).write_text(json.dumps(record, indent=1))
        load_tokenizer(finished, dense)  # what is written is what can be read
        work.publish()
    return record


def count_tokens(examples: Examples) -> Counter[int]:
    """How often each token id is read, by the model or by its encoder, in one pass over the examples."""
    counts: Counter[int] = Counter()
    for start in range(0, len(examples), _AT_ONCE):
        batch = examples.batch(torch.arange(start, min(start + _AT_ONCE, len(examples))))
        for ids in batch.tokens:
            found, times = ids.unique(return_counts=True)
            counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    return counts


def trim_tokenizer(folder: Path, used: set[int]) -> list[int]:
    """Leave what is not needed to read or spell the tokens `used` out of the tokenizer in `folder`.

    Returns:
        The old ids of the entries that stay, in their order, which is that of the new ids.

    Raises:
        AbridgedError: it has no tokenizer.json, or one of a kind that is not known here.
    """
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        raise AbridgedError("this model's tokenizer has no tokenizer.json, so that no entries can be left out")
    described = json.loads(path.read_text(encoding="utf-8"))
    kind = described["model"].get("type")
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise AbridgedError(
            f"entries of a tokenizer of type {kind} cannot be left out: it must be WordPiece, BPE or Unigram"
        )
    ids = _ids(described)
    needed = _needed(described, ids, used)
    kept = sorted(i for piece, i in ids.items() if piece in needed)
    _leave_out(described, {old: i for i, old in enumerate(kept)})
    path.write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    if settings.is_file():  # ids there repeat those of tokenizer.json
        told = json.loads(settings.read_text(encoding="utf-8"))
        told.pop("added_tokens_decoder", None)
        settings.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    return kept


def _ids(described: dict[str, Any]) -> dict[str, int]:
    """The id of every entry of a tokenizer.json."""
    vocab = described["model"]["vocab"]
    learned = {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    return learned | {added["content"]: added["id"] for added in described["added_tokens"]}


def _needed(described: dict[str, Any], ids: dict[str, int], used: set[int]) -> set[str]:
    """The tokens `used`, special ones, what they are merged from, and what an unseen word is spelled with."""
    model = described["model"]
    needed = {piece for piece, i in ids.items() if i in used or i == model.get("unk_id")}
    needed |= {added["content"] for added in described["added_tokens"]} | {model.get("unk_token")} & ids.keys()
    prefix = model.get("continuing_subword_prefix") or ""
    _add_parts(needed, map(_pair, model.get("merges", ())), prefix)
    return needed | _spelling(ids, needed, prefix)


def _leave_out(described: dict[str, Any], new: dict[int, int]) -> None:
    """Leave all entries but those of the old ids in `new` out of a tokenizer.json, and give these their new ids."""
    model = described["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    else:
        model["vocab"] = {piece: new[i] for piece, i in model["vocab"].items() if i in new}
    if "merges" in model:
        known, prefix = model["vocab"].keys(), model.get("continuing_subword_prefix") or ""
        pairs = map(_pair, model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if a in known and b in known and _joined(a, b, prefix) in known]
    for added in described["added_tokens"]:
        added["id"] = new[added["id"]]
    _renumber(described.get("post_processor"), new)
    if described.get("padding"):
        described["padding"]["pad_id"] = new[described["padding"]["pad_id"]]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two pieces of a merge, which older files write with a space between."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _joined(first: str, second: str, prefix: str) -> str:
    """What a BPE makes of two pieces that stand beside each other."""
    return first + (second.removeprefix(prefix) if prefix else second)


def _add_parts(needed: set[str], merges: Iterable[tuple[str, str]], prefix: str) -> None:
    """Add what the needed pieces are merged from, whichever way, so that every text comes to them as before."""
    parts: dict[str, list[str]] = {}
    for first, second in merges:
        parts.setdefault(_joined(first, second, prefix), []).extend((first, second))
    open_ = list(needed)
    while open_:
        for part in parts.get(open_.pop(), ()):
            if part not in needed:
                needed.add(part)
                open_.append(part)


def _spelling(ids: Iterable[str], needed: set[str], prefix: str) -> set[str]:
    """The pieces that an unseen word is spelled with: bytes, ASCII, and single characters of what is needed."""
    letters = {*pre_tokenizers.ByteLevel.alphabet(), *map(chr, range(128)), *"".join(needed)}
    return {
        piece
        for piece in ids
        if (piece.removeprefix(prefix) if prefix else piece) in letters
        or (piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6)
    }


def _renumber(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """Put the new ids into what adds special tokens."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, new)
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[i] for i in special["ids"]]
    for end in ("sep", "cls"):
        if end in processor:
            token, i = processor[end]
            processor[end] = [token, new[i]]


def keep_tokens(model: PreTrainedModel, kept: list[int]) -> None:
    """Leave a model, in place, only the rows of its embedding and of its head that are the tokens `kept`, in order."""
    index = torch.tensor(kept)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {
        id(p): p
        for m in (embedding, head)
        if m is not None
        for p in (m.weight, getattr(m, "bias", None))
        if p is not None
    }
    with torch.no_grad():
        for parameter in rows.values():
            parameter[: len(kept)] = parameter[index]
        bias = getattr(model, "final_logits_bias", None)  # BART's, which is no part of a layer
        if bias is not None:
            bias[:, : len(kept)] = bias[:, index]
    model.resize_token_embeddings(len(kept))
    new = {old: i for i, old in enumerate(kept)}
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            _renumber_config(config, new)


def _renumber_config(config: Any, new: dict[int, int]) -> None:
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value is not None:
            listed = [new[i] for i in value if i in new] if isinstance(value, list) else new.get(value)
            setattr(config, key, listed)
        elif key in ("suppress_tokens", "begin_suppress_tokens") and value:
            setattr(config, key, [new[i] for i in value if i in new])
