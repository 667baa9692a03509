"""Loads a model to read videos with: one that does, or an image-text model that is made into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.models.blip.configuration_blip import BlipConfig

from abridged.core.errors import AbridgedError
from abridged.families.kinds import class_named, reads_videos
from abridged.models.load import load_any, load_config, load_dense
from abridged.models.video.config import LiteVLConfig, with_settings
from abridged.models.video.dual import BACKBONES, VideoDualModel
from abridged.models.video.litevl import LiteVLForVideoQuestions, LiteVLModel, begin_video

#: What a stock image-text model is where nobody trains it on videos: its frames, one by one, and their mean.
FRAME_BY_FRAME = {"temporal": False, "features": "original"}


def load_video_model(name: str | Path, settings: Mapping[str, Any] | None, answers: bool) -> Any:
    """A model of videos and texts in FP32, in evaluation mode, from a LiteVL, a BLIP, a CLIP or a SigLIP.

    Args:
        settings: a recipe's `model:`, which change the config; what they add to a LiteVL begins anew. None: it is
            used as it is, an image-text model frame by frame.
        answers: make it answer questions, rather than find videos, where it is an image-text model or has settings.

    Raises:
        AbridgedError: it cannot be loaded, is another kind of model, or a setting is wrong.
    """
    try:
        config = load_config(name)
    except AbridgedError:
        raise
    except Exception:  # loading says in one sentence what is wrong
        return load_dense(name)
    if isinstance(config, LiteVLConfig):
        return _changed(name, config, settings, answers) if settings else load_any(name)
    if isinstance(config, BlipConfig):
        kind = LiteVLForVideoQuestions if answers else LiteVLModel
        return kind.from_blip(load_dense(name), **(FRAME_BY_FRAME if settings is None else settings))
    if config.model_type in BACKBONES:
        return VideoDualModel.from_stock(load_dense(name), settings or {})
    loaded = load_any(name)
    if reads_videos(loaded):
        return loaded
    raise AbridgedError(
        f"a {type(loaded).__name__} reads no videos: give a BLIP, a CLIP, a SigLIP, or a model that was made of one"
    )


def _changed(name: str | Path, config: Any, settings: Mapping[str, Any], answers: bool) -> Any:
    """A LiteVL with other settings, or one that answers made of one that finds; what is new begins anew."""
    model = load_any(name)
    changed = with_settings(config, settings)
    kind: Any = LiteVLForVideoQuestions if answers else class_named(config) or LiteVLModel
    if changed.to_diff_dict() == config.to_diff_dict() and isinstance(model, kind):
        return model
    torch.manual_seed(0)
    other = kind(changed)
    missing = other.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k in other.state_dict()}, strict=False
    ).missing_keys
    if any("video_embedding" in key for key in missing):
        begin_video(other)
    if any(key.startswith("text_decoder.") for key in missing):
        other.begin_decoder()
    return other.eval()
