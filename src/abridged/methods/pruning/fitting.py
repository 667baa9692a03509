"""The cut and what makes up for it, to the units that the masks keep; and which hidden width then loses least."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.families.layout import HIDDEN, Kept, Layout
from abridged.methods.lockstep import TOKENS
from abridged.methods.pruning.cut import cut
from abridged.methods.pruning.reconstruct import reconstruct
from abridged.methods.transforms import hidden_moments, principal_components

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate
    from abridged.methods.pruning.select import Selection

#: From one hidden width to the next that is tried.
_STEP = 0.9
#: Of the tokens that the fit reads, what it reads for each of them.
_SHARE = 4
#: What models of all kinds call what they put out.
_OUTPUTS = ("logits", "start_logits", "end_logits")


class Fitting:
    """Cuts a model, or copies of it, to what is kept; where it is asked to, makes up for the cut on real inputs."""

    def __init__(
        self,
        layout: Layout,
        factors: Mapping[str, Tensor],
        gates: Mapping[str, Tensor],
        calibrate: Calibrate,
        whole: nn.Module | None,
        components: bool,
        tokens: int = TOKENS,
    ) -> None:
        """whole: the model before, to fit what is left to; None to leave it as it is cut. components: whether
        combinations of hidden units take the place of those that are kept. tokens: that are read for it."""
        self.layout, self.factors, self.gates = layout, factors, gates
        self.calibrate, self.whole, self.tokens = calibrate, whole, tokens
        self.moments = hidden_moments(whole, layout, calibrate, tokens) if components and whole is not None else None
        labels = any(module.part == "reader" for module in layout.modules)
        self._compared = TOKENS // (2 if labels else 8)  # as many logits as the vocabulary has tokens are a lot
        self._answers: list[Tensor] | None = None

    def cut(self, model: Any, kept: Kept, tokens: int | None = None) -> Tensor:
        """Cut a model in place, and fit it; on other than its usual tokens where they are given.

        Returns the hidden units that it has now, (h,), or the combinations of them, (units, h).
        """
        factors, transform = dict(self.factors), None
        if self.moments is not None and len(kept[HIDDEN]) < self.layout.axes[HIDDEN].units:
            transform = principal_components(self.moments, kept[HIDDEN])
            factors[HIDDEN] = torch.ones_like(factors[HIDDEN])
        cut(model, self.layout, kept, factors, self.gates, transform)
        basis = None if transform is None else transform.matrix
        if self.whole is not None:
            reconstruct(model, self.whole, self.layout, kept, self.calibrate, basis, tokens or self.tokens)
        return kept[HIDDEN] if basis is None else basis.cpu()

    def nearest(
        self, first: Selection, at: Callable[[int], Selection], most: int, round_to: int = 1
    ) -> tuple[Selection, dict[int, float]]:
        """The best of a selection and of up to `most` others of other hidden widths, and how far each is (`distance`).

        Narrower ones come first, each from the last as long as it is nearer; where none is, wider ones. All are
        multiples of `round_to`.
        """
        full = self.layout.axes[HIDDEN].units
        best, tried = first, {len(first.kept[HIDDEN]): self.distance(first.kept)}
        for step in (_STEP, 1 / _STEP):
            while len(tried) <= most:
                last = len(best.kept[HIDDEN])
                further = min(last - round_to, last * step) if step < 1 else max(last + round_to, last * step)
                selection = at(min(full, max(1, round(further / round_to)) * round_to))
                width = len(selection.kept[HIDDEN])
                if width in tried:
                    break
                tried[width] = self.distance(selection.kept)
                if tried[width] >= tried[last]:
                    break
                best = selection
            if best is not first:
                break
        return best, tried

    def distance(self, kept: Kept) -> float:
        """How far what a model cut to `kept` puts out is from the whole one: Kullback-Leibler divergence in nats."""
        assert self.whole is not None
        if self._answers is None:
            self._answers = self._run(self.whole)
        model = copy.deepcopy(self.whole)
        self.cut(model, kept, max(1, self.tokens // _SHARE))
        return sum(map(divergence, self._answers, self._run(model)))

    def _run(self, model: nn.Module) -> list[Tensor]:
        found: list[Tensor] = []

        def take(module: nn.Module, inputs: Any, output: Any) -> None:
            found.extend(value.float() for name in _OUTPUTS if (value := getattr(output, name, None)) is not None)

        with model.register_forward_hook(take):
            self.calibrate(model, self._compared)
        return found


def divergence(wanted: Tensor, found: Tensor) -> float:
    """Of logits (…, n) from those wanted, on average; of a single number, the squared difference."""
    if wanted.shape[-1] == 1:
        return float((wanted - found).square().mean())
    p, q = wanted.log_softmax(-1), found.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
