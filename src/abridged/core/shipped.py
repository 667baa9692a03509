"""The recipes that come along, by name; what they do is read by `abridged.recipe`, which takes longer to import."""

from importlib.resources import files
from pathlib import Path
from typing import Any

FOLDER = Path(str(files("abridged") / "recipes"))


def names() -> list[str]:
    """Of all, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def headings() -> list[dict[str, Any]]:
    """`name`, `description` and `paper` of each."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast, where yaml was built with it
    heads = ((FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\nstages:")[0] for name in names())
    found = (yaml.load(head, loader) for head in heads)
    return [{key: head.get(key) for key in ("name", "description", "paper")} for head in found]
