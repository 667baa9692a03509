"""Masks over all units of a model at once: what a unit is multiplied by, and whether it is to be kept.

All kinds have one interface, on flat vectors (units,): `sample` while training, `deterministic` at evaluation,
`expected` (the probability of being kept), `score` (more is kept first) and `divergence` (a penalty by unit).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as distributed
from torch import Tensor, nn

Kind = Literal["vib", "l0", "magnitude", "taylor", "random"]

#: Hard concrete distribution (Louizos et al., arXiv:1712.01312, section 2.2): temperature, and how far it is stretched.
_TEMPERATURE, _LOW, _HIGH = 2.0 / 3.0, -0.1, 1.1
#: Noise of the factors while it is measured what the loss depends on.
_PROBE = 0.1


class Mask(nn.Module):
    """What every kind of mask offers; by itself one that keeps all."""

    learned = True

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        self.slope = 0.5  #: of the sigmoid that makes probabilities of scores
        self._drawn: Tensor | None = None

    def sample(self, rows: int) -> Tensor:
        """Factors while training, (rows, units) or (1, units)."""
        raise NotImplementedError

    def deterministic(self) -> Tensor:
        """Factors at evaluation, (units,): 0 for what is not kept."""
        raise NotImplementedError

    def expected(self) -> Tensor:
        """The probability of each unit to be kept, (units,), with a gradient."""
        raise NotImplementedError

    def score(self) -> Tensor:
        """What units are ranked by, (units,): above 0 they are kept where no budget decides."""
        raise NotImplementedError

    def divergence(self) -> Tensor:
        """The penalty of keeping each unit, (units,)."""
        return torch.zeros(self.units)

    def factors(self) -> Tensor:
        """What a unit that is kept will be multiplied by, (units,), for folding into weights."""
        return torch.ones(self.units)

    def followed(self, factors: Tensor) -> Tensor:
        """Factors (rows, units) of a pass, whose gradients `gradients` has after it."""
        self._drawn = factors.detach().requires_grad_(True)
        return self._drawn

    def gradients(self) -> Tensor | None:
        """Those of the factors of the last pass that was followed, (rows, units), once."""
        drawn, self._drawn = self._drawn, None
        return None if drawn is None else drawn.grad


class LearnedMask(Mask):
    """A mask with parameters. It may first be measured which units the loss depends on, and it then starts from that.

    While it is measured nothing is removed: factors are 1 and some noise, a draw for each row of a batch. The gradients
    that come back are those that the loss, which is least for the whole model, has for such noise: the square of a
    unit's is the larger, the more the loss curves along it. That is what decides how much noise a unit can bear, and so
    where the bottleneck would go from anywhere; starting there saves the steps.
    """

    sensitivity: Tensor  #: (units,) sums of squared gradients
    measured: Tensor  #: (1,) whether it has started
    log_alpha: nn.Parameter  #: (units,) what training moves

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.register_buffer("sensitivity", torch.zeros(units))
        self.register_buffer("measured", torch.ones(1, dtype=torch.bool))

    def measure(self) -> None:
        """Begin to measure."""
        self.measured.fill_(False)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the squared gradients of the last draw."""
        found = self.gradients()
        if found is not None:
            self.sensitivity += averaged(found.square().mean(0))

    def start(self, scores: Tensor) -> None:
        """Start with scores (units,), whatever was measured."""
        self.measured.fill_(True)
        self.shift(scores.to(self.sensitivity) - self.score().detach())

    def shift(self, by: Tensor | float) -> None:
        """Add to the scores."""
        raise NotImplementedError

    def sample(self, rows: int) -> Tensor:
        if self.measured:
            return self.noisy(rows)
        self.collect()
        return self.followed(1 + _PROBE * torch.randn(rows, self.units, device=self.sensitivity.device))

    def noisy(self, rows: int) -> Tensor:
        """Factors while the masks are trained, (rows, units)."""
        raise NotImplementedError

    def deterministic(self) -> Tensor:
        return self.kept() if self.measured else torch.ones_like(self.sensitivity)

    def kept(self) -> Tensor:
        """`factors` of what is kept, and 0."""
        return self.factors() * (self.score() > 0)

    def expected(self) -> Tensor:
        return self.probability() if self.measured else torch.ones_like(self.sensitivity)

    def probability(self) -> Tensor:
        """`expected` once the mask has started."""
        return torch.sigmoid(self.slope * self.score())


