"""What pruning does at each moment of a stage."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.methods.pruning.budget import Lagrangian, Target
from abridged.methods.pruning.fitting import Fitting
from abridged.methods.pruning.importance import magnitudes, normalized, worth
from abridged.methods.pruning.layout import HIDDEN, layout_of
from abridged.methods.pruning.masked import Data, Masks, attach, check_attached, detach, masks_of
from abridged.methods.pruning.masks import Importance, InformationBottleneck, LearnedMask
from abridged.methods.pruning.select import Selection, describe, select

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate
    from abridged.methods.pruning.method import Prune

#: A model that is still so much larger than its target, as a share of the whole, has masks that were not done.
_FAR = 0.1
#: How far apart measured scores start, in units of the logarithm of squared gradients: most masks are then all but open
#: or shut. With many half open at once their noise leaves nothing to learn from.
_SPREAD = 8.0
#: Halvings of the interval in which the shift that meets the budget lies, and its half.
_HALVINGS, _REACH = 16, 16.0


def prepare(model: Any, anatomy: Any, method: Prune, calibrate: Calibrate) -> None:
    """See `Prune.prepare`."""
    layout = layout_of(model, anatomy)
    target = Target(layout, method.budget)
    masks = attach(model, layout, method.masks, frozenset(method.structures))
    masks.target, masks.share, masks.data = target, 1.0, Data(calibrate)
    masks.combines = method.hidden == "components" and not anatomy.writers
    select(masks, torch.zeros(masks.mask.units), target, target.limit, method.round_to)  # or no such model can be
    if isinstance(masks.mask, LearnedMask):
        if method.measure > 0:
            masks.mask.measure()
        masks.lagrangian = Lagrangian().to(masks.free.device)
        stands_for = torch.ones(masks.mask.units)
        sizes = list(layout.sizes(layout.full(), layout.open_gates()))
        for name in layout.attentions:
            own = sum(size for module, size in sizes if module.gate == name)
            stands_for[masks.places[name]] = own / layout.axes[name].units
        masks.register_buffer("stands_for", stands_for.to(masks.free.device), persistent=False)
    else:
        masks.register_buffer("removals", torch.zeros(1, dtype=torch.int64, device=masks.free.device))


def _masks(model: nn.Module) -> Masks:
    masks = masks_of(model)
    assert masks is not None
    return masks


def step(model: nn.Module, progress: float, method: Prune) -> None:
    """See `Prune.step`."""
    masks = _masks(model)
    check_attached(model, masks)
    first, last = method.slope
    masks.mask.slope = first * (last / first) ** progress
    began = method.measure if masks.mask.learned else 0.0
    if progress < began:
        return
    warm = 1.0 if method.warmup == 0 else min(1.0, (progress - began) / method.warmup)
    masks.share = 1 + (masks.target.share - 1) * warm
    if isinstance(masks.mask, LearnedMask):
        start(masks)
        if method.constraint == "threshold":
            meet(masks)
    if isinstance(masks.mask, Importance):
        due = round(warm * method.updates)
        if due > int(masks.removals):
            masks.removals.fill_(due)
            limit = masks.target.limit_at(1 + (masks.target.share - 1) * due / method.updates)
            _keep(masks, select(masks, scores(model, masks), masks.target, limit, method.round_to))


def start(masks: Masks) -> None:
    """Let masks that were measured start from what was found, if they have not."""
    mask = masks.mask
    if isinstance(mask, LearnedMask) and not mask.measured:
        mask.collect()
        mask.start(_SPREAD * worth(mask.sensitivity, masks))


@torch.no_grad()
def meet(masks: Masks) -> None:
    """Shift all scores by one number, so that the expected size is what the budget allows now."""
    mask = masks.mask
    assert isinstance(mask, LearnedMask)
    step = _REACH
    for _ in range(_HALVINGS):
        step /= 2
        mask.shift(-step if size_now(masks) > masks.share else step)


def size_now(masks: Masks) -> float:
    """`expected_size` as a plain number, in a fraction of the time."""
    expected = masks.expected()
    sums = torch.stack([expected[place].sum() for place in masks.places.values()]).tolist()
    gates = dict(zip(masks.gates, expected[list(masks.gates.values())].tolist(), strict=True))
    return float(masks.target.measure(dict(zip(masks.places, sums, strict=True)), gates) / masks.target.full)


def scores(model: nn.Module, masks: Masks) -> Tensor:
    """What units are ranked by, (units,)."""
    mask = masks.mask
    if not isinstance(mask, Importance):
        return mask.score()
    if mask.kind == "random":
        return mask.importance
    mask.collect()
    return normalized(magnitudes(model, masks) if mask.kind == "magnitude" else mask.importance, masks)


def _keep(masks: Masks, selection: Selection) -> None:
    """Set masks of zeros and ones to a selection."""
    keep = torch.zeros(masks.mask.units)
    for name, place in masks.places.items():
        keep[place][selection.kept[name]] = 1
    for name, gate in masks.gates.items():
        keep[gate] = float(len(selection.kept[name]) > 0)
    masks.mask.get_buffer("keep").copy_(keep)


def penalties(model: nn.Module, method: Prune) -> dict[str, Tensor]:
    """See `Prune.penalties`."""
    masks = _masks(model)
    size = expected_size(masks)
    if not masks.mask.learned:
        return {"size": size.detach()}
    found = {"size": size.detach()}
    if method.constraint == "lagrangian":
        found["budget"] = masks.lagrangian(size, masks.share)
    if method.masks == "vib":
        divergence = masks.mask.divergence() * masks.free
        found["divergence"] = method.beta * (divergence * masks.stands_for).sum()
    return found


def expected_size(masks: Masks) -> Tensor:
    """The share of the model that is expected to be left, (), with a gradient to the masks."""
    return torch.as_tensor(masks.size(masks.expected()), dtype=torch.float32)


def finish(model: Any, method: Prune) -> dict[str, Any]:
    """See `Prune.finish`."""
    masks = _masks(model)
    check_attached(model, masks)
    masks.mask.slope = method.slope[1]  # a resumed run has taken no step
    target = masks.target
    if isinstance(masks.mask, LearnedMask) and not masks.mask.measured:  # the stage was too short
        start(masks)
        masks.share = target.share
        meet(masks)
    expected = float(expected_size(masks).detach())
    ranked = scores(model, masks).detach()
    if isinstance(masks.mask, Importance) and int(masks.removals):  # what is removed already has no say any more
        ranked = torch.where(masks.mask.keep > 0, ranked + ranked.abs().max() + 1, ranked)
    selection = select(masks, ranked, target, target.limit, method.round_to)
    multipliers = masks.mask.factors()
    multipliers = torch.where(masks.free > 0, multipliers, torch.ones_like(multipliers))
    factors = {name: multipliers[place] for name, place in masks.places.items()}
    gates = {name: multipliers[place] for name, place in masks.gates.items()}
    detach(model, masks)
    units = getattr(model, "hidden_units", None)
    whole = copy.deepcopy(model).requires_grad_(False) if method.reconstruct else None
    fitting = Fitting(masks.layout, factors, gates, masks.data.calibrate, whole, masks.combines, method.fit_tokens)
    tried: dict[int, float] = {}
    if method.widths and masks.free[masks.places[HIDDEN]].any():

        def at(width: int) -> Selection:
            return select(masks, with_width(ranked, masks, width), target, target.limit, method.round_to)

        selection, tried = fitting.nearest(selection, at, method.widths, method.round_to)
    kept = selection.kept
    found = {
        "measure": target.name,
        "before": target.full,
        "asked": target.limit,
        "reached": selection.size,
        "expected_share": expected,
        **describe(kept, masks),
        "heads": _heads(masks, ranked, selection),
        **({"widths": {str(width): round(found, 5) for width, found in sorted(tried.items())}} if tried else {}),
        "notes": _notes(masks, method, selection, expected),
    }
    now = fitting.cut(model, kept)
    model.hidden_units = composed(units, now, model.config.hidden_size)
    return found


def with_width(ranked: Tensor, masks: Masks, width: int) -> Tensor:
    """Scores by which the `width` best hidden units come before all else, and the others after it."""
    place, span = masks.places[HIDDEN], ranked.max() - ranked.min() + 1
    changed = ranked.clone()
    changed[place] -= span
    changed[place.start + ranked[place].topk(width).indices] += 2 * span
    return changed


def _notes(masks: Masks, method: Prune, selection: Selection, expected: float) -> list[str]:
    """What a person should know of how the masks ended."""
    notes = [selection.note] if selection.note else []
    if masks.mask.learned and expected > masks.target.share + _FAR:
        notes.append(
            f"the masks were not done: they expect {100 * expected:.0f} % of the model to be left, and "
            f"{100 * masks.target.share:.0f} % is asked for; the rest was removed by rank (more steps, or a higher "
            "rate of mask, would help)"
        )
    if not any(len(selection.kept[name]) for name in masks.gates):
        notes.append("the masks have collapsed: no attention and no feed-forward part is left, only embeddings")
    if method.hidden == "components" and not masks.combines:
        notes.append(
            "the hidden width is left as single units: of what a layer before the head writes to it, a nonlinearity is "
            "taken, which does not go through combinations"
        )
    return notes


def composed(before: Tensor | None, now: Tensor, width: int) -> Tensor:
    """What a model's hidden units are of the teacher's `width`, where they are `now` of what was `before`.

    Either is indices (h,), or combinations as columns (units, h).
    """
    if before is None or now.dim() == 1:
        return now if before is None else before[..., now]
    return before @ now if before.dim() == 2 else now.new_zeros(width, now.shape[1]).index_copy(0, before, now)


def _heads(masks: Masks, ranked: Tensor, selection: Selection) -> dict[str, dict[str, Any]]:
    """By attention module: the score of each group of heads, which are kept, and the query heads in one."""
    return {
        name: {
            "scores": [round(score, 4) for score in ranked[masks.places[name]].tolist()],
            "kept": selection.kept[name].tolist(),
            "queries": queries,
        }
        for name, queries in masks.layout.attentions.items()
    }


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """See `Prune.parameter_groups`."""
    masks = _masks(model)
    found: dict[str, list[nn.Parameter]] = {"mask": [], "gain": [], "multiplier": []}
    if isinstance(masks.mask, LearnedMask):
        found |= {"mask": [masks.mask.log_alpha], "multiplier": list(masks.lagrangian.parameters())}
    if isinstance(masks.mask, InformationBottleneck):
        found["gain"] = [masks.mask.mu]
    return found
