"""What each attention head looks at: special tokens, the token itself, the one before, or all alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from abridged import families
from abridged.core.modes import evaluating
from abridged.data.batch import Batch
from abridged.evaluation.scores import spearman
from abridged.storage.compressed import RankedHeads

MEASURES = ("special", "current", "previous", "entropy")


def probe_heads(model: Any, batches: Iterable[Batch], special: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """For each attention module, what each of its query heads does on the average over the tokens of `batches`.

    special: the share of attention on tokens of these ids, or on a text's first token where it has none of them, on
        which models without special tokens rest their attention; current: on the token itself; previous: on the one
        before; entropy: of the distribution over tokens, in nats. Padding neither looks nor is looked at. Attention
        across, from one text to another, has no current and previous token: 0.
    """
    watched = _Watch(model, special)
    implementation = model.config._attn_implementation
    if implementation not in ("eager", "abridged"):
        model.set_attn_implementation("eager")  # the others hold no probabilities
    try:
        with torch.inference_mode(), evaluating(model) as device:
            for batch in batches:
                watched.batch = batch = batch.to(device)
                model(**batch.model_inputs, use_cache=False, output_attentions=True)
    finally:
        watched.close()
        if implementation not in ("eager", "abridged"):
            model.set_attn_implementation(implementation)
    return watched.found()


class _Watch:
    """Looks at what the attention modules give back, and sums up."""

    def __init__(self, model: Any, special: Sequence[int]) -> None:
        self.special = torch.tensor(sorted(set(special)), dtype=torch.int64)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.batch: Batch | None = None
        encoder = model.get_encoder() if model.config.is_encoder_decoder else None
        inside = set() if encoder is None else set(encoder.modules())
        self.handles = []
        for path in families.view(model).attentions:
            module = model.get_submodule(path)
            hook = self._hook(path, module in inside)
            self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _hook(self, path: str, in_encoder: bool) -> Any:
        def see(module: nn.Module, inputs: Any, named: Mapping[str, Any], output: Any) -> None:
            assert self.batch is not None
            across = named.get("key_value_states") is not None
            self._add(path, output[1].float(), *_texts(self.batch, in_encoder, across), across)

        return see

    def _add(self, path: str, p: Tensor, keys: Tensor, there: Tensor, counted: Tensor, across: bool) -> None:
        """p (B, heads, T, S); keys (B, S) ids, of which `there` (B, S) are no padding; counted (B, T) rows."""
        special = torch.isin(keys, self.special.to(keys.device)) & there
        first = torch.zeros_like(special)
        first.scatter_(1, there.int().argmax(1, keepdim=True), True)
        special = torch.where(special.any(1, keepdim=True), special, first)
        measures = {
            "special": (p * special[:, None, None]).sum(-1),
            "current": torch.zeros_like(p[..., 0]),
            "previous": torch.zeros_like(p[..., 0]),
            "entropy": -(p * p.clamp_min(1e-12).log()).sum(-1),
        }
        if not across:
            measures["current"] = p.diagonal(0, -2, -1)
            measures["previous"][..., 1:] = p.diagonal(-1, -2, -1)
        rows = counted[:, None].to(p.dtype)
        sums = torch.stack([(measures[name] * rows).sum((0, 2)) for name in MEASURES], 1).double().cpu()
        self.sums[path] = self.sums.get(path, 0) + sums
        self.counts[path] = self.counts.get(path, 0.0) + float(counted.sum())

    def found(self) -> dict[str, list[dict[str, float]]]:
        return {
            path: [dict(zip(MEASURES, row, strict=True)) for row in (sums / max(1.0, self.counts[path])).tolist()]
            for path, sums in self.sums.items()
        }

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def _texts(batch: Batch, in_encoder: bool, across: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The ids that are looked at (B, S), which of them are no padding, and the rows (B, T) that look and count."""
    source = batch.source_ids is not None and (in_encoder or across)
    keys = batch.source_ids if source else batch.input_ids
    mask = batch.source_mask if source else batch.attention_mask
    assert keys is not None
    there = torch.ones_like(keys, dtype=torch.bool) if mask is None else mask.bool()
    return keys, there, there if in_encoder or (not across and batch.source_ids is None) else batch.counted


def against_masks(
    probed: Mapping[str, Sequence[Mapping[str, float]]], masks: Mapping[str, RankedHeads]
) -> dict[str, Any]:
    """How what heads look at goes with what masks made of them (VTrans, section 5: those on special and current first).

    probed: of the model before pruning. masks: how its heads were ranked, by attention module.

    Returns `heads` in the modules' order, each with its measures, `score` and `removed`, and `correlation`: Spearman's,
    of the score with each measure and with `either`, the larger of special and current; below 0 where such heads go
    first. None where all are equal.
    """
    heads = []
    for path, rows in probed.items():
        if path not in masks:
            continue
        ranked = masks[path]
        for number, row in enumerate(rows):
            group = number // ranked.queries
            if group < len(ranked.scores):
                state = {"score": float(ranked.scores[group]), "removed": group not in ranked.kept}
                heads.append({"module": path, "head": number, **row, **state})
    scores = np.array([head["score"] for head in heads])
    columns = {name: np.array([head[name] for head in heads]) for name in MEASURES}
    columns["either"] = np.maximum(columns["special"], columns["current"]) if heads else np.zeros(0)
    return {"heads": heads, "correlation": {name: _correlation(scores, values) for name, values in columns.items()}}


def _correlation(scores: np.ndarray, values: np.ndarray) -> float | None:
    if len(scores) < 3 or np.ptp(scores) == 0 or np.ptp(values) == 0:
        return None
    return spearman(scores, values) / 100
