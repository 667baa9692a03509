"""Files and directories that are written whole or not at all, and can then be read by whom umask says.

What is being written lies in a folder `.NAME.PID.writing` beside it. Its writer holds a lock on a file in it, so that
what a killed one has left is known for what it is, and removed when something is next written there.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from abridged.core.errors import AbridgedError
from abridged.core.locks import is_still, let_go, lock, opened

_HELD = ".held"
_WRITING = re.compile(r"\..+\.\d+\.writing", re.DOTALL)
#: What a disk says that is full, over quota, read-only, or broken.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EIO
}  # fmt: skip


def write_atomically(path: Path, text: str) -> None:
    """Write a text file. Raises AbridgedError where the disk does not let it."""
    with written_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written_file(file: str | Path) -> Iterator[Path]:
    """A path to write, whose file takes the place of `file` when the block ends without error.

    Raises:
        AbridgedError: what went wrong with the disk.
    """
    with _beside(file) as (temporary, target):
        yield temporary
        settle(temporary)
        os.replace(temporary, target)
        flush(target.parent)


@contextmanager
def written_whole(directory: str | Path, place: Callable[[Path, Path], None] = os.rename) -> Iterator[Path]:
    """A directory to write into, which `place(temporary, directory)` puts in its place when the block ends without
    error.

    Raises:
        AbridgedError: what went wrong with the disk.
    """
    with _beside(directory) as (temporary, target):
        temporary.mkdir()
        yield temporary
        settle(temporary)
        place(temporary, target)
        flush(target.parent)


@contextmanager
def _beside(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """Where to write what will be at `path`, and that as an absolute path."""
    target = Path(path).expanduser().absolute()
    folder, held = target.with_name(f".{target.name}.{os.getpid()}.writing"), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        held = _claim(folder)
        yield folder / target.name, target
    except Exception as error:
        reason = disk_fault(error, anything=True)
        if reason is None:
            raise
        raise AbridgedError(f"cannot write {target}: {reason}") from error
    finally:
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            let_go(held, folder / _HELD)


def _claim(folder: Path) -> int:
    """Make a folder; returns a descriptor that holds the lock on it."""
    while True:
        with suppress(FileExistsError):  # exist_ok would ask again, and another thread may have removed it by then
            folder.mkdir()
        with suppress(FileNotFoundError):
            held = opened(folder / _HELD)
            with suppress(OSError):  # not every file system has locks
                lock(held)
            if is_still(held, folder / _HELD):
                return held
            os.close(held)  # swept before it was locked


def sweep(place: Path) -> None:
    """Remove what was being written in the folder `place` by processes that are no more."""
    for left in place.glob(".*.writing") if place.is_dir() else ():
        if not _WRITING.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        with suppress(OSError):
            held = opened(left / _HELD)
            try:
                lock(held, wait=False)
                if is_still(held, left / _HELD):  # else its writer has ended, and another may write under that name
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                let_go(held, left / _HELD)


def settle(path: Path) -> None:
    """Put what was written on the disk, and give its files the rights that the folder around it got from umask."""
    rights = path.parent.stat().st_mode & 0o666  # libraries make some files for their owner alone
    for one in [*path.rglob("*"), path]:
        if one.is_file():
            one.chmod(rights)
        flush(one)


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def disk_fault(error: BaseException, folder: Path | None = None, anything: bool = False) -> str | None:
    """The reason where an error is the disk's, or is about what lies in `folder`; None for another.

    Libraries written in Rust raise exceptions of their own, which have the system's number in their text.

    Args:
        anything: take any of the system's errors for the disk's.
    """
    if isinstance(error, OSError):
        about = folder is not None and str(error.filename or "").startswith(f"{folder}/")
        told = error.strerror or f"{error} (is the disk full?)"  # numpy says how much could not be written
        return told if error.errno in _DISK or about or anything else None
    found = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return found[1].strip() if found else None
