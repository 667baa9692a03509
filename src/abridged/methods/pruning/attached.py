"""Pruning at work: masks while a stage trains, a smaller model after it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.families.layout import HIDDEN, layout_of
from abridged.methods.base import Attached
from abridged.methods.pruning.budget import Target
from abridged.methods.pruning.fitting import Fitting
from abridged.methods.pruning.importance import magnitudes, normalized, worth
from abridged.methods.pruning.masked import Masks, attach, check_attached, detach
from abridged.methods.pruning.masks import Importance, InformationBottleneck, LearnedMask
from abridged.methods.pruning.select import Selection, describe, select
from abridged.storage.compressed import Compressed, RankedHeads, compressed_of, record

if TYPE_CHECKING:
    from abridged.families import View
    from abridged.methods.base import Calibrate
    from abridged.methods.pruning.method import Prune

#: A model that is still so much larger than its target, as a share of the whole, has masks that were not done.
_FAR = 0.1
#: How far apart measured scores start, in units of the logarithm of squared gradients: most masks are then all but open
#: or shut. With many half open at once their noise leaves nothing to learn from.
_SPREAD = 8.0
#: Halvings of the interval in which the shift that meets the budget lies, and its half.
_HALVINGS, _REACH = 16, 16.0


class Pruning(Attached):
    """See `Prune`. It keeps the target, how near to it the stage is, and what runs data through the model at its end.

    The masks, with the multipliers of the budget, are a child of the model: they are trained with it.
    """

    def __init__(self, settings: Prune, model: Any, view: View, calibrate: Calibrate) -> None:
        """Put masks into the model.

        Raises AbridgedError for a budget that is above what the model takes or below what it can be cut to.
        """
        super().__init__(settings, model, view, calibrate)
        layout = layout_of(model, view)
        self.calibrate, self.share = calibrate, 1.0  # of the whole, that the model may take now
        self.target = Target(layout, settings.budget)
        # whether combinations of hidden units take the place of those that are kept
        self.combines = settings.hidden == "components" and not view.writers
        self.masks = masks = attach(model, layout, settings.masks, frozenset(settings.structures))
        self._select(torch.zeros(masks.mask.units), self.target.limit)  # or no such model can be
        if isinstance(masks.mask, LearnedMask) and settings.measure > 0:
            masks.mask.measure()
        #: How much each unit's divergence counts, (units,): of a group of heads as much as it has parameters.
        self.stands_for = torch.ones(masks.mask.units)
        sizes = list(layout.sizes(layout.full(), layout.open_gates()))
        for name in layout.attentions:
            own = sum(size for module, size in sizes if module.gate == name)
            self.stands_for[masks.places[name]] = own / layout.axes[name].units
        self.stands_for = self.stands_for.to(masks.free.device)

    def step(self, progress: float) -> None:
        """Let the target fall, and the sigmoid grow steeper; where masks are not learned, remove units."""
        settings, mask = self.settings, self.masks.mask
        check_attached(self.model, self.masks)
        first, last = settings.slope
        mask.slope = first * (last / first) ** progress
        began = settings.measure if mask.learned else 0.0
        if progress < began:
            return
        warm = 1.0 if settings.warmup == 0 else min(1.0, (progress - began) / settings.warmup)
        self.share = 1 + (self.target.share - 1) * warm
        if isinstance(mask, LearnedMask):
            self.start()
            if settings.constraint == "threshold":
                self.meet()
        if isinstance(mask, Importance):
            due = round(warm * settings.updates)
            if due > int(mask.removals):
                mask.removals.fill_(due)
                limit = self.target.limit_at(1 + (self.target.share - 1) * due / settings.updates)
                self._keep(self._select(self.scores(), limit))

    def start(self) -> None:
        """Let masks that were measured start from what was found, if they have not."""
        mask = self.masks.mask
        if isinstance(mask, LearnedMask) and not mask.measured:
            mask.collect()
            found = _SPREAD * worth(mask.sensitivity, self.masks, self.target)
            # units that stay are not measured: scores from nothing would be so low that their noise overflows
            mask.start(torch.where(self.masks.free > 0, found, mask.score().detach()))

    @torch.no_grad()
    def meet(self) -> None:
        """Shift all scores by one number, so that the expected size is what the budget allows now."""
        mask = self.masks.mask
        assert isinstance(mask, LearnedMask)
        step = _REACH
        for _ in range(_HALVINGS):
            step /= 2
            mask.shift(self.masks.free * (-step if self.size_now() > self.share else step))

    def size_now(self) -> float:
        """`expected_size` as a plain number, in a fraction of the time."""
        masks, expected = self.masks, self.masks.expected()
        sums = torch.stack([expected[place].sum() for place in masks.places.values()]).tolist()
        gates = dict(zip(masks.gates, expected[list(masks.gates.values())].tolist(), strict=True))
        return float(self.target.measure(dict(zip(masks.places, sums, strict=True)), gates) / self.target.full)

    def expected_size(self) -> Tensor:
        """The share of the model that is expected to be left, (), with a gradient to the masks."""
        return torch.as_tensor(self.target.left(*self.masks.counts(self.masks.expected())), dtype=torch.float32)

    def scores(self) -> Tensor:
        """What units are ranked by, (units,)."""
        mask = self.masks.mask
        if not isinstance(mask, Importance):
            return mask.score()
        if mask.kind == "random":
            return mask.importance
        mask.collect()
        found = magnitudes(self.model, self.masks) if mask.kind == "magnitude" else mask.importance
        return normalized(found, self.masks)

    def _select(self, scores: Tensor, limit: float) -> Selection:
        return select(self.masks, scores, self.target, limit, self.settings.round_to)

    def _keep(self, selection: Selection) -> None:
        """Set masks of zeros and ones to a selection."""
        masks = self.masks
        keep = torch.zeros(masks.mask.units)
        for name, place in masks.places.items():
            keep[place][selection.kept[name]] = 1
        for name, gate in masks.gates.items():
            keep[gate] = float(len(selection.kept[name]) > 0)
        masks.mask.get_buffer("keep").copy_(keep)

    def penalties(self) -> dict[str, Tensor]:
        """vib's divergence, the budget's Lagrangian, and the share of the model that is expected to be left."""
        masks, settings = self.masks, self.settings
        size = self.expected_size()
        found = {"size": size.detach()}
        if masks.lagrangian is not None and settings.constraint == "lagrangian":
            found["budget"] = masks.lagrangian(size, self.share)
        if settings.masks == "vib":
            divergence = masks.mask.divergence() * masks.free
            found["divergence"] = settings.beta * (divergence * self.stands_for).sum()
        return found

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The masks ("mask"), vib's factors of units ("gain") and the multipliers of the budget ("multiplier")."""
        mask, lagrangian = self.masks.mask, self.masks.lagrangian
        return {
            "mask": [mask.log_alpha] if isinstance(mask, LearnedMask) else [],
            "gain": [mask.mu] if isinstance(mask, InformationBottleneck) else [],
            "multiplier": [] if lagrangian is None else list(lagrangian.parameters()),
        }

    def finish(self) -> Compressed:
        """Cut the model to the budget; say what is left, and how the heads were ranked."""
        masks, settings, target, model = self.masks, self.settings, self.target, self.model
        check_attached(model, masks)
        masks.mask.slope = settings.slope[1]  # a resumed run has taken no step
        if isinstance(masks.mask, LearnedMask) and not masks.mask.measured:  # the stage was too short
            self.start()
            self.share = target.share
            self.meet()
        expected = float(self.expected_size().detach())
        ranked = self.scores().detach()
        if isinstance(masks.mask, Importance) and int(masks.mask.removals):  # what is removed has no say any more
            ranked = torch.where(masks.mask.keep > 0, ranked + ranked.abs().max() + 1, ranked)
        selection = self._select(ranked, target.limit)
        multipliers = masks.mask.factors()
        multipliers = torch.where(masks.free > 0, multipliers, torch.ones_like(multipliers))
        factors = {name: multipliers[place] for name, place in masks.places.items()}
        gates = {name: multipliers[place] for name, place in masks.gates.items()}
        detach(model, masks)
        units = compressed_of(model).hidden_units
        whole = copy.deepcopy(model).requires_grad_(False) if settings.reconstruct else None
        fitting = Fitting(masks.layout, factors, gates, self.calibrate, whole, self.combines, settings.fit_tokens)
        tried: dict[int, float] = {}
        if settings.widths and masks.free[masks.places[HIDDEN]].any():

            def at(width: int) -> Selection:
                return self._select(with_width(ranked, masks, width), target.limit)

            selection, tried = fitting.nearest(selection, at, settings.widths, settings.round_to)
        facts = {
            "measure": target.name,
            "before": target.full,
            "asked": target.limit,
            "reached": selection.size,
            "expected_share": expected,
            **describe(selection.kept, masks),
            **({"widths": {str(width): round(found, 5) for width, found in sorted(tried.items())}} if tried else {}),
        }
        now = fitting.cut(model, selection.kept)
        return record(
            model,
            hidden_units=composed(units, now, model.config.get_text_config().hidden_size),
            facts={settings.name: facts},
            ranked={settings.name: _heads(masks, ranked, selection)},
            notes={settings.name: self._notes(selection, expected)},
        )

    def _notes(self, selection: Selection, expected: float) -> tuple[str, ...]:
        """What a person should know of how the masks ended."""
        notes = [selection.note] if selection.note else []
        if self.masks.mask.learned and expected > self.target.share + _FAR:
            notes.append(
                f"the masks were not done: they expect {100 * expected:.0f} % of the model to be left, and "
                f"{100 * self.target.share:.0f} % is asked for; the rest was removed by rank (more steps, or a higher "
                "rate of mask, would help)"
            )
        if self.settings.hidden == "components" and not self.combines:
            notes.append(
                "the hidden width is left as single units: of what a layer before the head writes to it, a "
                "nonlinearity is taken, which does not go through combinations"
            )
        return tuple(notes)


def with_width(ranked: Tensor, masks: Masks, width: int) -> Tensor:
    """Scores by which the `width` best hidden units come before all else, and the others after it."""
    place, span = masks.places[HIDDEN], ranked.max() - ranked.min() + 1
    changed = ranked.clone()
    changed[place] -= span
    changed[place.start + ranked[place].topk(width).indices] += 2 * span
    return changed


def composed(before: Tensor | None, now: Tensor, width: int) -> Tensor:
    """What a model's hidden units are of the teacher's `width`, where they are `now` of what was `before`.

    Either is indices (h,), or combinations as columns (units, h).
    """
    if before is None or now.dim() == 1:
        return now if before is None else before[..., now]
    return before @ now if before.dim() == 2 else now.new_zeros(width, now.shape[1]).index_copy(0, before, now)


def _heads(masks: Masks, ranked: Tensor, selection: Selection) -> dict[str, RankedHeads]:
    """By attention module, each group of heads that share keys and values."""
    return {
        name: RankedHeads(
            [round(score, 4) for score in ranked[masks.places[name]].tolist()], selection.kept[name].tolist(), queries
        )
        for name, queries in masks.layout.attentions.items()
    }