class InformationBottleneck(LearnedMask):
    """Variational information bottleneck (VTrans, Dutta et al., arXiv:2406.05276, section 3).

    z = m + ε·s with ε ~ N(0, 1), one draw for each row of a batch. A unit goes when the noise α = s²/m² is 1 or more,
    and the divergence from the prior is ½·log(1 + 1/α).

    The paper learns m and log s², so that a unit on its way out drowns the others: its noise grows while its mean is
    still 1. Here it is m = μ/(1 + α), the share of a noisy value that is best believed, so that both go to 0 together;
    α, the divergence and what is kept are the same.
    """

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.mu = nn.Parameter(1.0 + 0.01 * torch.randn(units))
        self.log_alpha = nn.Parameter(-9.0 + 0.01 * torch.randn(units))

    def score(self) -> Tensor:
        return -self.log_alpha

    def shift(self, by: Tensor | float) -> None:
        self.log_alpha.data -= by

    def noisy(self, rows: int) -> Tensor:
        noise = torch.randn(rows, self.units, device=self.mu.device)
        return self.mu * torch.sigmoid(-self.log_alpha) * (1 + noise * (0.5 * self.log_alpha).exp())

    def divergence(self) -> Tensor:
        return 0.5 * nn.functional.softplus(self.score())  # log(1 + 1/α)

    def factors(self) -> Tensor:
        return (self.mu * torch.sigmoid(-self.log_alpha)).detach()


class HardConcrete(LearnedMask):
    """L0 regularisation (Louizos et al., arXiv:1712.01312), as CoFi (Xia et al., arXiv:2204.00408) prunes with it."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.log_alpha = nn.Parameter(2.5 + 0.01 * torch.randn(units))

    def shift(self, by: Tensor | float) -> None:
        self.log_alpha.data += by

    def noisy(self, rows: int) -> Tensor:
        u = torch.rand(rows, self.units, device=self.log_alpha.device).clamp(1e-6, 1 - 1e-6)
        return self._stretched(torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / _TEMPERATURE))

    def kept(self) -> Tensor:
        return self._stretched(torch.sigmoid(self.log_alpha))

    def _stretched(self, x: Tensor) -> Tensor:
        return (x * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)

    def score(self) -> Tensor:
        """Above 0 where the factor at evaluation is above 0."""
        return self.log_alpha - math.log(-_LOW / _HIGH)

    def probability(self) -> Tensor:
        return torch.sigmoid(self.log_alpha - _TEMPERATURE * math.log(-_LOW / _HIGH))

    def factors(self) -> Tensor:
        return self.kept().detach().clamp_min(1e-3)  # the budget may keep what would be 0


class Importance(Mask):
    """Zeros and ones by how much a unit matters: by a measure of its weights, by gradients, or at random.

    For Taylor's first-order measure each row of a batch has factors of its own, whose gradients tell what leaving the
    unit out would change: importance = mean over rows of |∂L/∂z| at z = 1 (Molchanov et al., arXiv:1611.06440;
    Michel et al., arXiv:1905.10650, of heads).
    """

    learned = False
    importance: Tensor
    keep: Tensor
    removals: Tensor  #: (1,) how often units were removed

    def __init__(self, units: int, kind: Kind) -> None:
        super().__init__(units)
        self.kind = kind
        self.register_buffer("keep", torch.ones(units))
        self.register_buffer("removals", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("importance", torch.rand(units) if kind == "random" else torch.zeros(units))

    def sample(self, rows: int) -> Tensor:
        if self.kind != "taylor":
            return self.keep.unsqueeze(0)
        self.collect()
        return self.followed(torch.ones(rows, self.units, device=self.keep.device)) * self.keep

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of the last draw to the running importance of what is still there."""
        found = self.gradients()
        if found is not None:
            importance = 0.9 * self.importance + 0.1 * averaged(found.abs().mean(0))
            self.importance.copy_(torch.where(self.keep > 0, importance, self.importance))

    def deterministic(self) -> Tensor:
        return self.keep

    def expected(self) -> Tensor:
        return self.keep

    def score(self) -> Tensor:
        return self.importance


def averaged(found: Tensor) -> Tensor:
    """The mean over all processes of a run, each with sequences of its own: all must remove the same units."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(found)
        found /= distributed.get_world_size()
    return found


def build_mask(kind: Kind, units: int) -> Mask:
    """A mask of that kind over `units`."""
    if kind == "vib":
        return InformationBottleneck(units)
    return HardConcrete(units) if kind == "l0" else Importance(units, kind)
