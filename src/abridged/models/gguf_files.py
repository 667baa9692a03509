"""Models that come as a GGUF file: what transformers does not read in one, and how far it was rounded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.models.gguf_architectures import ARCHITECTURES, rope_tensors
from abridged.models.gguf_types import gguf_package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENDINGS + _LETTERS + r"|\p{N}{1,3}" + _REST
_SLASHES = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)

SPLITS: dict[str, tuple[str, ...]] = {
    "GPT-2's": ("gpt-2", "default", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "mellum", "modern-bert"),
    "GPT-2's, after single digits": ("smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b"),
    _LLAMA3: ("llama-bpe", "dbrx", "llama3", "llama-v3", "smaug-bpe", "falcon3", "pixtral", "lfm2"),
    _ENDINGS + _LETTERS + r"|\p{N}" + _REST: ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"),
    _CASES % ("", "") + r"|\p{N}" + _SLASHES: ("tekken",),
    _CASES % (f"{_ENDINGS}?", f"{_ENDINGS}?") + r"|\p{N}{1,3}" + _SLASHES: ("gpt-4o", "llama4"),
}
"""How byte-level BPEs split text, by a pattern or in words, and llama.cpp's names for it (src/llama-vocab.cpp)."""


def rounded_as(file: Path) -> str | None:
    """The type in which most weights of a GGUF file are, such as "Q4_0"; None where they are floating-point numbers.

    Raises:
        AbridgedError: it is no GGUF file, or a damaged one.
    """
    counts: Counter[str] = Counter()
    for tensor in _reader(file).tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    if not counts:
        raise AbridgedError(f"{file} holds no weights")
    kind = counts.most_common(1)[0][0]
    return None if kind in ("F16", "F32", "BF16", "F64") else kind


def complete(file: Path, config: Any) -> None:
    """Give `config` what is in the file and transformers passes over: sizes of heads, biases, LLaMA 3's positions."""
    reader = _reader(file)
    arch = reader.fields["general.architecture"].contents()
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    sizes = {"attention.key_length": "head_dim", "feed_forward_length": "n_inner", "context_length": "n_positions"}
    for key, attribute in sizes.items():
        if hasattr(config, attribute) and f"{arch}.{key}" in reader.fields:
            setattr(config, attribute, reader.fields[f"{arch}.{key}"].contents())
    if hasattr(config, "query_pre_attn_scalar"):  # Gemma's, which llama.cpp knows by the number of layers
        whole = config.num_hidden_layers in (46, 62)
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if whole else config.head_dim
    if (
        f"{arch}.rope.scaling.type" in reader.fields
        and reader.fields[f"{arch}.rope.scaling.type"].contents() == "linear"
    ):
        rope = config.rope_parameters.get("full_attention", config.rope_parameters)
        rope |= {"rope_type": "linear", "factor": reader.fields[f"{arch}.rope.scaling.factor"].contents()}
    for tensor, attribute in (("attn_q", "attention_bias"), ("ffn_down", "mlp_bias")):
        if hasattr(config, attribute):
            setattr(config, attribute, f"blk.0.{tensor}.bias" in tensors)
    if "rope_freqs.weight" in tensors:  # LLaMA 3.1 to 3.3 have these numbers, and the file has but the result
        config.rope_parameters = {
            "rope_type": "llama3",
            "rope_theta": config.rope_parameters["rope_theta"],
            "factor": float(tensors["rope_freqs.weight"].max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }


def check(file: Path, model: Any) -> None:
    """Raise AbridgedError unless `model` is all that the file says: its sizes, its tensors and its positions."""
    from gguf import GGUFWriter

    reader = _reader(file)
    config, arch = model.config, reader.fields["general.architecture"].contents()
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise AbridgedError(f"{file}: GGUF files of {arch} are not known here; known: {', '.join(ARCHITECTURES)}")
    writer = GGUFWriter(None, arch)
    architecture.describe(writer, config)
    ours = {key: value.value for key, value in writer.kv_data[0].items()}
    for key, field in reader.fields.items():
        value = field.contents()
        if key.startswith(f"{arch}.") and not _same(value, ours.get(key)):
            raise AbridgedError(f"{file}: transformers reads its {key} as {ours.get(key)}, and it is {value}")
    names, scaled = architecture.names(config), rope_tensors(config)
    modules = {name.rpartition(".")[0] for name in model.state_dict() if name not in model.all_tied_weights_keys}
    places = (architecture.place(model, names, path) for path in modules)
    known = {place[1] for place in places if place}
    for tensor in reader.tensors:
        module, _, attribute = tensor.name.rpartition(".")
        if tensor.name in scaled:
            if not np.allclose(tensor.data, scaled[tensor.name], rtol=1e-4):
                raise AbridgedError(f"{file} scales its rotary positions in a way that transformers does not read")
        elif module not in known or attribute not in ("weight", "bias"):
            raise AbridgedError(f"{file} holds {tensor.name}, which transformers passes over")


def _same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and other is not None and bool(np.isclose(one, other)))


def split_as_stored(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a byte-level BPE split text as the file says, where transformers does not read it.

    Raises:
        AbridgedError: the file names a way of splitting that is not known here.
    """
    from tokenizers import Regex, pre_tokenizers

    fields = _reader(file).fields
    if fields["tokenizer.ggml.model"].contents() != "gpt2" or "tokenizer.ggml.pre" not in fields:
        return
    name = fields["tokenizer.ggml.pre"].contents()
    how = next((how for how, names in SPLITS.items() if name in names), None)
    if how is None:
        raise AbridgedError(f"{file} splits text as {name!r}, which is not known here")
    steps: list[Any] = [] if "GPT-2" in how else [pre_tokenizers.Split(Regex(how), "isolated")]
    if "digits" in how:
        steps = [pre_tokenizers.Digits(individual_digits=True)]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="GPT-2" in how))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _reader(file: Path) -> Any:
    package = gguf_package()
    try:
        return package.GGUFReader(file)
    except Exception as error:  # the reader trusts the file and raises whatever it stumbles on
        raise AbridgedError(f"{file} is no GGUF file, or a damaged one") from error
