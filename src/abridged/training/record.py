"""What a run notes about itself."""

import importlib.metadata
import platform
from typing import Any

from abridged.training.hardware import describe

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
