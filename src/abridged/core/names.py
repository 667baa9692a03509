"""Names of models: a hub name, a directory, a GGUF file, or one that comes along."""

import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError

#: What is in the package's assets, by name: a small teacher, a small video model, and clips to search with it.
BUNDLED = {"bundled": "teacher", "bundled-video": "video", "bundled-clips": "clips"}


def resolve(name: str | Path) -> str:
    """The directory of what comes along; any other name as it is."""
    if str(name) in BUNDLED:
        return str(files("abridged") / "assets" / BUNDLED[str(name)])
    return str(Path(name).expanduser() if _is_path(name) else name)


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a name means: itself, or the one in a directory without a config.json; None for another model.

    Raises:
        AbridgedError: there are several.
    """
    where = Path(resolve(name))
    if where.is_file() and where.suffix == ".gguf":
        return where
    if not where.is_dir() or (where / "config.json").exists():
        return None
    found = sorted(where.glob("*.gguf"))
    if len(found) > 1:
        raise AbridgedError(f"{name} holds several models, {', '.join(path.name for path in found)}: name one of them")
    return found[0] if found else None


#: Set, code that a model brings along is run: by `--trust-remote-code`, or by a person.
TRUST = "ABRIDGED_TRUST_REMOTE_CODE"


def trusts_code() -> bool:
    """Whether code that a model brings along may be run. Nobody is asked while something runs."""
    return os.environ.get(TRUST, "") not in ("", "0")


def pretrained(name: str | Path) -> dict[str, Any]:
    """The arguments by which transformers' `from_pretrained` finds a model, and whether it may run the model's code.

    Raises:
        AbridgedError: the directory or file does not exist, or holds several models.
    """
    where, file = resolve(name), gguf_file(name)
    if file is not None:
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "trust_remote_code": False}
    if _is_path(name) and not Path(where).exists():
        raise AbridgedError(f"cannot load the model '{name}': there is no such file or directory{nearest(name)}")
    return {"pretrained_model_name_or_path": where, "trust_remote_code": trusts_code()}


def nearest(name: str | Path) -> str:
    """A question after the file or directory that is called most nearly as one that is not there; "" where none is."""
    where = Path(name).expanduser()
    try:
        beside = [path.name for path in where.parent.iterdir()]
    except OSError:
        beside = []
    near = get_close_matches(where.name, beside, 1)
    return f"; did you mean {where.with_name(near[0])}?" if near else ""


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith(("~", ".", "/")) or Path(name).exists()


def is_local(name: str | Path) -> bool:
    """Whether a model or data of that name are on this machine, and not on the hub."""
    return str(name) in BUNDLED or _is_path(name)


def public_name(name: str | Path) -> str:
    """A name as others may read it: of a path only its last part, so that no private folder is published."""
    return Path(name).expanduser().absolute().name if _is_path(name) else str(name)
