"""Puts masks into a model while it is trained, and takes them out again.

A hidden unit is masked where the residual stream is read: in the norms, which take mean and variance over the units
that are kept, and multiply what they put out. So one mask serves the embeddings and all blocks, and what is written to
units that nobody reads does not matter. Heads and inner units are masked where the part's last matrix reads them, a
whole part where that matrix has written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.families.layout import HIDDEN, Axis, Layout, NormKind
from abridged.methods.pruning.budget import Lagrangian
from abridged.methods.pruning.masks import Kind, Mask, build_mask

#: Under which name a model carries its masks while they are trained.
ATTRIBUTE = "pruning_masks"


class Masks(nn.Module):
    """One mask over the units of all axes and the gates of all parts, and where each axis lies in it.

    `draw` is called once for each forward pass; norms and hooks then read the factors of their axis.
    """

    free: Tensor  #: (units,) 1 where a unit may be removed
    handles: list[Any]  #: of the hooks, to take them away
    hooked: dict[str, nn.Module]  #: the matrices with hooks, as they were found

    def __init__(self, layout: Layout, kind: Kind, structures: frozenset[str]) -> None:
        super().__init__()
        self.layout = layout
        self.places: dict[str, slice] = {}
        self.gates: dict[str, int] = {}
        position = 0
        for name, axis in layout.axes.items():
            self.places[name] = slice(position, position + axis.units)
            position += axis.units
        for name, axis in layout.axes.items():
            if axis.gated:
                self.gates[name] = position
                position += 1
        self.mask: Mask = build_mask(kind, position)
        self.lagrangian = Lagrangian() if self.mask.learned else None
        self.register_buffer("free", self._free(structures), persistent=False)
        self._draw: Tensor | None = None
        self._weights: Tensor | None = None

    def _free(self, structures: frozenset[str]) -> Tensor:
        """1 where a unit may be removed, (units,)."""
        free = torch.zeros(self.mask.units)
        for name, place in self.places.items():
            free[place] = float(kind_of(self.layout.axes[name]) in structures)
        for gate in self.gates.values():
            free[gate] = float("blocks" in structures)
        return free

    def draw(self, rows: int) -> None:
        """Fix the factors of one forward pass of a batch of so many rows."""
        bound = 1 - self.free
        if self.training:
            self._draw = self.mask.sample(rows) * self.free + bound
            self._weights = self.expected()[self.places[HIDDEN]]
        else:
            z = self.mask.deterministic() * self.free + bound
            self._draw = z.unsqueeze(0)
            self._weights = (z[self.places[HIDDEN]] != 0).to(z.dtype)
            if not bool(self._weights.any()):
                raise AbridgedError("the masks have collapsed: no hidden unit is left; train with a higher budget")

    def expected(self) -> Tensor:
        """The probability of each unit to be kept, (units,); 1 of what may not be removed."""
        return self.mask.expected() * self.free + (1 - self.free)

    def counts(self, units: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Units left of each axis, and gates of the parts, where each unit counts as 0 to 1, (units,)."""
        counts = {name: units[place].sum() for name, place in self.places.items()}
        return counts, {name: units[place] for name, place in self.gates.items()}

    def drawn(self, place: slice | int) -> Tensor:
        """This pass's factors, (rows or 1, n)."""
        if self._draw is None:
            self.draw(1)
        assert self._draw is not None
        return self._draw[:, place if isinstance(place, slice) else slice(place, place + 1)]

    @property
    def weights(self) -> Tensor:
        """How much each hidden unit counts in the norms' means, (hidden,): 0 or 1 but while training."""
        if self._weights is None:
            self.draw(1)
        assert self._weights is not None
        return self._weights


def kind_of(axis: Axis) -> str:
    """What recipes call the units of an axis."""
    return {"hidden": "hidden", "attention": "heads", "fixed": "fixed"}.get(axis.kind, "ffn")


