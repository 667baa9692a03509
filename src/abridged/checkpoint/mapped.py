"""Files that are mapped into memory: pages that nobody reads any more need not stay."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from abridged.checkpoint.files import TensorEntry

_DONTNEED = 4
#: Bytes of a tensor from which its pages are worth a call.
_WORTH = 1 << 16


def let_go(entries: Iterable[TensorEntry]) -> None:
    """Give the pages of tensors back, where their files are mapped: whoever reads one again reads it from the file.

    Nothing may have been written into them. Where the system is none that says what is mapped, they stay.
    """
    entries = [entry for entry in entries if entry.num_bytes >= _WORTH]
    with suppress(OSError, AttributeError, TypeError):  # Windows has no CDLL(None)
        maps = list(_maps()) if entries else []
        advise: Any = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for entry in entries:
            file = entry.file.stat()
            for device, inode, address, offset, size in maps:
                if (device, inode) != (file.st_dev, file.st_ino):
                    continue
                begin = -(-max(entry.begin - offset, 0) // mmap.PAGESIZE) * mmap.PAGESIZE
                end = min(entry.end - offset, size) // mmap.PAGESIZE * mmap.PAGESIZE
                if end > begin:
                    advise(address + begin, end - begin, _DONTNEED)


def _maps() -> Iterator[tuple[int, int, int, int, int]]:
    """Device, inode, address, offset in the file, and size of all that this process has mapped of files."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, device, inode = line.split()[:5]
        if inode != "0":
            begin, end = (int(address, 16) for address in addresses.split("-"))
            major, minor = (int(part, 16) for part in device.split(":"))
            yield os.makedev(major, minor), int(inode), begin, int(offset, 16), end - begin
