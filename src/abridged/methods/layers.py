"""Fewer layers: every other block is left out, as DistilGPT2 and DistilBERT are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from abridged.errors import AbridgedError
from abridged.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from abridged.methods.base import Calibrate


class DropLayers(Method):
    """Layer dropping (Sanh et al., arXiv 1910.01108, section 3): the student starts as some of the teacher's layers."""

    untrained_name: ClassVar[str] = "layers left out"

    keep: Literal["half"] | list[int] = Field(
        default="half",
        description="layers that stay, counted from 0; half: every other one, the first and the last among them, as "
        "DistilGPT2's authors do (0, 2, 4, 7, 9, 11 of 12)",
    )

    def prepare(self, model: nn.Module, anatomy: Any, calibrate: Calibrate) -> None:
        """Take the other blocks out, once: a later stage that asks for as many layers as there are changes nothing.

        Raises AbridgedError for a layer that the model does not have, and for an encoder-decoder.
        """
        lists = {path.rpartition(".")[0] for path in anatomy.blocks}
        if len(lists) != 1:
            raise AbridgedError("methods.drop_layers knows models of one stack of layers, not an encoder-decoder")
        before = getattr(model, "layers_before", anatomy.layers)
        kept = every_other(before) if self.keep == "half" else sorted(set(self.keep))
        if not kept or not all(0 <= layer < before for layer in kept):
            raise AbridgedError(
                f"methods.drop_layers.keep: {self.keep} are not layers of a model whose last one is {before - 1}"
            )
        if before != anatomy.layers:
            if len(kept) != anatomy.layers:
                raise AbridgedError("methods.drop_layers: an earlier stage has dropped other layers")
            return
        blocks: Any = model.get_submodule(lists.pop())
        for layer in reversed(range(len(blocks))):
            if layer not in kept:
                del blocks[layer]
        for index, block in enumerate(blocks):
            for module in block.modules():  # where a layer's keys and values lie in the cache
                if getattr(module, "layer_idx", None) is not None:
                    module.layer_idx = index
        config: Any = model.config
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[layer] for layer in kept]
        model.layers_before = before


def every_other(layers: int) -> list[int]:
    """Half of so many layers: every other one from the first on, then from the last back (0, 2, 4, 7, 9, 11 of 12)."""
    count = max(1, layers // 2)
    front = count // 2 if count > 1 else 1
    return [2 * i for i in range(front)] + [layers - 1 - 2 * i for i in reversed(range(count - front))]
