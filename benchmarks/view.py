"""How long it takes, and what memory, to find out what a model of LLaMA-2-7B's shape is made of: without its weights.

    python benchmarks/view.py

What imports hold and take is not counted. A row of benchmarks/results/view.jsonl. MB = 2^20 bytes.
"""

import json
import time

from results import append
from transformers import LlamaConfig, LlamaForCausalLM

from abridged import families
from abridged.core.hardware import peak_memory

SECONDS, BYTES = 10, 2**30


def main() -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    families.view_of_config(  # transformers and torch import much of themselves at first use
        LlamaForCausalLM, LlamaConfig(**small, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    )
    config = LlamaConfig()  # its defaults are those of LLaMA-2-7B
    held, began, cpu = peak_memory(), time.perf_counter(), time.process_time()
    found = families.view_of_config(LlamaForCausalLM, config)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    more = peak_memory() - held
    weights = sum(matrix.rows * matrix.columns for matrix in found.matrices)
    record = {
        "weights_in_matrices": weights,
        "layers": found.layers,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "more_memory_bytes": more,
        "met": cpu_seconds <= SECONDS and more <= BYTES,
    }
    append("view", record, model="llama, 32 layers of width 4,096")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
