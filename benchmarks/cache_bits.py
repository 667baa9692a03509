"""What keys and values in 16 or 8 bits cost in perplexity, and what a step then takes.

    python benchmarks/cache_bits.py MODEL [--data wikitext-2] [--windows 16] [--before 256] [--scored 64] [--threads 2]

MODEL is a packed decoder whose steps are one call into the library. Of each window of the validation text so many
tokens are read at once, and after those `scored` ones step by step, the true token following each time, with the cache
in 32, 16 and 8 bits in turns. A row of benchmarks/results/cache_bits.jsonl.
"""

import argparse
import copy
import json
import time
from typing import Any

import torch
from results import append

from abridged.core.names import public_name
from abridged.data.opening import open_data
from abridged.models.load import load_model
from abridged.tasks.language_modeling import tokenize

BITS = (32, 16, 8)


@torch.inference_mode()
def follow(model: Any, ids: torch.Tensor, cache: Any, bits: int) -> tuple[list[float], float]:
    """Nats of each token of ids (1, T) but the first, step by step, and seconds that the steps took."""
    if bits < 32 and model.forward.narrow(cache, bits) != bits:
        raise SystemExit(f"this model's steps cannot keep keys and values in {bits} bits")
    nats, began = [], time.perf_counter()
    for at in range(ids.shape[1] - 1):
        logits = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits[0, -1]
        nats.append(-float(logits.float().log_softmax(-1)[ids[0, at + 1]]))
    return nats, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--before", type=int, default=256)
    parser.add_argument("--scored", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model)
    data: Any = open_data(options.data, None, None)
    text = torch.from_numpy(tokenize(tokenizer, data.validation).astype("int64"))
    wide = options.before + options.scored + 1
    nats: dict[int, list[float]] = {bits: [] for bits in BITS}
    seconds = dict.fromkeys(BITS, 0.0)
    for number in range(options.windows):
        ids = text[number * wide : (number + 1) * wide].view(1, -1)
        with torch.inference_mode():
            read = model(input_ids=ids[:, : options.before], use_cache=True, logits_to_keep=1).past_key_values
        first = number % len(BITS)
        for bits in BITS[first:] + BITS[:first]:
            some, taken = follow(model, ids[:, options.before :], copy.deepcopy(read), bits)
            nats[bits] += some
            seconds[bits] += taken
    exact = torch.tensor(nats[32])
    found = {
        "perplexity": {bits: float(torch.tensor(each).mean().exp()) for bits, each in nats.items()},
        "apart": {bits: float((torch.tensor(nats[bits]) - exact).abs().mean()) for bits in BITS[1:]},
        "tokens_per_second": {bits: len(nats[bits]) / seconds[bits] for bits in BITS},
    }
    about = {"windows": options.windows, "before": options.before, "scored": options.scored, "threads": options.threads}
    append("cache_bits", found, model=public_name(options.model), settings=about)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
