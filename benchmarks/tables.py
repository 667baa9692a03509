"""Makes the tables of docs/results.md and README.md from the JSON in benchmarks/results.

    python benchmarks/tables.py

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; nothing else in the pages is touched.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import StatisticsError, mean, stdev
from typing import Any

from abridged.recipe import Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = (HERE.parent / "docs" / "results.md", HERE.parent / "README.md")
TITLES = {
    "dynamic": "QuantGPT (dynamic + contrastive)",
    "lsq": "LSQ",
    "pact": "PACT",
    "laq": "LAQ",
    "twn": "TWN",
    "minmax": "min-max",
}
#: Per cent lost by each method in Tao et al. (ACL 2022), GPT-2 on WikiText-2: 17.30, 848, 173 and 19.15 against 14.48.
PAPER = {"dynamic": 19.5, "lsq": 5756.0, "pact": 1095.0, "laq": 32.3}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def read(folder: str) -> list[dict[str, Any]]:
    """All results in a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("*.json"))]


def loss(result: dict[str, Any], key: str = "perplexity") -> float:
    """Per cent of perplexity lost on the test text."""
    return result["loss_percent"][key]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, and of how many."""
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({len(values)} seeds)" if len(values) > 1 else f"{values[0]:.1f}"


def quantizers() -> str:
    """2-2-8: every method at its best rate."""
    by_method: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in read("quantizers"):
        found = re.fullmatch(r"(\w+)-2-2-8-lr(.+)-seed\d+", result["name"])
        if found:
            by_method[found[1]][float(found[2])].append(result)
    rows = []
    for method, rates in by_method.items():
        chosen = min(rates, key=lambda r: mean(x["validation"]["perplexity"] for x in rates[r]))
        results = rates[chosen]
        rows.append(
            (
                mean(map(loss, results)),
                [
                    TITLES[method],
                    f"{chosen:g} of {', '.join(f'{r:g}' for r in sorted(rates))}",
                    f"{mean(x['student']['perplexity'] for x in results):.2f}",
                    spread([loss(x) for x in results]),
                    spread([loss(x, "word_perplexity") for x in results]),
                    f"{PAPER[method]:g}" if method in PAPER else "–",
                ],
            )
        )
    header = ["2-2-8", "learning rate", "perplexity", "loss %, token", "loss %, word", "paper's loss % (GPT-2 124M)"]
    return markdown(header, [row for _, row in sorted(rows)])


def widths() -> str:
    """1-1-8, 4-4-8 and 8-8-8."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for result in read("quantizers"):
        found = re.fullmatch(r"(\w+)-(1-1-8|4-4-8|8-8-8)-seed0", result["name"])
        if found:
            cells[found[1]][found[2]] = f"{loss(result):.1f}"
    columns = ["1-1-8", "4-4-8", "8-8-8"]
    rows = [[TITLES[m], *(cells[m].get(c, "–") for c in columns)] for m in TITLES if m in cells]
    return markdown(["loss %, token", *columns], rows)


def ablations() -> str:
    """QuantGPT 2-2-8 with one thing changed."""
    results = [r for r in read("quantizers") if r["name"].startswith("ablation-")]
    rows = [
        [r["name"].removeprefix("ablation-"), f"{loss(r):.1f}", f"{loss(r, 'word_perplexity'):.1f}"] for r in results
    ]
    return markdown(["changed", "loss %, token", "loss %, word"], rows)


def targets() -> str:
    """The recipes at their own lengths."""
    by_recipe: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for result in read("recipes"):
        by_recipe[result["recipe"], sum(result["steps"])].append(result)
    rows = []
    for (recipe, steps), results in sorted(by_recipe.items()):
        rows.append(
            [
                recipe,
                f"{steps:,}",
                # a run that was taken up again knows only how long it took from there
                ("> " if any(x.get("resumed") for x in results) else "")
                + f"{mean(x['seconds'] for x in results) / 60:.0f} min",
                f"{mean(x['student']['perplexity'] for x in results):.2f}",
                spread([loss(x) for x in results]),
                spread([loss(x, "word_perplexity") for x in results]),
            ]
        )
    return markdown(["recipe", "steps", "training", "perplexity", "loss %, token", "loss %, word"], rows)


