"""Cross-entropies and divergences over the vocabulary that never hold all logits at once.

Logits of T tokens over V entries take T*V numbers, often more memory than the whole model. Here a chunk of rows
is multiplied by the head, compared with its target, and turned into gradients at once, in buffers that the next
chunk uses again; what outlives the chunk is the gradient of the hidden states and of the head.
Matrix products run in autocast's type where it is on, everything between them in FP32 (or FP64 where the input is).
Of a packed head no more than a slice is dequantised at a time either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from abridged.objectives.base import TopLogits
from abridged.runtime.backends import Reference
from abridged.runtime.weight import PackedWeight

# Fewer rows make poor matrix products and add up the head's gradient too often. Beyond that, chunks of
# 2^21 numbers were fastest on CPUs (a few MB, about the size of the caches), while GPUs want many more at once.
MINIMUM_ROWS = 128
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**26}


Weight = Tensor | PackedWeight
"""A head's (V, d)."""


def _as(weight: Weight, dtype: torch.dtype) -> Weight:
    """A weight as it is multiplied; a packed one is turned into `dtype` slice by slice."""
    return weight if isinstance(weight, PackedWeight) else weight.to(dtype)


def entries(weight: Weight) -> int:
    """V."""
    return weight.storage.rows if isinstance(weight, PackedWeight) else len(weight)


def _times(gradient: Tensor, weight: Weight) -> Tensor:
    """gradient (n, V) @ weight, (n, d)."""
    return Reference().backward(weight, gradient) if isinstance(weight, PackedWeight) else torch.mm(gradient, weight)


class Target(Protocol):
    """What rows of logits are compared with."""

    def compare(self, rows: slice, log_q: Tensor, gradient: Tensor | None) -> Tensor:
        """Losses (n,) of some rows, and their gradient.

        Args:
            rows: which rows of the target, n of them.
            log_q: (n, V) the student's log probabilities; may be overwritten.
            gradient: (n, V) receives the losses' gradient by the student's logits, unless None.
        """
        ...


