"""The video encoder of LiteVL: BLIP's ViT, each block of which attends over the frames before it attends within one.

LiteVL, Chen et al., EMNLP 2022, arXiv:2210.11929, section 3.2; divided attention is TimeSformer's, arXiv:2102.05095.
The [CLS] of the whole video is EA-VTR's (Ma et al., ECCV 2024, arXiv:2407.07478). Modules have BLIP's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.blip.modeling_blip import BlipMLP

from abridged.models.video.config import LiteVLVisionConfig

#: A dynamic scale's inner width is the model's, divided by this.
_NARROWER = 4


@dataclass
class VideoStates:
    """What the encoder makes of B videos of T frames with P patches.

    Attributes:
        tokens: (B, T, 1 + P, D), each frame's [CLS] first.
        video: (B, D), the mean of the frames' [CLS] and, where there is one, of that and the video's.
        layers: (B * T, 1 + P, D), embeddings and then each block's output, if asked for.
    """

    tokens: Tensor
    video: Tensor
    layers: tuple[Tensor, ...] | None = None

    @property
    def frames(self) -> Tensor:
        """(B, T, D), the frames' [CLS]."""
        return self.tokens[:, :, 0]

    @property
    def patches(self) -> Tensor:
        """(B, T, P, D)."""
        return self.tokens[:, :, 1:]

    def chosen(self, videos: Tensor) -> VideoStates:
        """Those of the numbers (n,)."""
        return VideoStates(self.tokens[videos], self.video[videos])

    def repeated(self, count: int) -> VideoStates:
        """Those of one video, so many times."""
        return VideoStates(self.tokens.expand(count, -1, -1, -1), self.video.expand(count, -1))


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """BLIP's own attention, operation by operation: (B, T, heads, d) and the probabilities (B, heads, T, S)."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1)
    used = F.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(used, value).transpose(1, 2), probabilities


class Attention(nn.Module):
    """Attention with fused queries, keys and values, through transformers' interface, which BLIP's does not use."""

    is_causal = False

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, video: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What is to be added to `hidden_states` (B * T, N, D), which attend within each image, and to the videos'
        [CLS] (B, 1, D), which attend over themselves and all images."""
        query, key, value = self._heads(hidden_states)
        within = self.projection(self._attend(query, key, value))
        if video is None:
            return within, None
        own = self._heads(video)

        def all_of(own: Tensor, theirs: Tensor) -> Tensor:
            heads, width = theirs.shape[1], theirs.shape[3]
            whole = theirs.transpose(1, 2).reshape(len(video), -1, heads, width).transpose(1, 2)
            return torch.cat([own, whole], 2)

        over = self._attend(own[0], all_of(own[1], key), all_of(own[2], value))
        return within, self.projection(over)

    def _heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = hidden_states.shape
        fused = self.qkv(hidden_states).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        return query, key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        found, _ = attend(self, query, key, value, None, scaling=self.head_dim**-0.5, dropout=dropout)
        return found.reshape(*found.shape[:2], -1)


class TemporalScale(nn.Module):
    """What a block's temporal attention is multiplied by: (B, T, 1, 1), or (B, T, 1, D) for each channel.

    Dynamic: 1 + tanh(W2 GELU(W1 s)), s the mean over the patches; W2 is 0 at the start (section 3.2). Gated: without
    the 1, so that temporal attention comes in as it learns.
    """

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__()
        self.kind = config.scale
        inner = config.hidden_size // _NARROWER
        if self.kind in ("dynamic", "gated"):
            self.reduce = nn.Linear(config.hidden_size, inner)
            outer = (1,) if config.scale_of == "frame" else (1, config.hidden_size)
            self.expand = nn.Parameter(torch.zeros(inner, *outer[1:]))
        elif self.kind == "scalar":
            self.expand = nn.Parameter(torch.zeros(1))

    def forward(self, attended: Tensor) -> Tensor | float:
        """`attended` (B, T, P, D)."""
        if self.kind == "constant":
            return 1.0
        if self.kind == "scalar":
            return 1 + torch.tanh(self.expand)
        inner = F.gelu(self.reduce(attended.mean(2)))
        found = torch.tanh(inner @ self.expand if self.expand.ndim == 2 else (inner @ self.expand).unsqueeze(-1))
        found = found.unsqueeze(2)
        return 1 + found if self.kind == "dynamic" else found


class Temporal(nn.Module):
    """Attention of each place over the frames, scaled and added.

    Which frame is which is added to what it reads, behind the norm: tokens can be so long that what is added to them
    disappears, and where nothing is attended to, BLIP's own states stay what they are.
    """

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__()
        self.skips = config.temporal_cls == "skip"
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.scale = TemporalScale(config)

    def forward(self, hidden_states: Tensor, times: Tensor) -> Tensor:
        """(B * T, 1 + P, D), changed at the patches, and at [CLS] where that is shared; `times` (T, D) are frames'."""
        first, frames = int(self.skips), len(times)
        read = self.layer_norm(hidden_states[:, first:])
        images, places, width = read.shape
        timed = read.view(-1, frames, places, width) + times.view(1, frames, 1, width)
        by_place = timed.transpose(1, 2).reshape(-1, frames, width)
        found, _ = self.attn(by_place)
        if not found.ndim:  # it was taken out
            return hidden_states
        attended = found.view(-1, places, frames, width).transpose(1, 2)
        added = (self.scale(attended) * attended).reshape(images, places, width)
        return torch.cat([hidden_states[:, :first], hidden_states[:, first:] + added], 1)


