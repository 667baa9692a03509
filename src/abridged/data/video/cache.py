"""Decoded frames kept on disk, so that a second epoch decodes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from abridged.core.cache import cache_folder
from abridged.core.digest import file_sha256
from abridged.data.video.clips import Clip
from abridged.data.video.decode import sample

#: Bytes that are left free on the disk.
_LEFT_FREE = 2 << 30


class FrameCache:
    """Frames by what is in a file and how it was sampled: a file of another name is the same, a changed one is not."""

    def __init__(self, folder: Path | None = None) -> None:
        """In `folder`; None = $ABRIDGED_CACHE, else ~/.cache/abridged."""
        self.folder = folder or cache_folder("frames")
        self._digests: dict[tuple[str, int, int], str] = {}

    def sample(self, clip: Clip, count: int, side: int | None) -> np.ndarray:
        """`decode.sample` of a clip: (count, height, width, 3) uint8.

        Raises:
            VideoError: as it does.
        """
        kept = self.folder / f"{self._key(clip, count, side)}.npy"
        try:
            return np.load(kept)
        except (OSError, ValueError, EOFError):  # not there, or not whole
            pass
        found = sample(clip.path, count, clip.start, clip.end, side)
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free > found.nbytes + _LEFT_FREE:
            temporary = kept.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, found)
            os.replace(temporary, kept)
        return found

    def _key(self, clip: Clip, count: int, side: int | None) -> str:
        try:
            stat = clip.path.stat()
        except OSError:
            return "missing"  # decoding says so
        seen = (str(clip.path), stat.st_size, stat.st_mtime_ns)
        if seen not in self._digests:
            self._digests[seen] = file_sha256(clip.path)
        how = f"{self._digests[seen]} {count} {clip.start} {clip.end} {side}"
        return hashlib.sha256(how.encode()).hexdigest()[:32]
