"""Where what is dear to find is kept for the next time."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of that name in $ABRIDGED_CACHE, else in ~/.cache/abridged; it need not be there."""
    return Path(os.environ.get("ABRIDGED_CACHE") or Path.home() / ".cache" / "abridged") / name
