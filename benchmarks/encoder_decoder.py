"""Speed of a packed encoder-decoder on this CPU beside torch in FP32 and bf16, in one run.

    python benchmarks/encoder_decoder.py [--threads 2] [--source 512] [--new 64] [--rounds 5] [--quick]

BART-base's true shape with random weights, `best-bart-2-2-8` without its training. Reading is the encoder alone;
writing is `model.generate` with four beams, the reading left out. A row of benchmarks/results/encoder_decoder.jsonl.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from results import append, quick_settings, speed_options
from transformers import BartConfig, BartForConditionalGeneration

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.evaluation.speed import BEAMS, decode_seconds, in_turns, memory, prompt_seconds
from abridged.exporters.dense import dense_model
from abridged.recipe import Recipe
from abridged.runtime.kernels import kernels
from runtime import QUICK

RECIPE = "best-bart-2-2-8"
#: BART-base: 6 + 6 layers of width 768.
BASE = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
}


def build(folder: Path) -> Path:
    """A packed BART-base of random weights."""
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**BASE)).eval()
    ids = torch.zeros(1, 8, dtype=torch.long)
    for method in Recipe.load(RECIPE, QUICK).stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(input_ids=ids, decoder_input_ids=ids))
        attached.finish()
    save_checkpoint(model, folder, None, {"recipe": {"name": RECIPE}, "teacher": "random weights", "seed": 0})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--source", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = speed_options(parser, new=8, rounds=1)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        where = build(Path(name) / "packed")
        packed = load(where)
        models: dict[str, Any] = {
            "packed": packed,
            "packed, loaded in bf16": load(where).to(torch.bfloat16),
            "torch FP32": dense_model(packed, torch.float32),
        }
        if not options.quick:
            models["torch bf16"] = dense_model(packed, torch.bfloat16)
        ids = torch.randint(4, 50_000, (1, options.source), generator=torch.Generator().manual_seed(0))
        read = in_turns({key: lambda m=m: prompt_seconds(m, ids) for key, m in models.items()}, options.rounds)
        write = in_turns(
            {key: lambda m=m: decode_seconds(m, ids, options.new) for key, m in models.items()}, options.rounds
        )
        compiled = kernels()
        result = {
            "threads": options.threads,
            "source_tokens": options.source,
            "new_tokens": options.new,
            "beams": BEAMS,
            "kernels": compiled.path if compiled else "reference",
            "source_tokens_per_second": {key: options.source / seconds for key, seconds in read.items()},
            "written_tokens_per_second": {key: 1 / seconds for key, seconds in write.items()},
            "memory": {"file_bytes": inspect(where)["file_bytes"], **({} if options.quick else memory(where))},
        }
    for key in ("source_tokens_per_second", "written_tokens_per_second"):
        print(key, json.dumps({name: round(value, 1) for name, value in result[key].items()}), flush=True)
    about = {"recipe": RECIPE, "model": "BART-base", "settings": quick_settings(options)}
    append("encoder_decoder", result, options.results, **about)


if __name__ == "__main__":
    main()
