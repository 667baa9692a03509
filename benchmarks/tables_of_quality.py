"""Tables of what is lost: perplexity, ROUGE and scores of students."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import mean

from rendering import DOCS, loss, markdown, spread
from results import NotMeasured, Row, latest, read

from abridged.recipe import Recipe

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


def quantizers() -> str:
    """2-2-8: every method at its best rate."""
    by_method: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for result in read("quantizers", bits="2-2-8", changed=None):
        by_method[result["name"]][result["learning_rate"]].append(result)
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
    columns = ["1-1-8", "4-4-8", "8-8-8"]
    for bits in columns:
        for result in read("quantizers", bits=bits, seed=0):
            cells[result["name"]][bits] = f"{loss(result):.1f}"
    rows = [[TITLES[m], *(cells[m].get(c, "–") for c in columns)] for m in TITLES if m in cells]
    return markdown(["loss %, token", *columns], rows)


def ablations() -> str:
    """QuantGPT 2-2-8 with one thing changed."""
    results = [r for r in read("quantizers") if "changed" in r]
    rows = [[r["changed"], f"{loss(r):.1f}", f"{loss(r, 'word_perplexity'):.1f}"] for r in results]
    return markdown(["changed", "loss %, token", "loss %, word"], rows)


def targets() -> str:
    """The recipes that train, at their own lengths."""
    by_recipe: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for result in read("recipes"):
        if result["steps"]:
            by_recipe[result["recipe"], result["steps"]].append(result)
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
                lost(results),
                lost(results, "word_perplexity"),
            ]
        )
    return markdown(["recipe", "steps", "training", "perplexity", "loss %, token", "loss %, word"], rows)


def lost(results: list[Row], key: str = "perplexity") -> str:
    """Per cent of perplexity lost, over seeds: below 1 % with one more digit."""
    losses = [loss(x, key) for x in results]
    return spread(losses, 2 if abs(mean(losses)) < 1 else 1)


def untrained() -> str:
    """The recipes without training and llama.cpp's types of the same teacher, by the bytes of their weights."""
    found = [(row["recipe"], row["file_bytes"], row) for row in read("recipes", steps=0, seed=0, model="bundled")]
    found += [(f"llama.cpp {row['name']}", row["tensor_bytes"], row) for row in read("llama_types", model="bundled")]
    rows = []
    for name, size, row in sorted(found, key=lambda one: -one[1]):
        tested = [f"{row['student']['perplexity']:.2f}", lost([row])] if "student" in row else ["–", "–"]
        rows.append([name, f"{size / 2**20:.2f}", f"{row['validation']['perplexity']:.2f}", *tested])
    return markdown(["", "MB", "validation perplexity", "test perplexity", "loss %, test"], rows)


def curve() -> str:
    """docs/loss-against-steps.svg: validation perplexity of each recipe's first seed over its training."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    results = [row for row in read("recipes", seed=0) if row["steps"]]
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
    figure.savefig(DOCS / "loss-against-steps.svg", metadata={"Date": None})
    plt.close(figure)
    picture = "![Validation perplexity against training steps, per recipe](loss-against-steps.svg)"
    return f"{picture}\n\nEvery rate falls to 0 at the end of its run, which is where most is gained."


def bart_teachers() -> str:
    """The small BARTs beside what takes no model."""
    head = ["", "ROUGE-1", "ROUGE-2", "ROUGE-L", "words", "repeated pairs %"]
    parts = []
    for found in sorted(read("summaries teacher"), key=lambda row: row["task"], reverse=True):
        best = max(found["baselines"].values(), key=lambda scores: scores["rouge1"])
        rows = [
            [
                name,
                *(f"{scores[key]:.2f}" for key in ("rouge1", "rouge2", "rougeL")),
                f"{scores['words']:.1f}",
                f"{100 * scores['repeated']:.1f}",
            ]
            for name, scores in {"teacher": found["teacher"], **found["baselines"]}.items()
        ]
        gain = 100 * (found["teacher"]["rouge1"] / best["rouge1"] - 1)
        parts.append(
            f"{markdown([found['task'], *head[1:]], rows)}\n\n{found['pairs']:,} pairs. The teacher's ROUGE-1 is "
            f"{abs(gain):.0f} % {'above' if gain > 0 else 'below'} that of the best of the others; its perplexity "
            f"of the references is {found['perplexity']['perplexity']:.2f}."
        )
    return "\n\n".join(parts)


def summaries() -> str:
    """Students of the small BART, at equal steps."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for result in read("summaries students"):
        by_name[result["name"]].append(result)
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


