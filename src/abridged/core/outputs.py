"""Where an output may go: asked before any work, so that nothing is found out after it."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from abridged.core.atomic import sweep
from abridged.core.errors import AbridgedError
from abridged.core.record import RECORD

#: Bytes that the name of an output may have; file systems allow 255, and some is added while it is written.
_LONGEST = 200


def check_output(
    path: str | Path,
    *,
    directory: bool = True,
    overwrite: bool | None = None,
    inputs: Iterable[str | Path | None] = (),
) -> Path:
    """The absolute path of an output that can be written.

    Args:
        directory: whether a directory is to be made, or a file.
        overwrite: whether what is there may be replaced: a file, or a directory that abridged wrote or that is empty.
            None: never, and nobody is told of such an option.
        inputs: names of models, data and files that the work reads; those that are paths are never replaced.

    Raises:
        AbridgedError: the name is none or too long; there is a link, a thing of the other kind, or something that may
            not be replaced; or the place cannot be written.
    """
    output = output_path(path)
    try:
        _check_place(output)
        sweep(output.parent)
        if output.is_symlink():
            raise AbridgedError(f"{output} is a link: choose another output, or name what it leads to")
        if output.exists():
            _check_replaceable(output, directory, overwrite, inputs)
    except OSError as error:
        raise AbridgedError(f"cannot write to {output}: {error.strerror}") from error
    return output


def output_path(path: str | Path) -> Path:
    """The absolute path of an output. Raises AbridgedError for one that has no name, or one that no file can have."""
    try:
        output = Path(path).expanduser()
        if output.name in ("", "..") or "\0" in str(path):
            raise AbridgedError(f"the output {str(path)!r} has no name of its own: give the name of what to make")
        length = len(os.fsencode(output.name))
        if length > _LONGEST:
            told = f"{output.name[:20]}..., is too long: {length} bytes of at most {_LONGEST}"
            raise AbridgedError(f"the name of the output, {told}")
        return output.absolute()
    except (OSError, RuntimeError, UnicodeEncodeError) as error:  # no such home, no directory to be in, half a letter
        raise AbridgedError(f"cannot write to {str(path)!r}: {error}") from error


def _check_place(output: Path) -> None:
    """Raise AbridgedError where the folder of an output can be neither written nor made."""
    there = next(parent for parent in output.parents if os.path.lexists(parent))
    if not there.is_dir():
        raise AbridgedError(f"cannot write to {output}: {there} is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise AbridgedError(f"cannot write to {output}: nothing can be written in {there}")


def _check_replaceable(
    output: Path, directory: bool, overwrite: bool | None, inputs: Iterable[str | Path | None]
) -> None:
    """Raise AbridgedError where what is at `output` is to stay."""
    if output.is_dir() != directory:
        raise AbridgedError(f"{output} is a {'file' if directory else 'directory'}: choose another output")
    for name, what in [(Path.cwd(), "the directory that this runs in"), *((name, name) for name in inputs if name)]:
        if _holds(output, Path(name).expanduser()):
            raise AbridgedError(f"{output} is, or has in it, {what}: choose another output")
    if not overwrite:
        hint = "" if overwrite is None else ", or add --overwrite"
        raise AbridgedError(f"{output} exists already: choose another output{hint}")
    if directory:
        reason = _foreign(output)
        if reason is not None:
            raise AbridgedError(
                f"{output} is not replaced, since {reason}: abridged did not write that; choose another output"
            )


def _holds(output: Path, path: Path) -> bool:
    """Whether `path`, where it is there, is `output` or lies in it."""
    try:
        found = path.resolve(strict=True)
    except (OSError, ValueError):  # no path, but the name of something
        return False
    return any(os.path.samefile(output, one) for one in (found, *found.parents))


def _foreign(directory: Path) -> str | None:
    """Why a directory is taken for something that abridged did not write; None for what it wrote, and an empty one."""
    if os.path.ismount(directory):
        return "it is a file system of its own"
    if not os.access(directory, os.W_OK | os.X_OK):
        return "it cannot be written"
    entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_file(follow_symlinks=False):
            return f"it has a {'link' if entry.is_symlink() else 'folder'} {entry.name} in it"
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    return None if isinstance(record, dict) or not entries else f"it has no {RECORD} in it"
