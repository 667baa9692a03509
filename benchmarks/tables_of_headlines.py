"""The short tables of docs/results.md: some rows and columns of those that stand in the page of each subject."""

from collections.abc import Callable, Sequence
from functools import partial

from rendering import markdown
from tables_of_cost import cost, runtime, sizes
from tables_of_quality import glue, kronecker, pruning, summaries
from tables_of_video import shapes

#: Table: the one it is of, its rows by their first cells, and its columns by their heads (all, where none are named).
HEADLINES: dict[str, tuple[Callable[[], str], Sequence[str], Sequence[str]]] = {
    "headline_sizes": (
        sizes,
        ("quantgpt-2-2-8", "best-2-2-8", "best-1-1-8", "best-kngpt2-2-2-8", "best-bart-2-2-8", "best-bert-2-2-8"),
        (),
    ),
    "headline_cost": (cost, ("finetune", "distillation", "quantgpt-2-2-8"), ()),
    "headline_runtime": (
        runtime,
        ("packed, loaded in bf16", "torch FP32", "torch int8, dynamic", "llama.cpp TQ2_0"),
        (),
    ),
    "headline_summaries": (summaries, ("best-2-2-8", "quantbart-2-2-8", "lsq-2-2-8", "best-1-1-8"), ()),
    "headline_glue": (
        glue,
        (
            "the teacher's score",
            *(f"{name} steps, points lost" for name in ("best-bert-2-2-8, 300", "best-bert-1-1-8, 1,000")),
            *(f"{name}, 300 steps, points lost" for name in ("ternarybert-2-2-8", "xtc-1-1-8")),
        ),
        (),
    ),
    "headline_kronecker": (
        kronecker,
        ("best-kngpt2", "truncated SVD", "kngpt2", "best-kngpt2-2-2-8"),
        ("parameters", "MB", "perplexity", "loss %, token"),
    ),
    "headline_pruning": (pruning, ("whole", "best-vtrans, best-bert-vtrans", "VTrans", "L0", "Taylor"), ()),
    "headline_shapes": (
        shapes,
        (
            "the image model, frames averaged, untrained",
            "LiteVL",
            "LiteVL, 2-2-8",
            "EA-VTR, from that LiteVL",
            "EA-VTR, 2-2-8",
        ),
        ("R@1", "direction", "order", "moments, IoU", "MB", "BLIP"),
    ),
}


def some_of(table: Callable[[], str], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Those rows and columns of a table."""
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()]
    kept = [0, *(map(head.index, columns) if columns else range(1, len(head)))]
    found = {row[0]: [row[place] for place in kept] for row in body if len(row) == len(head)}
    return markdown([head[place] for place in kept], [found[name] for name in rows if name in found])


TABLES: dict[str, Callable[[], str]] = {name: partial(some_of, *chosen) for name, chosen in HEADLINES.items()}