#: Tasks whose teacher is hardly better than the majority class, so that what is lost of it says little.
AT_CHANCE = {"rte"}


def is_trial(name: str) -> bool:
    """Whether a contestant is a recipe with something changed: "best-bert-2-2-8, augmented". They stand in the log."""
    return ", " in name


def glue() -> str:
    """Students of MiniLM in few bits: points lost by task, a row for each recipe."""
    return points_lost(run for run in read("glue") if "kngpt2" not in run["recipe"])


def glue_trials() -> str:
    """The same for what was changed in recipes."""
    return points_lost((run for run in read("glue") if "kngpt2" not in run["recipe"]), trials=True)


def glue_factors() -> str:
    """Factored students of MiniLM, and of GPT-2: points lost by task, a row for each recipe."""
    return points_lost(run for run in read("glue") if "kngpt2" in run["recipe"])


def glue_factors_trials() -> str:
    """The same for what was changed in recipes."""
    return points_lost((run for run in read("glue") if "kngpt2" in run["recipe"]), trials=True)


def points_lost(results: Iterable[Row], trials: bool = False) -> str:
    """Points lost by task, a row for each student; a task's teacher may have been made more than once."""
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for result in results:
        task = result["task"] if result["model"] == "minilm" else f"{result['task']}, GPT-2"
        if is_trial(result["name"]) == trials:
            found[f"{result['name']}, {result['steps']:,} steps"][task].append(result)
        scores[task][result["teacher_hash"]] = result["teacher"]["score"]
    tasks = sorted(scores)
    teachers = [mean(scores[task].values()) for task in tasks]
    sure = [task for task in tasks if task not in AT_CHANCE]
    rows = [["the teacher's score", *(f"{score:.1f}" for score in teachers), "", ""]]
    ordered = []
    for recipe, by_task in found.items():
        lost = {task: [run["teacher"]["score"] - run["student"]["score"] for run in by_task[task]] for task in by_task}
        cells = [spread(lost[task]) if task in lost else "–" for task in tasks]
        means = [mean(mean(lost[t]) for t in some) if lost.keys() >= set(some) else None for some in (sure, tasks)]
        row = [f"{recipe}, points lost", *cells, *("–" if value is None else f"{value:.1f}" for value in means)]
        ordered.append((len(tasks) - len(lost), mean(mean(points) for points in lost.values()), row))
    return markdown(["", *tasks, "mean without RTE", "mean"], [*rows, *(row for _, _, row in sorted(ordered))])


def kronecker() -> str:
    """Kronecker factors and their rivals, at equal steps."""
    results = sorted(read("kronecker quality"), key=loss)
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


#: Contestant of benchmarks/pruning.py -> what the table calls it.
PRUNED = {
    "best-vtrans": "best-vtrans, best-bert-vtrans",
    "best-vtrans, high rate": "best-vtrans, 5e-4 after the cut",
    "best-vtrans, single units": "single hidden units",
    "best-vtrans, single units, high rate": "single hidden units, 5e-4 after the cut",
    "vib": "VTrans",
    "vib, as published": "VTrans, masks as published",
    "fast-vtrans": "Fast-VTrans",
    "faster-vtrans": "Faster-VTrans",
    "l0": "L0",
    "l0, measured start": "L0, measured start",
    "l0, reconstructed": "best-vtrans with L0",
    "cofi": "CoFi-style",
    "taylor": "Taylor",
    "taylor, twice the rate": "Taylor, 1e-3 after the cut",
    "taylor, low rate": "Taylor, 1e-4 after the cut",
    "l0, low rate": "L0, 1e-4 after the cut",
    "magnitude": "magnitude",
    "random": "random",
    "best-vtrans, trimmed": "best-vtrans, rare tokens left out first",
    "taylor, trimmed": "Taylor, likewise",
    "l0, trimmed": "L0, likewise",
}


def pruning() -> str:
    """Every contestant at each share of all parameters, by task."""
    return pruned(of_layers=False)


def pruning_trials() -> str:
    """The same for what was changed in contestants."""
    return pruned(of_layers=False, trials=True)


def pruning_layers() -> str:
    """Ours and CoFi-style at each share of the layers' parameters, embeddings not counted."""
    return pruned(of_layers=True)