def sizes() -> str:
    """Files of the true GPT-2 shape."""
    measured = json.loads((RESULTS / "size.json").read_text())
    rows = [
        [
            name,
            f"{case['file_mb']:.1f}",
            f"{case['limit_mb']:g}",
            f"{case['ratio']:.1f}×",
            f"{case['bits_per_weight']:.2f}",
        ]
        for name, case in measured["cases"].items()
    ]
    return markdown(["shape of GPT-2 124M, BART-base or BERT-base", "MB", "limit", "ratio", "bits per weight"], rows)


def demo() -> str:
    """What `make demo` prints, from the run whose record was kept."""
    records = json.loads((RESULTS / "demo.json").read_text())
    return markdown(["model", "perplexity", "loss %", "per word", "loss %", "MB on disk", "ratio"], records["rows"])


def cost() -> str:
    """Speed and memory of training steps."""
    measured = json.loads((RESULTS / "training_cost.json").read_text())
    rows = [
        [
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed_ratio']:.2f} of {row['against']}" if "speed_ratio" in row else "",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        ]
        for name, row in measured["contestants"].items()
    ]
    return markdown(["step", "tokens/s", "speed", "peak MB"], rows)


def memory() -> str:
    """Peak memory at the true GPT-2 shape."""
    measured = json.loads((RESULTS / "memory.json").read_text())
    rows = [[name, f"{row['peak_bytes'] / 2**30:.2f}", "6"] for name, row in measured["rows"].items()]
    return markdown(["quantgpt-2-2-8 at 124M, batch 4×512", "peak GB", "limit"], rows)


def curve() -> str:
    """docs/loss-against-steps.svg: validation perplexity of each recipe's first seed over its training."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    results = [r for r in read("recipes") if r["seed"] == 0]
    if not results:
        return ""
    matplotlib.rcParams.update({"svg.hashsalt": "abridged", "font.size": 9})
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for result in results:
        batch = Recipe.load(result["recipe"], result["overrides"]).stages[0].training.batch_size
        tokens = [step * batch * result["teacher"]["context"] / 1e6 for _, step, _ in result["curve"]]
        axes.plot(tokens, [p for _, _, p in result["curve"]], label=result["recipe"])
    axes.set(xlabel="million tokens read", ylabel="validation perplexity", ylim=(None, 60))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PAGES[0].parent / "loss-against-steps.svg", metadata={"Date": None})
    plt.close(figure)
    picture = "![Validation perplexity against training steps, per recipe](loss-against-steps.svg)"
    return f"{picture}\n\nEvery rate falls to 0 at the end of its run, which is where most is gained."


def runtime() -> str:
    """Speed of packed models beside torch and llama.cpp."""
    measured = json.loads((RESULTS / "runtime.json").read_text())
    prompt, decode = measured["prompt_tokens_per_second"], measured["decode_tokens_per_second"]

    def cell(row: dict[str, float], name: str) -> list[str]:
        return [f"{row[name]:,.0f}", f"{row[name] / row['torch FP32']:.2f}×"] if name in row else ["–", "–"]

    names = list(prompt) + [name for name in decode if name not in prompt]
    rows = [[name, *cell(prompt, name), *cell(decode, name)] for name in names]
    tokens = f"{measured['prompt_tokens']} tokens at once"
    header = [tokens, "tokens/s", "of FP32", f"then {measured['new_tokens']} one by one, tokens/s", "of FP32"]
    return markdown(header, rows)


def kernel() -> str:
    """The other numbers of the same run."""
    measured = json.loads((RESULTS / "runtime.json").read_text())
    bandwidth, memory_used = measured["bandwidth_gb_per_second"], measured["memory"]
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
    forced = json.loads((RESULTS / "runtime.json").read_text())["forced_paths"]
    keys = ("prompt_tokens_per_second", "decode_tokens_per_second")
    rows = [[name, *(f"{row[key]:,.0f}" for key in keys)] for name, row in forced.items()]
    return markdown(["ABRIDGED_KERNELS", "prompt, tokens/s", "`model.generate`, tokens/s"], rows)


def parity() -> str:
    """Kernels against the reference on a whole model."""
    rows = [
        [
            name,
            f"{row['perplexity']:.3f}",
            f"{row['perplexity_difference_percent']:+.3f}",
            f"{row['same_likeliest_token_percent']:.2f}",
        ]
        for name, row in json.loads((RESULTS / "parity.json").read_text())["rows"].items()
    ]
    return markdown(["computed by", "perplexity", "difference %", "same likeliest token %"], rows)


def growth() -> str:
    """docs/cost-against-size.svg: seconds by the length of a prompt, and by the width of a matrix."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    measured = json.loads((RESULTS / "runtime.json").read_text())["growth"]
    matplotlib.rcParams.update({"svg.hashsalt": "abridged", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
    for axes, xs, series, label in (
        (left, measured["lengths"], measured["by_length"], "tokens of a prompt (whole model)"),
        (right, measured["widths"], measured["by_width"], "width of a square matrix (64 tokens)"),
    ):
        for name, seconds in series.items():
            axes.loglog(xs, [1000 * value for value in seconds], marker="o", markersize=3, label=name)
        axes.set(xlabel=label, ylabel="milliseconds")
        axes.set_xticks(xs, [str(x) for x in xs], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(PAGES[0].parent / "cost-against-size.svg", metadata={"Date": None})
    plt.close(figure)
    return "![Milliseconds against prompt length and matrix width](cost-against-size.svg)\n\nBoth axes are logarithmic."


def bart_teachers() -> str:
    """The small BARTs beside what takes no model."""
    head = ["", "ROUGE-1", "ROUGE-2", "ROUGE-L", "words", "repeated pairs %"]
    parts = []
    for path in sorted((RESULTS / "summaries").glob("teacher-*.json"), reverse=True):
        measured = json.loads(path.read_text())
        best = max(measured["baselines"].values(), key=lambda scores: scores["rouge1"])
        rows = [
            [
                name,
                *(f"{scores[key]:.2f}" for key in ("rouge1", "rouge2", "rougeL")),
                f"{scores['words']:.1f}",
                f"{100 * scores['repeated']:.1f}",
            ]
            for name, scores in {"teacher": measured["teacher"], **measured["baselines"]}.items()
        ]
        gain = 100 * (measured["teacher"]["rouge1"] / best["rouge1"] - 1)
        parts.append(
            f"{markdown([measured['task'], *head[1:]], rows)}\n\n{measured['pairs']:,} pairs. The teacher's ROUGE-1 is "
            f"{abs(gain):.0f} % {'above' if gain > 0 else 'below'} that of the best of the others; its perplexity "
            f"of the references is {measured['perplexity']['perplexity']:.2f}."
        )
    return "\n\n".join(parts)


def summaries() -> str:
    """Students of the small BART, at equal steps."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in read("summaries"):
        if "seed" in result:
            by_name[result["name"].rpartition("-seed")[0]].append(result)
    rows = []
    for name, results in by_name.items():
        rows.append(
            (
                mean(x["loss_percent"]["perplexity"] for x in results),
                [
                    name,
                    spread([x["loss_percent"]["rouge1"] for x in results]),
                    *(
                        f"{mean(x['student']['rouge'][key] for x in results):.2f}"
                        for key in ("rouge1", "rouge2", "rougeL")
                    ),
                    f"{mean(x['student']['perplexity'] for x in results):.2f}",
                    spread([loss(x) for x in results]),
                ],
            )
        )
    head = ["student", "ROUGE-1 lost %", "ROUGE-1", "ROUGE-2", "ROUGE-L", "perplexity", "loss %, token"]
    return markdown(head, [row for _, row in sorted(rows)])


def encoder_decoder() -> str:
    """BART-base's shape, packed and dense."""
    measured = json.loads((RESULTS / "encoder_decoder.json").read_text())
    read_, written = measured["source_tokens_per_second"], measured["written_tokens_per_second"]
    rows = [
        [
            name,
            f"{read_[name]:,.0f}",
            f"{read_[name] / read_['torch FP32']:.2f}×",
            f"{written[name]:,.1f}",
            f"{written[name] / written['torch FP32']:.2f}×",
        ]
        for name in read_
    ]
    return markdown(["", "encoder, tokens/s", "of FP32", "four beams, tokens/s", "of FP32"], rows)


def encoders() -> str:
    """BERT-base's shape, packed and otherwise, in sentences a second."""
    measured = json.loads((RESULTS / "encoders.json").read_text())
    speeds = measured["sentences_per_second"]
    rows = [
        [name, *(word for size in speeds for word in _sentences(speeds[size], name))]
        for name in next(iter(speeds.values()))
    ]
    head = [word for size in speeds for word in (f"batch {size}, sentences/s", "of FP32")]
    memory = measured["memory"]
    return (
        markdown(["", *head], rows)
        + f"\n\n{measured['length']} tokens a sentence, {measured['threads']} threads, kernels {measured['kernels']}. "
        f"In memory after loading: {memory['resident_bytes'] / 2**20:.1f} MB, of a file of "
        f"{memory['file_bytes'] / 2**20:.1f} MB."
    )


def _sentences(speeds: dict[str, float], name: str) -> tuple[str, str]:
    return f"{speeds[name]:.1f}", f"{speeds[name] / speeds['torch FP32']:.2f}×"


def glue() -> str:
    """Students of MiniLM: points lost by task, a row for each recipe."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in read("glue"):
        found[result["recipe"]][result["task"]].append(result)
    tasks = sorted({task for by_task in found.values() for task in by_task})
    teachers = {
        task: run["teacher"]["score"] for by_task in found.values() for task in by_task for run in by_task[task]
    }
    rows = [
        ["fine-tuned MiniLM, score", *(f"{teachers[task]:.1f}" for task in tasks), f"{mean(teachers.values()):.1f}"]
    ]
    ordered = []
    for recipe, by_task in found.items():
        lost = {task: [run["teacher"]["score"] - run["student"]["score"] for run in by_task[task]] for task in by_task}
        average = mean(mean(points) for points in lost.values())
        cells = [spread(lost[task]) if task in lost else "–" for task in tasks]
        ordered.append((len(tasks) - len(lost), average, [f"{recipe}, points lost", *cells, f"{average:.1f}"]))
    return markdown(["", *tasks, "mean"], [*rows, *(row for _, _, row in sorted(ordered))])


def kronecker() -> str:
    """Kronecker factors and their rivals, at equal steps."""
    results = sorted((r for r in read("kronecker") if "loss_percent" in r), key=loss)
    if not results:
        raise FileNotFoundError
    rows = [
        [
            result["name"],
            f"{result['size']['parameters'] / 1e6:.2f}M",
            f"{result['size']['file_bytes'] / 2**20:.2f}",
            "–" if result["size"]["error_at_start"] is None else f"{result['size']['error_at_start']:.2f}",
            f"{result['student']['perplexity']:.2f}",
            f"{loss(result):.1f}",
            f"{loss(result, 'word_perplexity'):.1f}",
        ]
        for result in results
    ]
    header = ["student", "parameters", "MB", "error at the start", "perplexity", "loss %, token", "loss %, word"]
    return markdown(header, rows)


def kronecker_size() -> str:
    """What is left of GPT-2 124M."""
    measured = json.loads((RESULTS / "kronecker" / "size.json").read_text())
    rows = [
        [
            name,
            f"{row['parameters_before'] / 1e6:.1f}M",
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
        ]
        for name, row in measured["layouts"].items()
    ]
    files = [
        [name, f"{row['file_mb']:.1f}", f"{row['limit_mb']:g}", f"{row['ratio']:.1f}×"]
        for name, row in measured["files"].items()
    ]
    layouts = markdown(["factored by 2", "parameters", "left", "seconds", "of a core", "peak GB"], rows)
    return f"{layouts}\n\n{markdown(['file', 'MB', 'limit', 'ratio'], files)}"


def kronecker_speed() -> str:
    """A factored layer beside the dense one, by shape."""
    measured = json.loads((RESULTS / "kronecker" / "speed.json").read_text())
    rows = [
        [
            f"{name}: {row['factors']}",
            f"{row['operations']:.2f}",
            f"{row['weight_bytes'] / 2**20:.1f} of {row['dense_bytes'] / 2**20:.1f}",
            *(f"{row[dtype]['forward_ratio']:.2f}" for dtype in ("float32", "bfloat16")),
            *(f"{row['float32'][key]:.2f}" for key in ("step_ratio", "step_built_ratio")),
        ]
        for name, row in measured["rows"].items()
    ]
    head = ["of dense", "operations", "MB, FP32", "forward, FP32", "forward, bf16", "training step", "training, built"]
    return markdown(head, rows)


def pruning() -> str:
    """Every kind of mask at each share of the parameters, by task."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in read("pruning"):
        named = re.fullmatch(r"([\w-]+)-(text|sst2|rte|mrpc)-(encoder)?([\d.]+)-seed\d+", result["name"])
        if named:
            key = "perplexity" if named[2] == "text" else "score"
            share = f"{100 * float(named[4]):g} %" + (" of the layers" if named[3] else "")
            found[named[2], share][named[1]].append(result["student"][key])
    kinds = ("vib", "l0", "taylor", "magnitude", "random", "cofi", "fast-vtrans", "faster-vtrans")
    tasks = {"text": "GPT-2, perplexity", "sst2": "SST-2", "rte": "RTE", "mrpc": "MRPC"}
    rows = [
        [f"{tasks[task]} at {share}", *(spread(by_kind[kind]) if by_kind.get(kind) else "–" for kind in kinds)]
        for (task, share), by_kind in found.items()
    ]
    return markdown(["", "VTrans", "L0", "Taylor", "magnitude", "random", "CoFi-style", "Fast", "Faster"], rows)


def pruning_speed() -> str:
    """Models at half of the FLOPs."""
    measured = json.loads((RESULTS / "pruning_speed.json").read_text())
    read_, written = measured["read_tokens_per_second"], measured["written_tokens_per_second"]
    rows = [
        [
            name,
            f"{measured['parameters'][name]:,}",
            f"{read_[name]:,.0f}",
            f"{read_[name] / read_['whole']:.2f}×",
            f"{written[name]:,.0f}",
            f"{written[name] / written['whole']:.2f}×",
        ]
        for name in read_
    ]
    return markdown(["", "parameters", "read, tokens/s", "of whole", "written, tokens/s", "of whole"], rows)


def pruning_cost() -> str:
    """A training step with masks."""
    measured = json.loads((RESULTS / "pruning_cost.json").read_text())
    seconds, more = measured["seconds_per_step"], measured["more_than_distillation"]
    rows = [
        [name, f"{1000 * s:.0f}", f"{100 * more[name]:+.1f} %" if name in more else ""] for name, s in seconds.items()
    ]
    return markdown(["step", "ms", "more than distillation"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "quantizers": quantizers,
    "widths": widths,
    "ablations": ablations,
    "targets": targets,
    "sizes": sizes,
    "demo": demo,
    "cost": cost,
    "memory": memory,
    "curve": curve,
    "runtime": runtime,
    "kernel": kernel,
    "paths": paths,
    "parity": parity,
    "growth": growth,
    "bart_teachers": bart_teachers,
    "summaries": summaries,
    "encoder_decoder": encoder_decoder,
    "glue": glue,
    "encoders": encoders,
    "kronecker": kronecker,
    "kronecker_size": kronecker_size,
    "kronecker_speed": kronecker_speed,
    "pruning": pruning,
    "pruning_speed": pruning_speed,
    "pruning_cost": pruning_cost,
}


def make(name: str) -> str:
    """A table, or a sentence where its command has not been run."""
    try:
        made = TABLES[name]()
    except (FileNotFoundError, StatisticsError):
        made = ""
    return made if made.count("\n") > 1 else "Not measured yet."


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"<!-- table:(\w+) -->", text):
            between = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
            text = between.sub(lambda m, made=make(name): f"{m[1]}\n{made}\n\n{m[2]}", text)
        page.write_text(text)


if __name__ == "__main__":
    main()
