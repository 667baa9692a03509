"""Modes of a model, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[Any]:
    """The model in evaluation mode, and then in the mode that it had; yields its device."""
    was_training = model.training
    model.eval()
    try:
        yield next(iter(model.parameters())).device
    finally:
        model.train(was_training)
