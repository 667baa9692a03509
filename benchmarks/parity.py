"""A compressed model by the compiled kernels against the torch reference: perplexity, and the likeliest tokens.

    python benchmarks/parity.py DIR [--data wikitext-2] [--tokens 20000]

Beside it, what the reference differs from itself when each linear layer's outputs move in the last bit, up or down:
activations are rounded to 8 bits, so a difference in rounding anywhere may move one to its next level, and then is as
large as that rounding. A row of benchmarks/results/parity.jsonl.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from results import append

from abridged.checkpoint.load import load
from abridged.checkpoint.skeleton import packed_modules
from abridged.data.text import load_text
from abridged.models.load import load_tokenizer
from abridged.runtime import kernels as module
from abridged.runtime.modules import PackedLinear


@torch.no_grad()
def logits(directory: str, ids: torch.Tensor, kernels: module.Kernels | None, moved: float = 0.0) -> torch.Tensor:
    module.kernels = lambda: kernels  # type: ignore[assignment]
    model = load(directory)
    if moved:
        generator = torch.Generator().manual_seed(0)

        def move(module: torch.nn.Module, inputs: tuple, y: torch.Tensor) -> torch.Tensor:
            return y * (1 + moved * (2 * torch.randint(2, y.shape, generator=generator) - 1))

        for part in packed_modules(model).values():
            if isinstance(part, PackedLinear):
                part.register_forward_hook(move)
    return torch.cat([model(row[None], use_cache=False).logits for row in ids])


def compare(ours: torch.Tensor, reference: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    losses = [F.cross_entropy(x[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for x in (ours, reference)]
    return {
        "perplexity": math.exp(losses[0]),
        "perplexity_difference_percent": 100 * (math.exp(losses[0] - losses[1]) - 1),
        "same_likeliest_token_percent": 100 * float((ours.argmax(-1) == reference.argmax(-1)).float().mean()),
        "mean_logit_difference": float((ours - reference).abs().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--data", default="wikitext-2")
    parser.add_argument("--tokens", type=int, default=20_000)
    options = parser.parse_args()
    compiled = module.kernels()
    if compiled is None:
        raise SystemExit("the kernels were not compiled, or ABRIDGED_KERNELS is reference")
    tokenizer = load_tokenizer(options.directory)
    context = load(options.directory).config.max_position_embeddings
    ids = torch.tensor(tokenizer(load_text(options.data).test[: 8 * options.tokens])["input_ids"])
    ids = ids[: options.tokens // context * context].view(-1, context)
    reference = logits(options.directory, ids, None)
    library = module._library()
    rows = {"reference": compare(reference, reference, ids)}
    rows["reference, every layer's outputs moved in the last bit"] = compare(
        logits(options.directory, ids, None, 2**-23), reference, ids
    )
    for path in compiled.available:
        rows[path] = compare(logits(options.directory, ids, module.Kernels(library, path)), reference, ids)
        print(path, json.dumps(rows[path]), flush=True)
    record = json.loads((Path(options.directory) / "abridged.json").read_text())
    found = {"steps": record.get("steps"), "tokens": ids.numel(), "rows": rows}
    append("parity", found, recipe=record["recipe"]["name"])


if __name__ == "__main__":
    main()