class MaskedNorm(nn.Module):
    """A LayerNorm or RMSNorm over the units that are kept, multiplied by their factors.

    Its parameters are those of the norm that it stands for, under the same names.
    """

    def __init__(self, norm: Any, kind: NormKind, masks: Masks) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", getattr(norm, "bias", None))
        self.centered, self.offset, self.eps = kind
        self.held = (norm, masks)  # in a tuple: neither is a child

    def forward(self, x: Tensor) -> Tensor:
        """x (B, …, d) to the same."""
        masks = self.held[1]
        share = masks.weights / masks.weights.sum()
        flat = x.dim() == 2  # OPT: texts one after another
        z = masks.drawn(masks.places[HIDDEN])
        if flat:
            x = x.unflatten(0, (len(z) if len(x) % len(z) == 0 else 1, -1))
        z = _rows(z, x)
        gain, offset = z * (self.weight + self.offset), None if self.bias is None else z * self.bias
        y: Tensor = WeightedNorm.apply(x.float().flatten(1, -2), share, gain, offset, self.centered, self.eps)
        y = y.view_as(x).to(x.dtype)
        return y.flatten(0, 1) if flat else y


class WeightedNorm(torch.autograd.Function):
    """y·gain + offset, where y is x less its mean m = Σ s·x (if `centered`), times r = (Σ s·(x - m)² + eps)^-½.

    x (B, T, d); s (d,) sums to 1; gain and offset (B or 1, d), the offset may be None.

    In one function, since autograd would keep and go through every intermediate. With h the gradient of y, that of x is
    r·(h - s·(Σh + y·Σh·y)), and that of s is -½·y²·Σh·y - r·x·Σh, summed over B and T; where not centered, the terms
    with Σh are not there.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, share: Tensor, gain: Tensor, offset: Tensor | None, centered: bool, eps: float
    ) -> Tensor:
        mean = (x @ share).unsqueeze(-1) if centered else None
        y = x.clone() if mean is None else x - mean
        scale = torch.rsqrt((y.square() @ share).unsqueeze(-1) + eps)
        y *= scale
        ctx.save_for_backward(y, share, gain, scale, mean)
        ctx.offset = offset is not None
        gain = gain.unsqueeze(1)
        return y * gain if offset is None else torch.addcmul(offset.unsqueeze(1), y, gain)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, share, gain, scale, mean = ctx.saved_tensors
        one = (1, 1, len(share)) if len(gain) == 1 else (len(gain), 1, len(share))
        product, columns = gradient * y, gain.unsqueeze(-1)
        for_gain = product.sum_to_size(one).squeeze(1)
        for_offset = gradient.sum_to_size(one).squeeze(1) if ctx.offset else None
        along = product @ columns  # Σh·y, (B, T, 1)
        torch.mul(y, along, out=product)
        rows, for_share = y.flatten(0, 1), None
        if ctx.needs_input_grad[1]:
            for_share = -0.5 * (along.flatten() @ rows.square())
        if mean is not None:
            total = gradient @ columns
            product += total
            if for_share is not None:  # r·x = y + r·m
                for_share = for_share - total.flatten() @ rows - (total * scale * mean).sum()
        for_x = torch.addcmul(gradient * gain.unsqueeze(1), product, share, value=-1).mul_(scale)
        return for_x, for_share, for_gain, for_offset, None, None


def _rows(z: Tensor, x: Tensor) -> Tensor:
    """Factors (rows, n) or (1, n), for x (rows, …, n); those of the first row where rows were repeated since."""
    return z if z.shape[0] in (1, x.shape[0]) else z[:1]


def _fit(z: Tensor, x: Tensor) -> Tensor:
    """`_rows` in as many dimensions as x."""
    if x.dim() == 2 and len(z) > 1 and len(x) % len(z) == 0:
        return z.repeat_interleave(len(x) // len(z), 0)
    z = _rows(z, x)
    return z.view(z.shape[0], *(1,) * (x.dim() - 2), z.shape[1])


class Hooks:
    """What multiplies the input of a part's last matrix, and its bias: g·(W(z·x) + b) = W(g·z·x) + b + (g - 1)·b."""

    def __init__(self, masks: Masks, name: str, size: int) -> None:
        self.masks, self.name, self.size = masks, name, size

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Input (B, …, units * size) times the factors of the units, and of the whole part."""
        x = inputs[0]
        z = self.masks.drawn(self.masks.places[self.name])
        if self.name in self.masks.gates:
            z = z * self.masks.drawn(self.masks.gates[self.name])
        z = z if self.size == 1 else z.repeat_interleave(self.size, 1)
        return (x * _fit(z, x).to(x.dtype), *inputs[1:])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Output (B, …, d) with the bias times the factor of the whole part."""
        less = (self.masks.drawn(self.masks.gates[self.name]) - 1) * module.get_parameter("bias")
        return output + _fit(less, output).to(output.dtype)