class LabelTarget:
    """Cross-entropy with labels (N,)."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.clamp_min(0).unsqueeze(-1)  # rows labelled -100 have token weight 0

    def compare(self, rows: slice, log_q: Tensor, gradient: Tensor | None) -> Tensor:
        labels = self.labels[rows]
        log_label = log_q.gather(1, labels)
        if gradient is not None:
            log_q.exp_().scatter_(1, labels, log_label.exp() - 1)
            gradient.copy_(log_q)
        return -log_label.squeeze(-1)


class TeacherTarget:
    """Kullback-Leibler divergence from softmax(hidden @ weight.T + bias)."""

    def __init__(self, hidden: Tensor, weight: Weight, bias: Tensor | None, cap: float | None = None) -> None:
        self.hidden, self.weight, self.bias, self.cap = hidden, weight, bias, cap
        self.buffers: list[Tensor] = []

    def compare(self, rows: slice, log_q: Tensor, gradient: Tensor | None) -> Tensor:
        if not self.buffers:
            self.buffers = [torch.empty_like(log_q, dtype=self.hidden.dtype)]
            self.buffers += [torch.empty_like(log_q), torch.empty_like(log_q)]
        logits, log_p, p = (buffer[: len(log_q)] for buffer in self.buffers)
        log_softmax(self.hidden[rows], self.weight, self.bias, logits, log_p, self.cap)
        torch.exp(log_p, out=p)
        losses = torch.linalg.vecdot(p, log_p.sub_(log_q))
        if gradient is not None:
            torch.sub(log_q.exp_(), p, out=gradient)
        return losses


class TopTarget:
    """Kullback-Leibler divergence over the k likeliest entries and the rest, lumped into one outcome.

    Within the rest the student is left as it is: its share there is scaled up or down as a whole.
    """

    def __init__(self, top: TopLogits, dtype: torch.dtype) -> None:
        log_p = torch.cat([top.log_probabilities, top.log_rest.unsqueeze(-1)], -1).flatten(0, -2)
        self.p = log_p.to(dtype).softmax(-1)  # what was rounded for storage sums to one again
        self.indices = top.indices.flatten(0, -2).long()

    def compare(self, rows: slice, log_q: Tensor, gradient: Tensor | None) -> Tensor:
        p, indices = self.p[rows], self.indices[rows]
        p_rest = p[:, -1]
        log_top = log_q.gather(1, indices)
        q = log_q.exp_().scatter_(1, indices, 0.0)
        q_rest = q.sum(-1).clamp_min(1e-30)
        log_q_all = torch.cat([log_top, q_rest.log().unsqueeze(-1)], -1)
        losses = (torch.special.xlogy(p, p) - p * log_q_all).sum(-1)
        if gradient is not None:
            q.mul_((1 - p_rest / q_rest).unsqueeze(-1)).scatter_(1, indices, log_top.exp() - p[:, :-1])
            gradient.copy_(q)
        return losses


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type of matrix products with `tensor`: autocast's where it is on, else its own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def log_softmax(
    hidden: Tensor,
    weight: Weight,
    bias: Tensor | None,
    logits: Tensor,
    out: Tensor,
    cap: float | None = None,
    slope: Tensor | None = None,
) -> None:
    """Writes log softmax(hidden @ weight.T + bias), (n, V), into `out`; `logits` is scratch in the products' type.

    Args:
        cap: logits s become cap * tanh(s / cap) first.
        slope: (n, V) receives what that multiplies gradients by: 1 - tanh^2.
    """
    if isinstance(weight, PackedWeight):
        Reference().linear(weight, hidden, None, out=logits)
    else:
        torch.mm(hidden, weight.t(), out=logits)
    out.copy_(logits)
    if bias is not None:
        out.add_(bias)
    if cap is not None:
        out.div_(cap).tanh_()
        if slope is not None:
            torch.mul(out, out, out=slope).neg_().add_(1)
        out.mul_(cap)
    torch.log_softmax(out, -1, out=out)


def rows_in_chunk(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits are worked on at once."""
    return max(MINIMUM_ROWS, CHUNK_NUMBERS.get(device.type, CHUNK_NUMBERS["cuda"]) // vocabulary)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, token_weights, target, dtype, cap):
        with torch.autocast(hidden.device.type, enabled=False):
            want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
            wide = token_weights.dtype
            h, w = hidden.to(dtype), _as(weight, dtype)
            weighted = (h * token_weights.unsqueeze(-1)).to(dtype)
            chunk = min(len(h), rows_in_chunk(entries(w), h.device))
            logits = h.new_empty(chunk, entries(w))
            log_q = torch.empty_like(logits, dtype=wide)
            slope = None if cap is None or not any(ctx.needs_input_grad) else torch.empty_like(log_q)
            grad_hidden = torch.empty_like(hidden) if want_hidden else None
            grad_weight = torch.zeros_like(weight) if want_weight else None
            grad_bias = torch.zeros_like(bias) if want_bias else None
            total = torch.zeros((), dtype=wide, device=h.device)
            for start in range(0, len(h), chunk):
                rows = slice(start, min(start + chunk, len(h)))
                size = rows.stop - start
                own = None if slope is None else slope[:size]
                log_softmax(h[rows], w, bias, logits[:size], log_q[:size], cap, own)
                # The logits are used up: their buffer takes the gradient.
                gradient = logits[:size]
                losses = target.compare(rows, log_q[:size], gradient if any(ctx.needs_input_grad) else None)
                if own is not None:
                    gradient.mul_(own)
                scale = token_weights[rows]
                total += torch.dot(losses, scale)
                if grad_hidden is not None:
                    torch.mul(_times(gradient, w), scale.unsqueeze(-1), out=grad_hidden[rows])
                if grad_weight is not None:
                    grad_weight.add_(torch.mm(gradient.t(), weighted[rows]))
                if grad_bias is not None:
                    grad_bias.add_((gradient * scale.unsqueeze(-1)).sum(0))
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        gradients = (None if g is None else g * grad_output for g in ctx.saved_tensors)
        return (*gradients, None, None, None, None)


def _chunked(
    hidden: Tensor,
    weight: Weight,
    bias: Tensor | None,
    weights: Tensor,
    target: Target,
    dtype: torch.dtype,
    cap: float | None,
) -> Tensor:
    if not torch.is_grad_enabled():
        hidden, bias = hidden.detach(), None if bias is None else bias.detach()
        weight = weight if isinstance(weight, PackedWeight) else weight.detach()
    return _ChunkedLoss.apply(hidden, weight, bias, weights, target, dtype, cap)


def uniform_weights(counted: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Token weights (N,) of a mean over the tokens that count, from `counted` (B, T) bool; all 0 if none does."""
    counted = counted.flatten()
    return counted.to(dtype) / counted.sum().clamp_min(1)


@torch.compiler.disable
def label_cross_entropy(
    hidden: Tensor,
    weight: Weight,
    bias: Tensor | None,
    labels: Tensor,
    token_weights: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Cross-entropy of softmax(hidden @ weight.T + bias) with labels, without holding all logits.

    Args:
        hidden: (..., d), N rows in all.
        weight: (V, d), packed or not.
        bias: (V,) or None.
        labels: (...) int64; -100 does not count.
        token_weights: (N,) factors of the rows' losses, which are summed; None = mean over the rows that count.
        cap: logits are soft-capped at it (Gemma 2).

    Returns:
        Scalar in FP32 (FP64 for FP64 input). Gradients flow to hidden, weight, and bias.
    """
    rows = hidden.flatten(0, -2)
    wide = torch.promote_types(rows.dtype, torch.float32)
    weights = uniform_weights(labels != -100, wide) if token_weights is None else token_weights.to(wide)
    return _chunked(rows, weight, bias, weights, LabelTarget(labels.flatten()), compute_dtype(rows), cap)


@torch.compiler.disable
def teacher_divergence(
    hidden: Tensor,
    weight: Weight,
    bias: Tensor | None,
    teacher: tuple[Tensor, Weight, Tensor | None] | TopLogits,
    token_weights: Tensor,
    temperature: float = 1.0,
    *,
    cap: float | None = None,
    teacher_cap: float | None = None,
) -> Tensor:
    """Divergence KL(teacher || student) of next-token distributions, without holding all logits.

    It is the soft cross-entropy less the teacher's entropy, a constant: same gradients, and 0 for a perfect student.

    Args:
        hidden: (..., d), N rows in all.
        weight: (V, d).
        bias: (V,) or None.
        teacher: the teacher's hidden states (..., d'), weight (V, d') and bias, or its cached top logits (whose
            temperature was applied when they were cached).
        token_weights: (N,) factors of the rows' divergences, which are summed.
        temperature: divides both models' logits; the result is multiplied by its square, so that gradients keep
            their size (Hinton et al., arXiv:1503.02531, section 2).
        cap: the student's logits are soft-capped at it, before the temperature.
        teacher_cap: and the teacher's.

    Returns:
        Scalar in FP32 (FP64 for FP64 input). Gradients flow to hidden, weight, and bias, none to the teacher.
    """
    dtype = compute_dtype(hidden)
    rows = hidden.flatten(0, -2) / temperature
    wide = torch.promote_types(rows.dtype, torch.float32)
    target: Target
    if isinstance(teacher, TopLogits):
        target = TopTarget(teacher, wide)
    else:
        t_hidden, t_weight, t_bias = teacher
        t_weight = t_weight if isinstance(t_weight, PackedWeight) else t_weight.detach()
        t_rows = (t_hidden.detach().flatten(0, -2) / temperature).to(dtype)
        t_bias = None if t_bias is None else t_bias.detach() / temperature
        target = TeacherTarget(t_rows, _as(t_weight, dtype), t_bias, teacher_cap and teacher_cap / temperature)
    bias = None if bias is None else bias / temperature
    weights = token_weights.to(wide) * temperature**2
    return _chunked(rows, weight, bias, weights, target, dtype, cap and cap / temperature)


@torch.no_grad()
def label_losses(
    hidden: Tensor, weight: Weight, bias: Tensor | None, labels: Tensor, cap: float | None = None
) -> Tensor:
    """Each token's cross-entropy with its label, (...) like `labels`, in FP32, 0 where the label is -100."""
    flat = labels.flatten()
    target = LabelTarget(flat)
    losses = [target.compare(rows, log_q, None) for rows, log_q in chunks(hidden.flatten(0, -2), weight, bias, cap)]
    return torch.cat(losses).masked_fill(flat == -100, 0.0).view(labels.shape)


def chunks(
    hidden: Tensor, weight: Weight, bias: Tensor | None, cap: float | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows, so many at a time, and their log softmax(hidden @ weight.T + bias), (n, V) in FP32 (FP64 for FP64 input).

    What the caller does with it runs without autocast, and the next rows overwrite it.

    Args:
        hidden: (N, d).
        weight, bias, cap: as in `label_cross_entropy`.
    """
    dtype = compute_dtype(hidden)
    h, w = hidden.to(dtype), _as(weight, dtype)
    size = min(len(h), rows_in_chunk(entries(w), h.device))
    logits = h.new_empty(size, entries(w))
    log_q = torch.empty_like(logits, dtype=torch.promote_types(hidden.dtype, torch.float32))
    with torch.autocast(h.device.type, enabled=False):
        for start in range(0, len(h), size):
            rows = slice(start, min(start + size, len(h)))
            count = rows.stop - start
            log_softmax(h[rows], w, bias, logits[:count], log_q[:count], cap)
            yield rows, log_q[:count]
