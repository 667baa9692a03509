"""What a run notes about itself."""

import importlib.metadata
import platform
from typing import Any

from abridged.core.hardware import describe

#: What it is noted in, in every directory that abridged writes; only such are ever replaced.
RECORD = "abridged.json"
_PACKAGES = ("abridged", "torch", "transformers", "accelerate", "safetensors")


def environment() -> dict[str, Any]:
    """Versions and hardware, for abridged.json."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "hardware": describe()}
