"""What is in a file, as a hash."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 18):  # small enough that the allocator gives the memory back
            digest.update(data)
    return digest.hexdigest()
