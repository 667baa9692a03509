"""A Hugging Face tokenizer, BPE or WordPiece, in the words of GGUF, as llama.cpp reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

#: The pattern by which LLaMA 3 splits text before it looks for tokens.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Add the vocabulary, filled up to `vocab_size` entries, and how text is split into it.

    Raises AbridgedError for a tokenizer that is not a BPE of GPT-2's, LLaMA 3's or (with bytes for what is missing)
    LLaMA 2's kind, or BERT's uncased WordPiece: llama.cpp knows each by name, and would split text differently under
    another's.
    """
    described = _describe(tokenizer)
    model = described["model"]
    if model["type"] not in ("BPE", "WordPiece"):
        raise AbridgedError(f"GGUF export knows BPE and WordPiece tokenizers, and this one is a {model['type']}")
    pieces = {index: piece for piece, index in model["vocab"].items()}
    kinds = dict.fromkeys(pieces, _NORMAL)
    for added in described.get("added_tokens", []):
        pieces[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    if model["type"] == "WordPiece":
        _check_uncased(described.get("normalizer"))
        writer.add_tokenizer_model("bert")
        pieces = {i: piece if kinds[i] == _CONTROL else _word_piece(piece) for i, piece in pieces.items()}
    elif model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        kinds |= {index: _BYTE for index, piece in pieces.items() if _is_byte(piece)}
        if model.get("unk_token") in model["vocab"]:
            kinds[model["vocab"][model["unk_token"]]] = _UNKNOWN
        writer.add_token_scores(_scores(model, vocab_size))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitting(described.get("pre_tokenizer")))
        writer.add_token_merges([_merge(pair) for pair in model["merges"]])
    writer.add_token_list([pieces.get(index, f"[unused {index}]") for index in range(vocab_size)])
    writer.add_token_types([kinds.get(index, _UNUSED) for index in range(vocab_size)])
    for name in ("bos", "eos", "unk", "pad", "sep", "mask"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    if model["type"] == "WordPiece":  # texts are between [CLS] and [SEP], and llama.cpp calls the first BOS
        writer.add_bos_token_id(tokenizer.cls_token_id)
        return
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])


def _describe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise AbridgedError("GGUF export needs a tokenizer with a tokenizer.json")
    described: dict[str, Any] = json.loads(backend.to_str())
    return described


def _check_uncased(normalizer: dict[str, Any] | None) -> None:
    if (normalizer or {}).get("type") != "BertNormalizer" or not normalizer["lowercase"]:  # type: ignore[index]
        raise AbridgedError(
            "llama.cpp lowers the case of words before it looks for pieces, and this tokenizer does not"
        )


def _word_piece(piece: str) -> str:
    """llama.cpp marks where a word begins; WordPiece marks where it goes on."""
    return piece.removeprefix("##") if piece.startswith("##") else f"\u2581{piece}"


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _scores(model: dict[str, Any], vocab_size: int) -> list[float]:
    """Of two pieces that can be joined, the earlier merge has the higher score."""
    scores = [-1e6] * vocab_size
    for rank, pair in enumerate(model["merges"]):
        index = model["vocab"].get(_merge(pair).replace(" ", ""))
        if index is not None and scores[index] == -1e6:
            scores[index] = -float(rank)
    return scores


def _splitting(pre_tokenizer: dict[str, Any] | None) -> str:
    """llama.cpp's name for how a byte-level BPE splits text."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds = [step and step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") == _LLAMA3:
        return "llama-bpe"
    raise AbridgedError("GGUF export knows how GPT-2 and LLaMA 3 split text, and this tokenizer splits it otherwise")
