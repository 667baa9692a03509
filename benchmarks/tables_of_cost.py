"""Tables of what it costs: files, memory, speed, training time."""

from collections.abc import Callable
from typing import Any

from rendering import DOCS, markdown, rates
from results import NotMeasured, by_processor, latest, processor_of, read
from speeds import SPEEDS, spoken


def sizes() -> str:
    """Files of the true GPT-2 shape."""
    rows = [[*_file(case["name"], case), f"{case['bits_per_weight']:.2f}"] for case in read("size")]
    return markdown(["shape of GPT-2 124M, BART-base or BERT-base", "MB", "limit", "ratio", "bits per weight"], rows)


def _file(name: str, case: dict[str, float]) -> list[str]:
    return [name, f"{case['file_mb']:.1f}", f"{case['limit_mb']:g}", f"{case['ratio']:.1f}×"]


def cost() -> str:
    """Speed and memory of training steps."""
    found = latest("training_cost")
    rows = [
        [
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed_ratio']:.2f} of {row['against']}" if "speed_ratio" in row else "",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        ]
        for name, row in found["contestants"].items()
    ]
    return markdown(["step", "tokens/s", "speed", "peak MB"], rows)


def memory() -> str:
    """Peak memory at the true GPT-2 shape."""
    rows = [[row["name"], f"{row['peak_bytes'] / 2**30:.2f}", "6"] for row in read("memory")]
    return markdown(["quantgpt-2-2-8 at 124M, batch 4×512", "peak GB", "limit"], rows)


def index() -> str:
    """Search in an index, by how vectors are stored."""
    found = latest("index")
    keys = {"processor_ms": ".1f", "memory_mb": ".0f", "file_mb": ".0f", "recall_at_10": ".3f"}
    rows = [[kind, *(format(row[key], form) for key, form in keys.items())] for kind, row in found["rows"].items()]
    head = [
        f"{found['windows']:,} windows, {found['width']} wide",
        "median, ms of one core",
        "memory, MB",
        "file, MB",
        "recall@10",
    ]
    return markdown(head, rows)


def runtime() -> str:
    """Speed of packed models beside torch and llama.cpp."""
    found = latest("runtime")
    head = (f"{found['prompt_tokens']} tokens at once, tokens/s", f"then {found['new_tokens']} one by one, tokens/s")
    return rates(head, [found["prompt_tokens_per_second"], found["decode_tokens_per_second"]], "torch FP32")


def kernel() -> str:
    """The other numbers of the same run."""
    found = latest("runtime")
    bandwidth, memory_used = found["bandwidth_gb_per_second"], found["memory"]
    file = memory_used["file_bytes"]
    rows = [
        [f"matrix × vector, {name}, cold cache, GB/s", f"{value:.1f}", f"{value / bandwidth['copy']:.2f} of copying"]
        for name, value in bandwidth.items()
        if name != "copy"
    ]
    rows += [["copying, GB/s", f"{bandwidth['copy']:.1f}", ""], ["file, MB", f"{file / 2**20:.1f}", ""]]
    for what, key in (("resident after load, MB", "resident_bytes"), ("peak while loading, MB", "peak_bytes")):
        rows.append([what, f"{memory_used[key] / 2**20:.1f}", f"{memory_used[key] / file:.2f} of the file"])
    if "tiny_resident_bytes" in memory_used:
        tiny = memory_used["tiny_resident_bytes"] / 2**20
        rows.append(["resident after loading a dense GPT-2 of 0.4 MB, MB", f"{tiny:.1f}", ""])
    rows.append(["load, s", f"{memory_used['load_seconds']:.2f}", ""])
    return markdown(["", "measured", "ratio"], rows)


def paths() -> str:
    """Each instruction set, forced."""
    forced = latest("runtime")["forced_paths"]
    keys = ("prompt_tokens_per_second", "decode_tokens_per_second")
    rows = [[name, *(f"{row[key]:,.0f}" for key in keys)] for name, row in forced.items()]
    return markdown(["ABRIDGED_KERNELS", "prompt, tokens/s", "`model.generate`, tokens/s"], rows)


def growth() -> str:
    """docs/cost-against-size.svg: seconds by the length of a prompt, and by the width of a matrix."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    found = latest("runtime")["growth"]
    matplotlib.rcParams.update({"svg.hashsalt": "abridged", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
    for axes, xs, series, label in (
        (left, found["lengths"], found["by_length"], "tokens of a prompt (whole model)"),
        (right, found["widths"], found["by_width"], "width of a square matrix (64 tokens)"),
    ):
        for name, seconds in series.items():
            axes.loglog(xs, [1000 * value for value in seconds], marker="o", markersize=3, label=name)
        axes.set(xlabel=label, ylabel="milliseconds")
        axes.set_xticks(xs, [str(x) for x in xs], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(DOCS / "cost-against-size.svg", metadata={"Date": None})
    plt.close(figure)
    return "![Milliseconds against prompt length and matrix width](cost-against-size.svg)\n\nBoth axes are logarithmic."


def encoder_decoder() -> str:
    """BART-base's shape, packed and dense."""
    found = latest("encoder_decoder")
    columns = [found["source_tokens_per_second"], found["written_tokens_per_second"]]
    return rates(("encoder, tokens/s", "four beams, tokens/s"), columns, "torch FP32", digits=1)


def encoders() -> str:
    """BERT-base's shape, packed and otherwise, in sentences a second: of each machine that was measured."""
    return "\n\n".join(map(_sentences, read("encoders")))


def _sentences(found: dict[str, Any]) -> str:
    speeds, memory = found["sentences_per_second"], found["memory"]
    return (
        rates([f"batch {size}, sentences/s" for size in speeds], [*speeds.values()], "torch FP32", digits=1)
        + f"\n\n{found['processor']['cpu']}, {found['threads']} threads, kernels {found['kernels']}; "
        f"{found['length']} tokens a sentence. "
        f"In memory after loading: {memory['resident_bytes'] / 2**20:.1f} MB, of a file of "
        f"{memory['file_bytes'] / 2**20:.1f} MB; {memory['tiny_resident_bytes'] / 2**20:.1f} MB of it for a first load "
        "of whatever size (a BERT of some kilobytes)."
    )


def processors() -> str:
    """The headlines of every benchmark of speed, a column for each processor that has some."""
    found: dict[str, dict[str, str]] = {}
    for benchmark, headlines in SPEEDS.items():
        for row in by_processor(benchmark):
            if not row.get("quick"):
                for what, unit, number in headlines(row):
                    found.setdefault(f"{what}, {unit}", {})[processor_of(row)] = spoken(number)
    columns = list(dict.fromkeys(who for numbers in found.values() for who in numbers))
    rows = [[what, *(numbers.get(who, "–") for who in columns)] for what, numbers in found.items()]
    return markdown(["", *columns], rows)


def limits() -> str:
    """A prompt and decoding beside what the processor multiplies and copies, a column for each model and processor."""
    found = [row for row in by_processor("limits") if not row.get("quick")]
    if not found:
        raise NotMeasured("limits has not been measured")
    head = [f"{row['model']}, {processor_of(row)}, kernels {row['kernels']}" for row in found]
    pairs = ("prompt_tokens_per_second", "prompt"), ("decode_tokens_per_second", "one by one")
    rows = []
    for key, what in pairs:
        for who in dict.fromkeys(name for row in found for name in row[key]):
            rows.append([f"{what}, {who}, tokens/s", *(f"{row[key][who]:,.1f}" for row in found)])
        best = [max(speed for who, speed in row[key].items() if who != "torch FP32") for row in found]
        rows.append(
            [f"{what}, times FP32", *(f"{b / row[key]['torch FP32']:.2f}×" for b, row in zip(best, found, strict=True))]
        )
    rows += [
        ["multiplied at most, 10⁹ products/s", *(f"{row['products_per_second'] / 1e9:.0f}" for row in found)],
        ["prompt, share of that", *(f"{100 * row['share_of_products']:.0f} %" for row in found)],
        ["copied, GB/s", *(f"{row['copied_bytes_per_second'] / 1e9:.1f}" for row in found)],
        ["one by one, file read, share of that", *(f"{100 * row['share_of_copying']:.0f} %" for row in found)],
        ["load, s", *(f"{row['memory']['load_seconds']:.2f}" for row in found)],
        ["load, dense, s", *(f"{row['dense_load_seconds']:.2f}" for row in found)],
        ["resident after load, of the file", *(f"{_resident(row):.2f}×" for row in found)],
    ]
    return markdown(["", *head], rows)


def cache_bits() -> str:
    """What bits of keys and values cost, and what a step then takes, a line for each model and length."""
    head = ["", "read before", "bits", "perplexity", "apart, nats", "tokens/s"]
    body = []
    for row in read("cache_bits"):
        for bits, perplexity in row["perplexity"].items():
            apart = f"{row['apart'][bits]:.4f}" if bits in row["apart"] else ""
            who = f"{row['model']}, {processor_of(row)}"
            body.append(
                [who, f"{row['before']:,}", bits, f"{perplexity:.3f}", apart, f"{row['tokens_per_second'][bits]:.1f}"]
            )
    return markdown(head, body)


def _resident(row: dict[str, Any]) -> float:
    return row["memory"]["resident_bytes"] / row["memory"]["file_bytes"]


def embed() -> str:
    """Texts a second of `abridged embed` by its workers."""
    rows = [
        [f"{row['name']}, {row['model']}", str(row["workers"]), f"{row['texts_per_second']:.0f}", f"{row['load']:.1f}"]
        for row in read("embed")
    ]
    return markdown(["", "workers", "texts/s", "load average"], rows)


def kronecker_size() -> str:
    """What is left of GPT-2 124M."""
    found = latest("kronecker size")
    rows = [
        [
            name,
            f"{row['parameters_before'] / 1e6:.1f}M",
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
        ]
        for name, row in found["layouts"].items()
    ]
    files = [_file(name, row) for name, row in found["files"].items()]
    layouts = markdown(["factored by 2", "parameters", "left", "seconds", "of a core", "peak GB"], rows)
    return f"{layouts}\n\n{markdown(['file', 'MB', 'limit', 'ratio'], files)}"


def kronecker_speed() -> str:
    """A factored layer beside the dense one, by shape."""
    found = latest("kronecker speed")
    rows = [
        [
            f"{name}: {row['factors']}",
            f"{row['operations']:.2f}",
            f"{row['weight_bytes'] / 2**20:.1f} of {row['dense_bytes'] / 2**20:.1f}",
            *(f"{row[dtype]['forward_ratio']:.2f}" for dtype in ("float32", "bfloat16")),
            *(f"{row['float32'][key]:.2f}" for key in ("step_ratio", "step_built_ratio")),
        ]
        for name, row in found["rows"].items()
    ]
    head = ["of dense", "operations", "MB, FP32", "forward, FP32", "forward, bf16", "training step", "training, built"]
    return markdown(head, rows)


def pruning_speed() -> str:
    """Models at half of the FLOPs."""
    found = latest("pruning speed")
    titles = {"gpt2": "GPT-2 124M", "bert": "BERT-base"}
    head = [f"{titles[case.partition(',')[0]]},{case.partition(',')[2]}/s" for case in found["tokens_per_second"]]
    sizes = (
        f"{titles[shape]} {', '.join(f'{count / 1e6:.1f}M ({name})' for name, count in counts.items())}"
        for shape, counts in found["parameters"].items()
    )
    return (
        rates(
            [title.replace("writing", "writing, tokens") for title in head],
            [*found["tokens_per_second"].values()],
            "whole",
        )
        + f"\n\nParameters: {'; '.join(sizes)}. {found['threads']} threads."
    )


def pruning_cost() -> str:
    """A training step with masks."""
    found = latest("pruning cost")
    seconds, more = found["seconds_per_step"], found["more_than_distillation"]
    rows = [
        [name, f"{1000 * s:.0f}", f"{100 * more[name]:+.1f} %" if name in more else ""] for name, s in seconds.items()
    ]
    return markdown(["step", "ms", "more than distillation"], rows)


def pruning_memory() -> str:
    """Masks, cut and fit of a LLaMA of the 7B shape whose weights stay on disk, and what all of its layers come to."""
    found = latest("pruning_memory", model="llama-2-7b")
    every = found["all_layers"]
    rows = [
        [f"{layers} layers", f"{row['parameters'] / 1e9:.2f}", f"{row['peak_bytes'] / 2**30:.1f}"]
        for layers, row in found["rows"].items()
    ]
    if "32" not in found["rows"]:
        rows.append(["32 layers, reckoned", f"{every['parameters'] / 1e9:.2f}", f"{every['peak_bytes'] / 2**30:.1f}"])
    return markdown(["LLaMA-2-7B's sizes", "billion parameters", "peak GB"], rows)


def adapters() -> str:
    """What adapters gain on another domain's text beside the teacher."""
    gains = [
        [
            f"{row['name']} on {row['task']}, {row['steps']} steps: share of the teacher's gain in nats",
            f"{row['share']:.2f}",
        ]
        for row in read("adapters quality")
    ]
    return markdown(["adapters beside", ""], gains)


def adapters_memory() -> str:
    """What training adapters holds beside the packed file; MB = 2^20 bytes."""
    columns = "file_bytes", "adapter_state_bytes", "fixed_bytes"
    rows = [
        [
            row["name"],
            *(f"{row[column] / 2**20:,.1f}" for column in columns),
            f"{row['times_file']:.2f}",
            f"{row['bytes_a_token'] / 2**20:.2f}",
        ]
        for row in read("adapters memory")
    ]
    held = ["packed file, MB", "adapters, gradients, averages", "held at most without activations", "in files"]
    return markdown(["model", *held, "activations of a token"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "sizes": sizes,
    "cost": cost,
    "memory": memory,
    "index": index,
    "runtime": runtime,
    "kernel": kernel,
    "paths": paths,
    "growth": growth,
    "encoder_decoder": encoder_decoder,
    "limits": limits,
    "cache_bits": cache_bits,
    "embed": embed,
    "encoders": encoders,
    "processors": processors,
    "kronecker_size": kronecker_size,
    "kronecker_speed": kronecker_speed,
    "pruning_speed": pruning_speed,
    "pruning_cost": pruning_cost,
    "pruning_memory": pruning_memory,
    "adapters": adapters,
    "adapters_memory": adapters_memory,
}
