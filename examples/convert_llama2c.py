"""A llama2.c model (github.com/karpathy/llama2.c, its first file format) as a Hugging Face directory.

python examples/convert_llama2c.py stories260K.bin tok512.bin stories260K
abridged compress stories260K --recipe best-2-2-8 --data stories.txt --output small
"""

import argparse
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def read_model(path: Path) -> LlamaForCausalLM:
    """The model in a .bin file. Raises SystemExit where the file is not of the size that its header says."""
    data = path.read_bytes()
    width, inner, layers, heads, key_heads, vocabulary, positions = struct.unpack("7i", data[:28])
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=abs(vocabulary),
        max_position_embeddings=positions,
        tie_word_embeddings=vocabulary > 0,  # a negative size says that the head is apart
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
    )
    numbers = np.frombuffer(data, dtype="<f4", offset=28)
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        if at + count > len(numbers):
            raise SystemExit(f"{path} is shorter than its header says")
        at += count
        return torch.from_numpy(numbers[at - count : at].copy()).view(*shape)

    head = width // heads
    state = {"model.embed_tokens.weight": take(abs(vocabulary), width)}
    for name, rows, columns in (
        ("input_layernorm", width, 0),
        ("self_attn.q_proj", width, width),
        ("self_attn.k_proj", key_heads * head, width),
        ("self_attn.v_proj", key_heads * head, width),
        ("self_attn.o_proj", width, width),
        ("post_attention_layernorm", width, 0),
        ("mlp.gate_proj", inner, width),
        ("mlp.down_proj", width, inner),
        ("mlp.up_proj", inner, width),
    ):
        for layer, weight in enumerate(take(layers, rows, columns) if columns else take(layers, rows)):
            if name.endswith(("q_proj", "k_proj")):  # rotary pairs are neighbours there, and half a head apart here
                weight = weight.view(rows // head, head // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    state["model.norm.weight"] = take(width)
    take(2, positions, head // 2)  # cosines and sines, which are computed here
    state["lm_head.weight"] = state["model.embed_tokens.weight"] if vocabulary > 0 else take(-vocabulary, width)
    if at != len(numbers):
        raise SystemExit(f"{path} is longer than its header says")
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a .bin file: pieces with scores, of which the pair that makes the best is joined first."""
    data, at = path.read_bytes(), 4
    scores: dict[str, float] = {}
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        piece = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        scores[{"\n<s>\n": "<s>", "\n</s>\n": "</s>"}.get(piece, piece.replace(" ", "▁"))] = score
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    pairs = [
        (-scores[piece], vocabulary[piece[:i]], piece[:i], piece[i:])
        for piece in scores
        for i in range(1, len(piece))
        if piece[:i] in scores and piece[i:] in scores
    ]
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    read_model(options.model).save_pretrained(options.output)
    read_tokenizer(options.tokenizer).save_pretrained(options.output)


if __name__ == "__main__":
    main()