#: What a run of benchmarks/pruning.py has, unless its column says otherwise.
STEPS = 300


def pruned(of_layers: bool, trials: bool = False) -> str:
    """Contestants by task and share, of the layers' parameters or of all."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    whole: dict[str, float] = {}
    for result in read("pruning quality", of="layers" if of_layers else "parameters", device=None):
        name, task = result["name"], result["task"]
        if name in PRUNED:
            key = "perplexity" if task == "text" else "score"
            share = f"{100 * result['share']:g} %"
            share += "" if result["steps"] == STEPS else f", {result['steps']:,} steps"
            if is_trial(name) == trials:
                found[task, share][name].append(result["student"][key])
            if not name.endswith(", trimmed"):
                whole[task] = result["teacher"][key]
    tasks = {"text": "GPT-2, perplexity", "sst2": "SST-2", "rte": "RTE", "mrpc": "MRPC"}

    def place(column: tuple[str, str]) -> tuple[int, bool, float]:
        task, share = column
        return list(tasks).index(task), "steps" in share, -float(share.split()[0])

    columns = sorted(found, key=place)
    rows = [
        [name, *(spread(found[column][kind]) if found[column].get(kind) else "–" for column in columns)]
        for kind, name in PRUNED.items()
        if any(found[column].get(kind) for column in columns)
    ]
    rows.insert(0, ["whole", *(f"{whole[task]:.1f}" for task, _ in columns)])
    return markdown(["", *(f"{tasks[task]} at {share}" for task, share in columns)], rows)


#: The published variants, each at its own length; times are of the same machine.
VARIANTS = ("vib", "fast-vtrans", "faster-vtrans")


def pruning_variants() -> str:
    """VTrans and its faster variants on SST-2 at half of the parameters: score, time and memory."""
    runs = {
        kind: latest("pruning quality", name=kind, task="sst2", share=0.5, of="parameters", steps=1000, seed=0)
        for kind in VARIANTS
    }
    seconds = {kind: run["seconds"] + run["finish_seconds"] for kind, run in runs.items()}
    rows = [
        [
            PRUNED[kind],
            f"{run['student']['score']:.1f}",
            f"{run['teacher']['score'] - run['student']['score']:.1f}",
            f"{seconds[kind]:.0f}",
            f"{seconds['vib'] / seconds[kind]:.1f}×",
            f"{run['peak_bytes'] / 2**20:,.0f}",
        ]
        for kind, run in runs.items()
    ]
    return markdown(["half of MiniLM-L6, SST-2", "score", "points lost", "seconds", "faster", "peak MB"], rows)


#: Recipes that prune and then quantise.
COMPOSED = ("vtrans-quantgpt", "best-vtrans-2-2-8")


def pruning_composed() -> str:
    """Pruned and then in 2 bits: the file, and what is lost."""
    rows = []
    results = (result for result in read("pruning quality", of="parameters") if result["name"] in COMPOSED)
    for result in sorted(results, key=loss):
        lost = result["loss_percent"]
        rows.append(
            [
                f"{result['recipe']}, {100 * result['share']:g} % of the parameters",
                f"{result['file_bytes'] / 2**20:.2f}",
                f"{result['student']['perplexity']:.1f}",
                f"{lost['perplexity']:.1f}",
                f"{lost['word_perplexity']:.1f}",
            ]
        )
    return markdown(["student", "MB", "perplexity", "loss %, token", "loss %, word"], rows)


#: What heads look at: keys of a row, and what the table calls them.
LOOKS = {
    "special": "special tokens",
    "current": "the current token",
    "either": "either of these",
    "previous": "the one before",
    "entropy": "many alike (entropy)",
}


def pruning_heads() -> str:
    """Rank correlations of heads' scores with what they look at, and docs/heads.svg: the first seed of each task."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for result in read("pruning_heads"):
        runs[result["task"]].append(result)
    if not runs:
        raise NotMeasured
    titles = {"sst2": "MiniLM-L6, SST-2", "text": "the bundled GPT-2, WikiText-2"}
    rows = []
    for task, results in sorted(runs.items()):
        removed = mean(mean(head["removed"] for head in result["heads"]) for result in results)
        found = ([r["correlation"][key] for r in results if r["correlation"][key] is not None] for key in LOOKS)
        rows.append(
            [
                titles[task],
                str(len(results[0]["heads"])),
                f"{100 * removed:.0f} %",
                *(spread(values, digits=2) if values else "–" for values in found),
            ]
        )
    draw_heads({titles[task]: min(results, key=lambda r: r["seed"]) for task, results in sorted(runs.items())})
    header = ["Spearman, score with attention on", "heads", "removed", *LOOKS.values()]
    return f"{markdown(header, rows)}\n\n![Attention of heads, which were removed, and their scores](heads.svg)"


