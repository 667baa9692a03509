"""Vectors of clips and texts from a model of both, and how it matches them: what retrieval is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abridged.core.modes import evaluating

Tokens = tuple[Tensor, Tensor]  #: ids and their mask, (B, L) each
Tokenize = Callable[[Sequence[str]], Tokens]


@dataclass
class Found:
    """Vectors (n, d) of length 1 of clips, and (n, T, d) of their frames, FP32."""

    videos: np.ndarray
    frames: np.ndarray


def clip_vectors(model: Any, pictures: Callable[[int], Tensor], count: int, batch_size: int = 16) -> Found:
    """Of `count` clips; `pictures(i)` are the frames (T, 3, H, W) of one."""
    videos, frames = [], []
    with torch.inference_mode(), evaluating(model) as device:
        for start in range(0, count, batch_size):
            some = torch.stack([pictures(i) for i in range(start, min(start + batch_size, count))])
            video, each = model.video_vectors(model.encode_video(some.to(device)))
            videos.append(video.float().cpu().numpy())
            frames.append(each.float().cpu().numpy())
    return Found(np.concatenate(videos), np.concatenate(frames))


def text_vectors(model: Any, tokenize: Tokenize, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """(n, d) of length 1, FP32."""
    found = []
    with torch.inference_mode(), evaluating(model) as device:
        for start in range(0, len(texts), batch_size):
            ids, mask = (x.to(device) for x in tokenize(texts[start : start + batch_size]))
            states = model.encode_text(ids, mask).last_hidden_state
            found.append(model.text_vectors(states).float().cpu().numpy())
    return np.concatenate(found)


def matched(
    model: Any,
    pictures: Callable[[int], Tensor],
    tokenize: Tokenize,
    texts: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    batch_size: int = 16,
) -> np.ndarray:
    """(n,) how far match is above no match, in logits, of pairs of a text and a clip. Clips are encoded once each."""
    found = np.empty(len(pairs), dtype=np.float32)
    by_clip: dict[int, list[int]] = {}
    for place, (_, clip) in enumerate(pairs):
        by_clip.setdefault(clip, []).append(place)
    with torch.inference_mode(), evaluating(model) as device:
        for clip, places in by_clip.items():
            states = model.encode_video(pictures(clip).unsqueeze(0).to(device))
            for start in range(0, len(places), batch_size):
                some = places[start : start + batch_size]
                ids, mask = (x.to(device) for x in tokenize([texts[pairs[p][0]] for p in some]))
                alone = model.encode_text(ids, mask).last_hidden_state[:, 0]
                logits = model.match(states.repeated(len(some)), alone, ids, mask).float()
                found[some] = (logits[:, 1] - logits[:, 0]).cpu().numpy()
    return found
