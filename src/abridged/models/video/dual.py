"""Stock CLIP or SigLIP encoders that read videos: EA-VTR's frame and video [CLS] in one pass (arXiv:2407.07478).

Frames are encoded as they are; their vectors are the stock model's. The video's [CLS] attends over all tokens of all
frames, which know their place in time, and is added to the frames' mean through a projection that begins as 0: the
start is the stock model, frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from abridged.core.errors import AbridgedError
from abridged.core.settings_text import nearest
from abridged.models.video.config import MEAN, STD, VideoDualConfig
from abridged.models.video.litevl import HIGHEST, LOWEST, TEMPERATURE, LiteVLOutput, caption_vectors
from abridged.models.video.vision import eager_attention_forward

__all__ = ["BACKBONES", "VideoDualModel", "eager_attention_forward"]

#: Stock models that can be one, by model type: what they take off pixels, and divide them by.
BACKBONES = {"clip": (MEAN, STD), "siglip": ((0.5,) * 3, (0.5,) * 3)}


@dataclass
class FrameStates:
    """What the stock encoder makes of B videos: frames (B, T, d), and the video's [CLS] (B, d)."""

    frames: Tensor
    video: Tensor


@dataclass
class _Text:
    last_hidden_state: Tensor  #: (B, 1, d)
    hidden_states: tuple[Tensor, ...] | None = None


class VideoPooling(nn.Module):
    """A [CLS] that attends over the tokens of all frames, (B, T, N, D) to (B, D)."""

    is_causal = False

    def __init__(self, config: VideoDualConfig, vision: Any) -> None:
        super().__init__()
        self.config, self.num_frames = config, config.num_frames
        self.num_heads, width = vision.num_attention_heads, vision.hidden_size
        self.head_dim = width // self.num_heads
        self.video_embedding, self.frame_embedding = nn.Embedding(1, width), nn.Embedding(config.num_frames, width)
        self.layer_norm = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        count, frames = tokens.shape[:2]
        places = self.frame_embedding(torch.arange(self.num_frames, device=tokens.device))
        if frames != self.num_frames:
            places = F.interpolate(places.T.unsqueeze(0), size=frames, mode="linear", align_corners=frames > 1)[0].T
        read = self.layer_norm(tokens + places.view(1, frames, 1, -1)).flatten(1, 2)
        video = self.video_embedding(torch.zeros(1, dtype=torch.int64, device=tokens.device)).expand(count, 1, -1)
        query, key, value = (
            one.view(count, -1, self.num_heads, self.head_dim).transpose(1, 2)
            for one in (self.query(video), self.key(read), self.value(read))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        found, _ = attend(self, query, key, value, None, scaling=self.head_dim**-0.5, dropout=0.0)
        pooled: Tensor = self.projection(found.reshape(count, -1))
        return pooled


class VideoDualModel(PreTrainedModel):
    """Vectors of videos, frames and texts; it matches nothing."""

    config: VideoDualConfig
    config_class = VideoDualConfig
    base_model_prefix = "video_dual"
    main_input_name = "pixel_values"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    temperatures = (LOWEST, HIGHEST)  #: that the contrast's is kept within

    def __init__(self, config: VideoDualConfig) -> None:
        super().__init__(config)
        stock = AutoConfig.for_model(
            config.backbone,
            text_config=config.text_config,
            vision_config=config.vision_config,
            **(config.settings or {}),
        )
        self.backbone = AutoModel.from_config(stock)
        self.pooling = VideoPooling(config, stock.vision_config)
        width = getattr(stock, "projection_dim", stock.vision_config.hidden_size)
        self.video_proj = nn.Linear(stock.vision_config.hidden_size, width)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return None

    @classmethod
    def from_stock(cls, stock: PreTrainedModel, settings: Mapping[str, Any]) -> VideoDualModel:
        """A model that begins as a CLIP or SigLIP of transformers.

        Raises:
            AbridgedError: it is another model, or a setting is wrong.
        """
        kind = stock.config.model_type
        if kind not in BACKBONES:
            raise AbridgedError(f"a {type(stock).__name__} is no {' or '.join(BACKBONES)}")
        known = ("num_frames", "image_mean", "image_std")
        changes = {name: value for name, value in settings.items() if name != "video_cls"}  # it always has one
        wrong = next((name for name in changes if name not in known), None)
        if wrong is not None:
            raise AbridgedError(f"unknown key model.{wrong}{nearest(wrong, known)}")
        mean, std = BACKBONES[kind]
        data = stock.config.to_dict()
        own = {name: data[name] for name in ("projection_dim",) if name in data}
        config = VideoDualConfig(
            backbone=kind,
            settings=own,
            text_config=stock.config.text_config,
            vision_config=stock.config.vision_config,
            **{"image_mean": mean, "image_std": std, **changes},
        )
        model = cls(config)
        model.backbone.load_state_dict(stock.state_dict())
        with torch.no_grad():
            model.pooling.frame_embedding.weight.zero_()
            model.video_proj.weight.zero_()
            model.video_proj.bias.zero_()
        return model.eval()

    def encode_video(self, pixel_values: Tensor) -> FrameStates:
        """`pixel_values` (B, T, 3, H, W), normalised."""
        count, frames = pixel_values.shape[:2]
        read = self.backbone.get_image_features(pixel_values=pixel_values.flatten(0, 1))
        each = read.pooler_output.view(count, frames, -1)
        tokens = read.last_hidden_state
        pooled = self.pooling(tokens.view(count, frames, *tokens.shape[1:]))
        return FrameStates(each, F.normalize(each, dim=-1).mean(1) + self.video_proj(pooled))

    def video_vectors(self, states: FrameStates) -> tuple[Tensor, Tensor]:
        """(B, d) of videos and (B, T, d) of frames, of length 1."""
        return F.normalize(states.video, dim=-1), F.normalize(states.frames, dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> _Text:
        """The stock model's vector of a text, as the one state of it: (B, 1, d)."""
        read = self.backbone.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return _Text(read.pooler_output.unsqueeze(1))

    def text_vectors(self, states: Tensor) -> Tensor:
        """(B, d) of length 1."""
        return F.normalize(states[:, 0], dim=-1)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        frame_input_ids: Tensor | None = None,
        frame_attention_mask: Tensor | None = None,
        turned_input_ids: Tensor | None = None,
        turned_attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        match_later: bool = False,
        **kwargs: Any,
    ) -> LiteVLOutput | tuple[LiteVLOutput, None]:
        """See `LiteVLModel.forward`; there are no logits, and nothing that matches."""
        if output_hidden_states:
            raise AbridgedError("hidden states are not compared between models of two stock encoders")
        video, frames = self.video_vectors(self.encode_video(pixel_values))
        captions = caption_vectors(self, frame_input_ids, frame_attention_mask)
        text = self.encode_text(input_ids, attention_mask).last_hidden_state
        found = LiteVLOutput(
            video_embeds=video,
            text_embeds=self.text_vectors(text),
            frame_embeds=frames,
            frame_text_embeds=captions,
            turned_embeds=caption_vectors(self, turned_input_ids, turned_attention_mask),
            last_hidden_state=text,
        )
        return (found, None) if match_later else found


AutoModel.register(VideoDualConfig, VideoDualModel, exist_ok=True)
