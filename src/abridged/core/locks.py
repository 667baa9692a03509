"""Locks that processes hold on files, of Unix and of Windows: a process that dies, however it does, lets go of its own.

No other file knows how a system locks. Not every file system does: there, `lock` raises OSError.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT = 0.05  #: Seconds between two attempts, where the system waits for nobody.


def opened(path: Path) -> int:
    """A descriptor of the file at `path`, which is made where there is none."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def lock(descriptor: int, wait: bool = True) -> None:
    """Take the lock on an open file, which is let go when that is closed.

    Raises:
        BlockingIOError: another holds it, and `wait` is False.
        OSError: it cannot be locked.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    while True:
        os.lseek(descriptor, 0, os.SEEK_SET)  # of one byte, which need not be there
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:  # what Windows says where another holds it
            if not wait:
                raise BlockingIOError(error.errno, error.strerror) from error
            time.sleep(_WAIT)
        else:
            return


def is_still(descriptor: int, path: Path) -> bool:
    """Whether what was opened as `path` still goes by that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def let_go(descriptor: int, path: Path) -> None:
    """Close a file that was held. Windows removes no open file: there its folder goes now, if nothing else is in it."""
    os.close(descriptor)
    if fcntl is None:
        with suppress(OSError):
            if os.listdir(path.parent) == [path.name]:
                path.unlink()
                path.parent.rmdir()
