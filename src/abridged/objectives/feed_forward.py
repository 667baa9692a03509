"""Feed-forward distillation: what each layer's feed-forward part gives, against the teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abridged.data.batch import Batch
from abridged.errors import AbridgedError
from abridged.families import anatomy_of
from abridged.objectives.base import Outputs, TeacherOutputs, Term
from abridged.objectives.layers import layer_pairs, mean_over_rows, rows_that_count
from abridged.objectives.settings import FeedForward


class Recorder:
    """Keeps the outputs of the layers' feed-forward parts of one forward pass after another.

    transformers gives hidden states and attention, but not these. Its own recorder finds modules by their class, and
    these have a stock layer's class before a method swaps them and the method's after. So the last feed-forward matrix
    of each layer, which the anatomy names, gets one hook that puts its output at a fixed place of a list. The hooks are
    there before a block is compiled, so that they are traced as a part of it, and they run inside the module that data
    parallelism wraps; `remove` takes them away after the stage.
    """

    def __init__(self, model: Any) -> None:
        paths = anatomy_of(model).feed_forward
        self._outputs: list[Tensor | None] = [None] * len(paths)
        self._hooks = [model.get_submodule(path).register_forward_hook(self._keep(i)) for i, path in enumerate(paths)]

    def _keep(self, index: int) -> Any:
        outputs = self._outputs

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[index] = output

        return hook

    def take(self) -> tuple[Tensor, ...]:
        """The outputs (B, T, d) of the last pass, in the order of the layers; they are not kept any longer."""
        found = tuple(output for output in self._outputs if output is not None)
        self._outputs[:] = [None] * len(self._outputs)
        return found

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()


class FeedForwardDistillation(Term):
    """Mean squared error per number, averaged over mapped layers and the tokens that count.

    Source: ILKD's third term (Edalati et al., ACL 2022, arXiv:2110.08152, section 3.2).
    """

    def __init__(self, settings: FeedForward) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if not isinstance(teacher, Outputs) or teacher.feed_forward is None or student.feed_forward is None:
            raise AbridgedError("feed-forward distillation needs the teacher in memory")
        ours, theirs = student.feed_forward, teacher.feed_forward
        pairs = layer_pairs("feed_forward", self.settings.layers, _parts(student), _parts(teacher))
        errors = []
        for i, j in pairs.items():
            if ours[i].shape != theirs[j].shape:
                raise AbridgedError(
                    f"feed-forward distillation compares like with like: the student's is {ours[i].shape[-1]} wide, "
                    f"the teacher's {theirs[j].shape[-1]}"
                )
            counted = rows_that_count(batch, encoder=i < student.encoder_layers)
            error = (ours[i].float() - theirs[j].detach().float()).square().mean(-1)
            errors.append(mean_over_rows(error, counted))
        return torch.stack(errors).mean()


def _parts(outputs: Outputs) -> list[int]:
    """How many layers the encoder has, where there is one, and the decoder."""
    assert outputs.feed_forward is not None
    encoder = outputs.encoder_layers
    return [encoder, len(outputs.feed_forward) - encoder] if encoder else [len(outputs.feed_forward)]
