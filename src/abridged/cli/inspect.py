"""`abridged inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import fast_steps, megabytes, print_json, print_pairs, print_table, quiet
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model's directory, compressed or ordinary; with --dry also a name on the hub.",
            show_default=False,
        ),
    ],
    dry: Annotated[
        bool,
        typer.Option("--dry", help="Read no weights: say what the model is made of, and what methods can do with it."),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="With --dry: what this recipe would make of its size.", show_default=False),
    ] = None,
    load: Annotated[
        bool, typer.Option("--load", help="Load the model too, and say whether it writes by fast steps.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Say where a model's bytes are: in all, by part, and by module; and how each module is stored.

    Examples: abridged inspect small; abridged inspect gpt2 --dry --recipe best-2-2-8
    """
    if recipe is not None and not dry:
        raise AbridgedError("--recipe says what would become of a model, and so needs --dry")
    if dry:
        _foresee(model, recipe, json)
        return
    from abridged.checkpoint.inspect import inspect as run

    directory = Path(resolve(model))
    account = run(directory)
    if load:
        account |= _loaded(directory)
    if json:
        print_json(account)
        return
    print_pairs(
        {
            "on disk": f"{megabytes(account['file_bytes'])} ({account['file_bytes']:,} bytes)",
            "in FP32": megabytes(account["dense_bytes"]),
            "ratio": f"{account['ratio']:.1f} times smaller",
            "bits per weight": f"{account['bits_per_weight']:.2f}",
            "parameters": f"{account['parameters']:,}" + _left(account),
            "verified": _verified(account["verified"]),
            **({"fast steps": fast_steps(account)} if "fast_steps" in account else {}),
        }
    )
    typer.echo()
    parts = account["parts"].items()
    print_table(
        ["part", "parameters", "FP32", "on disk", "bits per weight"],
        [[name, f"{row['parameters']:,}", *_sizes(row)] for name, row in parts],
    )
    typer.echo()
    print_table(
        ["module", "shape", "FP32", "on disk", "bits per weight", "stored as"],
        [[row["name"], "x".join(map(str, row["shape"])), *_sizes(row), _stored(row)] for row in account["modules"]],
        left=(0, 5),
    )


def _verified(names: list[str] | None) -> str:
    """What of the files is what was written, as far as digests tell."""
    if names is None:
        return "nothing: an ordinary model has no digests"
    from abridged.checkpoint.verify import WEIGHTS_ALONE

    return ", ".join(names) if len(names) > 1 else f"weights; {WEIGHTS_ALONE}"


def _foresee(model: str, name: str | None, json: bool) -> None:
    """What would become of a model; no weights are read."""
    from abridged.recipe import Recipe

    recipe = None if name is None else Recipe.load(name)
    quiet()
    from abridged.training.dry import foresee

    found = foresee(model, recipe)
    if json:
        print_json(found)
        return
    made = found["model"]
    rows = {
        "model": f"{made['class']}, {made['parameters']:,} parameters, {megabytes(made['dense_bytes'])} in FP32",
        "heads, context, norms": f"{made['heads']}, {made['context']}, {made['norms']}",
        "streams": "; ".join(f"{s['path']}: {s['blocks']} blocks, {s['width']} wide" for s in made["streams"]),
        "logits": _logits(made["logits"]),
        "reached by no method": f"{100 * made['uncompressed']:.1f} % of the weights",
    }
    for fault in made["faults"]:
        rows[f"note {len(rows) - 4}"] = fault
    for method, refusal in found["methods"].items():
        rows[method] = refusal or "can be done"
    if "recipe" in found:
        size, about = found["recipe"], "" if found["recipe"]["exact"] else "about "
        rows[size["name"]] = f"{about}{megabytes(size['file_bytes'])}, {size['ratio']:.1f} times smaller"
    print_pairs(rows)
    typer.echo()
    print_table(
        ["part", "matrices", "parameters"],
        [[part, str(row["matrices"]), f"{row['parameters']:,}"] for part, row in made["matrices"].items()],
    )
    if made["parts"]:
        typer.echo()
        print_table(
            ["units of", "parts", "units of each"],
            [[row["kind"], str(row["parts"]), f"{row['units']:,}"] for row in made["parts"]],
        )


def _logits(logits: dict[str, Any] | None) -> str:
    """What makes logits of the last hidden state, as a person would write it."""
    if logits is None:
        return "no head for tokens that reads the last hidden state"
    scale = logits["scale"] * logits["input_scale"]
    product = "head(h)" if scale == 1 else f"{scale:g} * head(h)"
    return product if logits["cap"] is None else f"{product}, soft-capped at {logits['cap']:g}"


def _loaded(directory: Path) -> dict[str, Any]:
    """What only a model in memory can tell."""
    quiet()
    from abridged.checkpoint.load import load
    from abridged.evaluation.speed import steps_of

    return steps_of(load(directory))


def _left(account: dict[str, Any]) -> str:
    """How many numbers are left where matrices are factored or cut."""
    stored = account["stored_parameters"]
    return "" if stored == account["parameters"] else f", of which {stored:,} are left"


def _sizes(row: dict[str, Any]) -> Sequence[str]:
    """Size in FP32, on disk, and the bits that a weight comes to, scales and quantisers included."""
    bits = f"{8 * row['bytes'] / row['parameters']:.2f}" if row["parameters"] else "-"
    return megabytes(row["dense_bytes"]), megabytes(row["bytes"]), bits


def _stored(row: dict[str, Any]) -> str:
    """How a module is stored, in a few words."""
    words = [row["stored"]]
    if "scales" in row:
        words.append(
            f"{row['num_scales']} {row['scale_dtype']} scale{'s' * (row['num_scales'] > 1)} by {row['scales']}"
            + " with zero points" * row["zero_points"]
        )
    if row.get("error") is not None:
        words.append(f"{100 * row['error']:.0f} % off at the start")
    if activations := row.get("activations"):
        words.append(f"input in {activations['bits']} bits")
    if tied := row.get("tied"):
        words.append(f"also read by {', '.join(tied)}")
    return "; ".join(words)