def attach(model: Any, layout: Layout, kind: Kind, structures: frozenset[str]) -> Masks:
    """Give a model masks, as its child `pruning_masks`; its parameters keep their names."""
    masks = Masks(layout, kind, structures).to(next(model.parameters()).device)
    handles = []
    for module in layout.modules:
        if module.norm is not None:
            _swap(model, module.path, MaskedNorm(model.get_submodule(module.path), module.norm, masks))
    columns = {module.path: module.columns for module in layout.modules}
    for name, output in layout.outputs.items():
        side = columns[output]
        assert side is not None
        hooks, matrix = Hooks(masks, name, side.size), model.get_submodule(output)
        handles.append(matrix.register_forward_pre_hook(hooks.before))
        if name in masks.gates and getattr(matrix, "bias", None) is not None:
            handles.append(matrix.register_forward_hook(hooks.after))
    # OPT's head calls its decoder past the base model, and objectives call the base model past the head
    handles.append(model.base_model.register_forward_pre_hook(_draw(masks), with_kwargs=True))
    if not layout.through_base:
        handles.append(model.register_forward_pre_hook(_draw(masks), with_kwargs=True))
    if layout.bare_stream:  # norms come after the parts: the first reads what the embeddings have written
        for module in layout.modules:
            if module.part in ("embedding", "positions"):
                for path in (module.path, *module.tied):
                    if isinstance(model.get_submodule(path), nn.Embedding):
                        handles.append(model.get_submodule(path).register_forward_hook(_mask_rows(masks)))
    masks.handles = handles
    masks.hooked = {output: model.get_submodule(output) for output in layout.outputs.values()}
    setattr(model, ATTRIBUTE, masks.train(model.training))
    return masks


def _mask_rows(masks: Masks) -> Any:
    def mask(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * masks.weights.to(output.dtype)

    return mask


def _draw(masks: Masks) -> Any:
    def draw(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*arguments, *(named.get(key) for key in ("input_ids", "inputs_embeds"))]
        masks.draw(next((len(x) for x in given if isinstance(x, Tensor)), 1))

    return draw


def check_attached(model: Any, masks: Masks) -> None:
    """Raise AbridgedError where another method has put modules of its own in the place of masked ones."""
    for path, module in masks.hooked.items():
        if model.get_submodule(path) is not module:
            raise AbridgedError(f"{path} was replaced after it had been masked: prune in a stage before other methods")


def detach(model: Any, masks: Masks) -> None:
    """Take the masks out of a model, and leave it as it was before them."""
    for handle in masks.handles:
        handle.remove()
    for module in masks.layout.modules:
        if module.norm is not None:
            _swap(model, module.path, model.get_submodule(module.path).held[0])
    delattr(model, ATTRIBUTE)


def _swap(model: nn.Module, path: str, module: nn.Module) -> None:
    model.set_submodule(path, module.train(model.get_submodule(path).training))