def draw_heads(results: dict[str, Row]) -> None:
    """docs/heads.svg: for each run a heat map of heads beside their scores against the same shares."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "abridged", "font.size": 9})
    figure, all_axes = plt.subplots(
        len(results), 2, figsize=(7.2, 3.0 * len(results)), layout="constrained", squeeze=False
    )
    for (title, result), (left, right) in zip(results.items(), all_axes, strict=True):
        heads = result["heads"]
        modules = list(dict.fromkeys(head["module"] for head in heads))
        width = 1 + max(head["head"] for head in heads)
        shares = [[0.0] * width for _ in modules]
        for head in heads:
            row = modules.index(head["module"])
            shares[row][head["head"]] = max(head["special"], head["current"])
            if head["removed"]:
                left.plot(head["head"], row, marker="x", color="black", markersize=6)
        shown = left.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        left.set(xlabel="head", ylabel="layer", title=title, xticks=range(width), yticks=range(len(modules)))
        figure.colorbar(shown, ax=left, label="special or current")
        for state, label, marker in ((False, "kept", "o"), (True, "removed", "x")):
            some = [head for head in heads if head["removed"] == state]
            looks = [max(head["special"], head["current"]) for head in some]
            right.plot(looks, [head["score"] for head in some], marker, markersize=4, linestyle="", label=label)
        right.set(xlabel="special or current, share of attention", ylabel="score")
        right.grid(alpha=0.3)
        right.legend(frameon=False)
    figure.savefig(DOCS / "heads.svg", metadata={"Date": None})
    plt.close(figure)


def demo() -> str:
    """What `make demo` prints, from the run whose record was kept."""
    records = latest("demo")
    return markdown(["model", "perplexity", "loss", "per word", "loss", "MB on disk", "ratio"], records["rows"])


def parity() -> str:
    """Kernels against the reference on a whole model."""
    rows = [
        [
            name,
            f"{row['perplexity']:.3f}",
            f"{row['perplexity_difference_percent']:+.3f}",
            f"{row['same_likeliest_token_percent']:.2f}",
        ]
        for name, row in latest("parity")["rows"].items()
    ]
    return markdown(["computed by", "perplexity", "difference %", "same likeliest token %"], rows)


def real_model() -> str:
    """A pre-trained model by recipes without training and block by block, measured once on a whole text."""
    runs = read("blocks compress", model="smollm2-135m", part="test", limit=None)
    if not runs:
        raise NotMeasured
    rows = [
        [
            ", ".join([run["recipe"], *run["overrides"][1:]]),
            f"{run['file_bytes'] / 2**20:.1f}",
            f"{run['student']['perplexity']:.2f}",
            f"{loss(run):.1f}",
            "–" if run["seconds"] is None else f"{run['seconds'] / 60:.0f}",
            f"{run['peak_bytes'] / 2**30:.2f}",
        ]
        for run in sorted(runs, key=lambda run: (-run["file_bytes"], loss(run)))
    ]
    rows.insert(0, ["teacher", "", f"{runs[0]['teacher']['perplexity']:.2f}", "", "", ""])
    return markdown(["SmolLM2-135M", "MB", "perplexity", "loss %", "minutes", "peak GB"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "quantizers": quantizers,
    "widths": widths,
    "ablations": ablations,
    "targets": targets,
    "untrained": untrained,
    "curve": curve,
    "bart_teachers": bart_teachers,
    "summaries": summaries,
    "glue": glue,
    "glue_factors": glue_factors,
    "glue_factors_trials": glue_factors_trials,
    "glue_trials": glue_trials,
    "kronecker": kronecker,
    "pruning": pruning,
    "pruning_layers": pruning_layers,
    "pruning_composed": pruning_composed,
    "pruning_heads": pruning_heads,
    "pruning_trials": pruning_trials,
    "pruning_variants": pruning_variants,
    "demo": demo,
    "parity": parity,
    "real_model": real_model,
}
