"""A Hugging Face tokenizer, BPE, WordPiece or unigrams, in the words of GGUF, as llama.cpp reads it."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from abridged.core.errors import AbridgedError
from abridged.models.gguf_files import SPLITS

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"  # how SentencePiece's pieces write it


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Add the vocabulary, filled up to `vocab_size` entries, and how text is split into it.

    Raises AbridgedError for a tokenizer that is not a byte-level BPE that splits text in a way that llama.cpp has a
    name for (`SPLITS`), a BPE with bytes for what is missing (LLaMA 2, Gemma), unigrams (T5), or BERT's uncased
    WordPiece: llama.cpp would split text differently under another's.
    """
    described = _describe(tokenizer)
    model, kind = described["model"], described["model"]["type"]
    vocabulary = [piece for piece, _ in model["vocab"]] if kind == "Unigram" else None
    pieces = dict(enumerate(vocabulary)) if vocabulary else {index: piece for piece, index in model["vocab"].items()}
    kinds = dict.fromkeys(pieces, _NORMAL)
    scores: list[float] | None = None
    for added in described.get("added_tokens", []):
        pieces[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    if kind == "WordPiece":
        _check_uncased(described.get("normalizer"))
        writer.add_tokenizer_model("bert")
        pieces = {i: piece if kinds[i] == _CONTROL else _word_piece(piece) for i, piece in pieces.items()}
    elif kind == "Unigram":
        writer.add_tokenizer_model("t5")
        writer.add_tokenizer_pre("default")
        scores = [*(score for _, score in model["vocab"]), *[-10_000.0] * (vocab_size - len(model["vocab"]))]
        if model.get("unk_id") is not None:
            kinds[model["unk_id"]] = _UNKNOWN
        if charsmap := _charsmap(described.get("normalizer")):
            writer.add_precompiled_charsmap(charsmap)
        writer.add_remove_extra_whitespaces(tokenizer.tokenize("a  a") == tokenizer.tokenize("a a"))
    elif kind == "BPE" and model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        kinds |= {index: _BYTE for index, piece in pieces.items() if _is_byte(piece)}
        if model.get("unk_token") in model["vocab"]:
            kinds[model["vocab"][model["unk_token"]]] = _UNKNOWN
        scores = _scores(model, vocab_size)
    elif kind == "BPE":
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitting(described.get("pre_tokenizer"), bool(model.get("ignore_merges"))))
        writer.add_token_merges([_merge(pair) for pair in model["merges"]])
    else:
        raise AbridgedError(f"GGUF export knows BPE, WordPiece and unigram tokenizers, and this one is a {kind}")
    if scores is not None:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith(_SPACE))
    writer.add_token_list([pieces.get(index, f"[unused {index}]") for index in range(vocab_size)])
    writer.add_token_types([kinds.get(index, _UNUSED) for index in range(vocab_size)])
    for name in ("bos", "eos", "unk", "pad", "sep", "mask"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    if kind == "WordPiece":  # texts are between [CLS] and [SEP], and llama.cpp calls the first BOS
        writer.add_bos_token_id(tokenizer.cls_token_id)
        return
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id])


def add_generation(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, settings: Any) -> None:
    """Add how a chat is written, a second token that ends a turn, and how tokens are drawn, where the model says so."""
    template: Any = getattr(tokenizer, "chat_template", None)
    if template:
        named = (
            [{"name": name, "template": text} for name, text in template.items()]
            if type(template) is dict
            else template
        )
        writer.add_chat_template(named)
    ends = getattr(settings, "eos_token_id", None)
    further = [index for index in ends if index != tokenizer.eos_token_id] if isinstance(ends, list) else []
    if further:
        writer.add_eot_token_id(further[0])
    for name in ("temperature", "top_k", "top_p", "min_p") if getattr(settings, "do_sample", False) else ():
        if (value := getattr(settings, name, None)) is not None:
            getattr(writer, f"add_sampling_{'temp' if name == 'temperature' else name}")(value)


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
    return piece.removeprefix("##") if piece.startswith("##") else f"{_SPACE}{piece}"


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


def _charsmap(normalizer: dict[str, Any] | None) -> bytes | None:
    """SentencePiece's table of replaced characters."""
    steps = (normalizer or {}).get("normalizers", [normalizer])
    return next((base64.b64decode(s["precompiled_charsmap"]) for s in steps if s and s["type"] == "Precompiled"), None)


def _splitting(pre_tokenizer: dict[str, Any] | None, ignore_merges: bool) -> str:
    """llama.cpp's name for how a byte-level BPE splits text."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    kinds, first = [step and step["type"] for step in steps], steps[0] or {}
    how = None
    if kinds[-1] == "ByteLevel" and steps[-1].get("use_regex", True) and not steps[-1]["add_prefix_space"]:
        if len(kinds) == 1:
            how = "GPT-2's"
        elif kinds[:-1] == ["Digits"] and first["individual_digits"]:
            how = "GPT-2's, after single digits"
    elif kinds == ["Split", "ByteLevel"]:
        how = first["pattern"].get("Regex")
    if how not in SPLITS:
        raise AbridgedError("this tokenizer splits text in a way that llama.cpp has no name for")
    names = SPLITS[how]
    # under the name of LLaMA 3's, words that are tokens as a whole are not merged from their parts
    return "dbrx" if "dbrx" in names and not ignore_merges else names[0]
