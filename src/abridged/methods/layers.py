"""Fewer layers: every other block is left out, as DistilGPT2 and DistilBERT are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from abridged.core.errors import AbridgedError
from abridged.methods.base import Attached, Method
from abridged.storage.compressed import compressed_of, record

if TYPE_CHECKING:
    from abridged.families import View
    from abridged.methods.base import Calibrate


class DropLayers(Method):
    """Layer dropping (Sanh et al., arXiv 1910.01108, section 3): the student starts as some of the teacher's layers."""

    name: ClassVar[str] = "drop_layers"
    attached: ClassVar[str] = "abridged.methods.layers:Dropping"
    untrained_name: ClassVar[str] = "layers left out"

    keep: Literal["half"] | list[int] = Field(
        default="half",
        description="layers that stay, counted from 0; half: every other one, the first and the last among them, as "
        "DistilGPT2's authors do (0, 2, 4, 7, 9, 11 of 12)",
    )

    def untrained(self) -> DropLayers:
        """The same layers, as they are in the teacher."""
        return self


class Dropping(Attached):
    """See `DropLayers`."""

    def __init__(self, settings: DropLayers, model: Any, view: View, calibrate: Calibrate) -> None:
        """Take the other blocks out, once: a later stage that asks for as many layers as there are changes nothing.

        Raises AbridgedError for a layer that the model does not have, and for an encoder-decoder.
        """
        super().__init__(settings, model, view, calibrate)
        lists = {path.rpartition(".")[0] for path in view.blocks}
        if len(lists) != 1:
            raise AbridgedError("methods.drop_layers knows models of one stack of layers, not an encoder-decoder")
        before = compressed_of(model).layers_before or view.layers
        kept = every_other(before) if settings.keep == "half" else sorted(set(settings.keep))
        if not kept or not all(0 <= layer < before for layer in kept):
            raise AbridgedError(
                f"methods.drop_layers.keep: {settings.keep} are not layers of a model whose last one is {before - 1}"
            )
        if before != view.layers:
            if tuple(kept) != compressed_of(model).kept_layers:
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
        model.config.num_hidden_layers = len(kept)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [model.config.layer_types[layer] for layer in kept]
        record(model, layers_before=before, kept_layers=tuple(kept))


def every_other(layers: int) -> list[int]:
    """Half of so many layers: every other one from the first on, then from the last back (0, 2, 4, 7, 9, 11 of 12)."""
    count = max(1, layers // 2)
    front = count // 2 if count > 1 else 1
    return [2 * i for i in range(front)] + [layers - 1 - 2 * i for i in reversed(range(count - front))]
