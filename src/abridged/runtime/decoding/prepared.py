"""Steps made ready for a model as it is now, and compared with the model's own before they are used."""

from __future__ import annotations

import copy
from typing import Any

import torch

from abridged.runtime.adapters import adapted
from abridged.runtime.decoding.cache import Appending
from abridged.runtime.decoding.describe import Undescribed, describe
from abridged.runtime.decoding.parts import computes_in
from abridged.runtime.decoding.steps import Steps
from abridged.runtime.prompt import prompt_of
from abridged.runtime.removed import NoAttention, NoMatrix

#: The largest difference of logits, as a share of their standard deviation. Activations in 8 bits that fall on the
#: other side of a rounding make about a thousandth, in tiny models hundredths; a part described wrongly makes tenths.
TOLERANCE = {torch.float32: 0.05, torch.bfloat16: 0.2}
PROMPT, COMPARED = 5, 2  #: tokens that are read at once, and then one by one, in the comparison


class Prepared:
    """`steps` through a model, or None and the `reason`, for as long as the model is `intact`."""

    def __init__(self, model: Any) -> None:
        self.modules = list(model.modules())
        self._places = [(m._modules, name, child) for m in self.modules for name, child in m._modules.items()]
        self._pointers = [(p, p.data_ptr()) for p in model.parameters()]
        self._threads = torch.get_num_threads()
        self._hooked = self._hooks()
        self.steps: Steps | None = None
        self.reason = self._obstacle(model)
        if self.reason is not None:
            return
        try:
            steps = Steps(model, describe(model), computes_in(model))
            apart = difference(model, steps)
        except Undescribed as error:
            self.reason = str(error)
        except Exception as error:  # whatever a model that is new here does must not keep it from writing
            self.reason = f"trying them ended in {type(error).__name__}: {error}"
        else:
            if apart <= TOLERANCE[steps.dtype]:
                self.steps = steps
            else:
                self.reason = f"their logits are {apart:.2g} of a standard deviation off transformers' own"

    def _obstacle(self, model: Any) -> str | None:
        if any(isinstance(m, (NoAttention, NoMatrix)) for m in self.modules):
            return "a part was cut out of the model"
        if adapted(model):
            return "the model has adapters"
        if prompt_of(model) is not None:
            return "the model has a learned prompt"
        if self._hooked:
            return "somebody's hooks are in the model"
        if any(p.device.type != "cpu" for p in model.parameters()):
            return "the model is not on the CPU"
        served = (torch.float32, torch.bfloat16, torch.uint8)
        other = next((p.dtype for p in model.parameters() if p.dtype not in served), None)
        return None if other is None else f"the model is in {str(other).removeprefix('torch.')}"

    def _hooks(self) -> bool:
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.modules)

    def intact(self) -> bool:
        """Whether nothing was moved, cast, replaced or hooked since, and threads are as many."""
        return (
            self._threads == torch.get_num_threads()
            and all(children.get(name) is child for children, name, child in self._places)
            and not self._hooked
            and not self._hooks()
            and all(p.data_ptr() == pointer for p, pointer in self._pointers)
        )


@torch.no_grad()
def difference(model: Any, steps: Steps) -> float:
    """The largest difference of logits in a few steps, as a share of the standard deviation of the model's own."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, PROMPT + COMPARED), generator=generator)
    forward = type(model).forward
    cache = forward(model, input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
    if not Appending.length(cache) or not Appending.fits(cache, steps.windows):
        raise Undescribed("its cache is not as its layers of attention are")
    ours, worst = copy.deepcopy(cache), 0.0
    for i in range(PROMPT, PROMPT + COMPARED):
        expected = forward(model, input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[0, 0]
        found = steps.step(ids[:, i], ours.layers, i)[0]
        worst = max(worst, float((found - expected).abs().max() / expected.float().std()))
    return worst