class Block(GradientCheckpointingLayer):
    """Temporal attention, then BLIP's block."""

    rows_meet = True  #: rows of a batch are frames, which attend over each other

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__()
        if config.temporal:
            self.temporal = Temporal(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = BlipMLP(config)

    def forward(
        self, hidden_states: Tensor, times: Tensor | None, video: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B * T, 1 + P, D) and, where there is one, the videos' [CLS] (B, 1, D); `times` (T, D) are of frames."""
        if hasattr(self, "temporal"):
            hidden_states = self.temporal(hidden_states, times)
        within, over = self.self_attn(
            self.layer_norm1(hidden_states), None if video is None else self.layer_norm1(video)
        )
        hidden_states = within + hidden_states
        video = video if over is None else over + video
        hidden_states = self.mlp(self.layer_norm2(hidden_states)) + hidden_states
        if video is not None:
            video = self.mlp(self.layer_norm2(video)) + video
        return hidden_states, video


class Embeddings(nn.Module):
    """Patches, positions, [CLS] and frames, all of them layers and tables that can be quantised and packed.

    BLIP has a convolution for the patches, and bare parameters for the rest: `from_blip` brings them over.
    """

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__()
        self.patch, width = int(config.patch_size), config.hidden_size
        self.side = int(config.image_size) // self.patch
        self.num_frames = config.num_frames
        self.patch_embedding = nn.Linear(3 * self.patch**2, width)
        self.class_embedding = nn.Embedding(1, width)
        self.position_embedding = nn.Embedding(self.side**2 + 1, width)
        if config.temporal:
            self.frame_embedding = nn.Embedding(config.num_frames, width)
        if config.video_cls:
            self.video_embedding = nn.Embedding(1, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, T, 3, H, W) becomes (B * T, 1 + P, D)."""
        pixels = pixel_values.flatten(0, 1)
        height, width = (size // self.patch for size in pixels.shape[-2:])
        cut = pixels.reshape(len(pixels), 3, height, self.patch, width, self.patch)
        patches = self.patch_embedding(cut.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), height * width, -1))
        first = torch.zeros(1, dtype=torch.int64, device=pixels.device)
        places = torch.arange(self.side**2 + 1, device=pixels.device)
        found = torch.cat([self.class_embedding(first).expand(len(pixels), 1, -1), patches], 1)
        return found + self._places(places, height, width)

    def video(self, count: int, device: torch.device) -> Tensor | None:
        """(B, 1, D) of the [CLS] of whole videos, where the model has one."""
        if not hasattr(self, "video_embedding"):
            return None
        first = torch.zeros(1, dtype=torch.int64, device=device)
        return self.video_embedding(first).expand(count, 1, -1)

    def _places(self, places: Tensor, height: int, width: int) -> Tensor:
        """(1 + P, D), interpolated for images of another size."""
        table = self.position_embedding(places)
        if (height, width) == (self.side, self.side):
            return table
        grid = table[1:].view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        sized = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], sized.permute(0, 2, 3, 1).reshape(height * width, -1)], 0)

    def times(self, frames: int, device: torch.device) -> Tensor | None:
        """(T, D), which frame is which, interpolated for another number of frames; None without temporal attention."""
        if not hasattr(self, "frame_embedding"):
            return None
        table = self.frame_embedding(torch.arange(self.num_frames, device=device))
        if frames == self.num_frames:
            return table
        return F.interpolate(table.T.unsqueeze(0), size=frames, mode="linear", align_corners=frames > 1)[0].T


class Encoder(nn.Module):
    """The list of blocks, named as BLIP names it."""

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])


class VisionModel(PreTrainedModel):
    """The video encoder."""

    config: LiteVLVisionConfig
    config_class = LiteVLVisionConfig
    base_model_prefix = "litevl_vision"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: LiteVLVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: Tensor, layers: bool = False) -> VideoStates:
        """`pixel_values` (B, T, 3, H, W), or (B, 3, H, W) of single images, normalised."""
        pixels = pixel_values if pixel_values.ndim == 5 else pixel_values.unsqueeze(1)
        count, frames = pixels.shape[:2]
        return self.encode(self.embeddings(pixels), count, frames, layers)

    def encode(self, embedded: Tensor, count: int, frames: int, layers: bool = False) -> VideoStates:
        """The blocks on embeddings (B * T, 1 + P, D) of `count` videos of `frames` frames."""
        states, video = [embedded], self.embeddings.video(count, embedded.device)
        found, times = embedded, self.embeddings.times(frames, embedded.device)
        for block in self.encoder.layers:
            found, video = block(found, times, video)
            if layers:
                states.append(found)
        tokens = self.post_layernorm(found).view(count, frames, *found.shape[1:])
        whole = tokens[:, :, 0].mean(1)
        if video is not None:  # beside the frames' mean, so that what was learned without one is not lost
            whole = (whole + self.post_layernorm(video)[:, 0]) / 2
        return VideoStates(tokens, whole, tuple(states) if layers else None)
