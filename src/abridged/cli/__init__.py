"""The command line: one thin file per verb, which parses, calls the Python API and prints."""

from abridged.cli.app import main

__all__ = ["main"]
