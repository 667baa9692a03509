"""LiteVL: video-text retrieval and question answering that start from BLIP (Chen et al., EMNLP 2022, arXiv:2210.11929).

`LiteVLModel` gives vectors of videos, frames and texts, and matches pairs; `LiteVLForVideoQuestions` writes answers.
Weights have the names that transformers' BLIP gives them, but for patches, positions and [CLS] (see `Embeddings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForVisualQuestionAnswering, PreTrainedModel
from transformers.models.blip.configuration_blip import BlipConfig
from transformers.utils import ModelOutput

from abridged.core.errors import AbridgedError
from abridged.models.video.config import LiteVLConfig, config_of_blip
from abridged.models.video.text import TextDecoder, TextModel
from abridged.models.video.vision import VideoStates, VisionModel

#: What the temperature of the contrast starts from, and where it is kept (BLIP, salesforce/BLIP, blip_retrieval.py).
TEMPERATURE, LOWEST, HIGHEST = 0.07, 0.001, 0.5


Match = Callable[[Tensor, Tensor], Tensor]


@dataclass
class LiteVLOutput(ModelOutput):
    """Of B videos and B texts.

    Attributes:
        logits: (B, 2), of each video and its own text: no match, match.
        video_embeds, text_embeds: (B, d) of length 1.
        frame_embeds: (B, T, d) of length 1.
        frame_text_embeds: (B, T, d) of the frames' own captions, where they were given.
        turned_embeds: (B, K, d) of texts turned around, where they were given.
        last_hidden_state: (B, L, D) of the texts.
        hidden_states: if asked for, (B * T, 1 + P, D) of the video encoder's layers, then (B, L, D) of the text's.
    """

    logits: Tensor | None = None
    video_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    frame_embeds: Tensor | None = None
    frame_text_embeds: Tensor | None = None
    turned_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class LiteVLPreTrainedModel(PreTrainedModel):
    """What both have: a video encoder, a text encoder, and the start from BLIP."""

    config: LiteVLConfig
    config_class = LiteVLConfig
    base_model_prefix = "litevl"
    main_input_name = "pixel_values"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "BlipTextLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: LiteVLConfig) -> None:
        super().__init__(config)
        vision, text = self._parts()
        text.encoder_hidden_size = vision.hidden_size
        self.vision_model, self.text_encoder = VisionModel(vision), TextModel(text)

    def _parts(self) -> tuple[Any, Any]:
        """Configs of the video and of the text encoder."""
        return self.config.vision_config, self.config.text_config

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return None

    def features(self, states: VideoStates, text: Tensor) -> Tensor:
        """What a text's encoder sees of each video: (B, T(1 + P) [+ T] [+ P], D); `text` (B, D) is its [CLS].

        Text-dependent pooling (section 3.3): frames T w_T v_T and places P w_S v_S, w = softmax(cos(v, t) / tau) over
        them. Products of whole states in place of cosines choose one frame and one place alone, and make them T and P
        times as large as any token: matching then learned nothing.

        Raises:
            AbridgedError: the text is of another width than the video, and features are asked for.
        """
        tokens = states.tokens.flatten(1, 2)
        if self.config.features == "original":
            return tokens
        if text.shape[-1] != tokens.shape[-1]:
            raise AbridgedError("text-dependent pooling needs videos and texts of one width: set features to original")
        found = [tokens]
        for name, mean in (("+temporal", states.patches.mean(2)), ("+spatial", states.patches.mean(1))):
            if self.config.features in (name, "both"):
                alike = F.normalize(mean, dim=-1) @ F.normalize(text, dim=-1).unsqueeze(-1)
                weights = torch.softmax(alike / self.config.tau, 1)
                found.append(mean.shape[1] * weights * mean)
        return torch.cat(found, 1)

    @classmethod
    def from_blip(cls, source: Any, **settings: Any) -> Any:
        """A model that begins as a BLIP of transformers: a directory, a hub name or a model.

        All that BLIP has is copied. Temporal attention is begun as `init` says: from the block's spatial attention, as
        the paper does. What is new besides (which frame is which, a head that BLIP lacks) has a start of its own.

        Args:
            settings: of `LiteVLConfig` or its vision part.

        Raises:
            AbridgedError: it is no BLIP with a text encoder, or a setting is wrong.
        """
        blip = _loaded(source) if isinstance(source, (str, Path)) else source
        if not isinstance(blip.config, BlipConfig) or not hasattr(blip, "text_encoder"):
            kind = type(blip).__name__
            raise AbridgedError(f"a {kind} has no text encoder that reads images: give a BLIP for retrieval or answers")
        model = cls(config_of_blip(blip.config, settings))
        model._take(blip.state_dict())
        return model.eval()

    @torch.no_grad()
    def _take(self, weights: Mapping[str, Tensor]) -> None:
        """Take BLIP's weights up, and begin what it does not have."""
        own = self.state_dict()
        found = {}
        for name, value in weights.items():
            name = _RENAMED.get(name, name)
            if name in own:
                found[name] = value.reshape(own[name].shape)
        self.load_state_dict(found, strict=False)
        embeddings = self.vision_model.embeddings
        if hasattr(embeddings, "frame_embedding"):
            # as large as what they are added to: frames that begin alike are told apart late, or never
            first: Any = self.vision_model.encoder.layers[0]
            size = float(first.layer_norm1.weight.abs().mean())
            draw = torch.Generator().manual_seed(0)  # always the same: it matters that they differ, not how
            nn.init.normal_(embeddings.frame_embedding.weight, std=size, generator=draw)
        begin_video(self)
        kind = self._parts()[0].init
        blocks: list[Any] = list(self.vision_model.encoder.layers)
        for block in blocks if kind != "random" and self._parts()[0].temporal else ():
            temporal = block.temporal
            temporal.layer_norm.load_state_dict(block.layer_norm1.state_dict())
            temporal.attn.load_state_dict(block.self_attn.state_dict())
            if kind == "zero-projection":
                temporal.attn.projection.weight.zero_()
                temporal.attn.projection.bias.zero_()
        if hasattr(self, "text_decoder") and not any(name.startswith("text_decoder.") for name in found):
            self.begin_decoder()

    @torch.no_grad()
    def give_back(self, blip: PreTrainedModel) -> None:
        """Put the weights that a BLIP has, too, into it: without temporal attention it then gives the same."""
        own = self.state_dict()
        theirs = blip.state_dict()
        found = {name: own[_RENAMED.get(name, name)].reshape(value.shape) for name, value in theirs.items()}
        blip.load_state_dict(found)


_EMBEDDINGS = "vision_model.embeddings."
#: What BLIP calls its bare parameters, and what they are here.
_RENAMED = {f"{_EMBEDDINGS}{name}": f"{_EMBEDDINGS}{name}.weight" for name in ("class_embedding", "position_embedding")}


@torch.no_grad()
def begin_video(model: LiteVLPreTrainedModel) -> None:
    """Begin the [CLS] of whole videos, where there is one, as that of a frame."""
    embeddings = model.vision_model.embeddings
    if hasattr(embeddings, "video_embedding"):
        first = embeddings.class_embedding.weight + embeddings.position_embedding.weight[:1]
        embeddings.video_embedding.weight.copy_(first)


def _loaded(name: str | Path) -> PreTrainedModel:
    from abridged.models.load import load_dense

    return load_dense(name)


def caption_vectors(model: Any, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """(B, T, d) of length 1, of a caption (B, T, L) for each frame; None where there are none."""
    if input_ids is None:
        return None
    mask = None if attention_mask is None else attention_mask.flatten(0, 1)
    read = model.encode_text(input_ids.flatten(0, 1), mask).last_hidden_state
    vectors: Tensor = model.text_vectors(read).view(*input_ids.shape[:2], -1)
    return vectors


class LiteVLModel(LiteVLPreTrainedModel):
    """Vectors of videos and texts, and how well they match."""

    temperatures = (LOWEST, HIGHEST)  #: that the contrast's is kept within

    def __init__(self, config: LiteVLConfig) -> None:
        super().__init__(config)
        vision, text = self._parts()
        self.vision_proj = nn.Linear(vision.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(text.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(text.hidden_size, 2)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.post_init()

    def encode_video(self, pixel_values: Tensor, layers: bool = False) -> VideoStates:
        """See `VisionModel`."""
        states: VideoStates = self.vision_model(pixel_values, layers)
        return states

    def video_vectors(self, states: VideoStates) -> tuple[Tensor, Tensor]:
        """(B, d) of videos and (B, T, d) of frames, of length 1.

        Without a [CLS] of the video its vector is the mean of its frames' (BLIP's way with videos).
        """
        frames = F.normalize(self.vision_proj(states.frames), dim=-1)
        if self._parts()[0].video_cls:
            return F.normalize(self.vision_proj(states.video), dim=-1), frames
        return F.normalize(frames.mean(1), dim=-1), frames

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """The text alone: `last_hidden_state` (B, L, D)."""
        return self.text_encoder(input_ids=input_ids, attention_mask=attention_mask, **options)

    def text_vectors(self, states: Tensor) -> Tensor:
        """(B, d) of length 1, of a text's states (B, L, D)."""
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    def match(self, states: VideoStates, text: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, 2): no match, match, of each video and its text, which begins with [ENC] and reads the video.

        `text` (B, D) is the [CLS] of the text alone. Probabilities are its softmax, also in zero-shot use.
        """
        ids = input_ids.clone()
        ids[:, 0] = self.config.match_token_id
        read = self.text_encoder(
            input_ids=ids, attention_mask=attention_mask, encoder_hidden_states=self.features(states, text)
        )
        logits: Tensor = self.itm_head(read.last_hidden_state[:, 0])
        return logits

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
    ) -> LiteVLOutput | tuple[LiteVLOutput, Match]:
        """Args:
        pixel_values: (B, T, 3, H, W), normalised.
        input_ids, attention_mask: (B, L), of as many texts.
        frame_input_ids, frame_attention_mask: (B, T, L), a caption for each frame.
        turned_input_ids, turned_attention_mask: (B, K, L), of texts that do not fit, such as those turned around.
        match_later: leave logits out, and give a function of numbers of videos (n,) and of texts (n,) beside the rest,
            which matches these: (n, 2). Texts that do not fit come behind the others.
        """
        count, every, masks = len(input_ids), input_ids, attention_mask
        if turned_input_ids is not None:
            every = torch.cat([input_ids, turned_input_ids.flatten(0, 1)])
            if attention_mask is not None and turned_attention_mask is not None:
                masks = torch.cat([attention_mask, turned_attention_mask.flatten(0, 1)])
        states = self.encode_video(pixel_values, output_hidden_states)
        texts = self.encode_text(every, masks, output_hidden_states=output_hidden_states)
        video, frames = self.video_vectors(states)
        captions = caption_vectors(self, frame_input_ids, frame_attention_mask)
        text = texts.last_hidden_state

        def match(videos: Tensor, chosen: Tensor) -> Tensor:
            mask = None if masks is None else masks[chosen]
            return self.match(states.chosen(videos), text[chosen, 0], every[chosen], mask)

        said = self.text_vectors(text)
        of_texts = [] if states.layers is None else [one[:count] for one in texts.hidden_states]
        output = LiteVLOutput(
            video_embeds=video,
            text_embeds=said[:count],
            frame_embeds=frames,
            frame_text_embeds=captions,
            turned_embeds=None if turned_input_ids is None else said[count:].unflatten(0, (count, -1)),
            last_hidden_state=text[:count],
            hidden_states=(*states.layers, *of_texts) if states.layers is not None else None,
        )
        if match_later:
            return output, match
        own = torch.arange(count, device=input_ids.device)
        output.logits = match(own, own)
        return output


@dataclass
class AnswerOutput(ModelOutput):
    """Of B questions about videos.

    Attributes:
        logits: (B, A, V) of the answer's tokens.
        last_hidden_state: (B, A, D), what the head for tokens reads.
        hidden_states: if asked for, of the video encoder's layers, and then of the decoder's.
    """

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class LiteVLForVideoQuestions(LiteVLPreTrainedModel):
    """Answers, written by a decoder that reads the question, which has read the video (BLIP's VQA)."""

    def __init__(self, config: LiteVLConfig) -> None:
        super().__init__(config)
        _, text = self._parts()
        if text.hidden_size != text.encoder_hidden_size:
            raise AbridgedError(
                "answers need a video and a text encoder of one width: the decoder's config is the text's"
            )
        self.text_decoder = TextDecoder(text)
        self.post_init()

    def begin_decoder(self) -> None:
        """Let the decoder begin as the text encoder, as BLIP's does where it has none."""
        self.text_decoder.bert.load_state_dict(self.text_encoder.state_dict())

    def get_output_embeddings(self) -> nn.Module:
        return self.text_decoder.get_output_embeddings()

    def read(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        videos: Tensor | None = None,
        layers: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the question (B, L) has made of the video: (B, L, D); the video encoder's layers, if asked for."""
        states = self.vision_model(pixel_values, layers)
        if videos is not None:
            states = replace(states.chosen(videos), layers=states.layers)
        alone = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        ids = input_ids.clone()
        ids[:, 0] = self.config.match_token_id
        seen = self.features(states, alone)
        read = self.text_encoder(input_ids=ids, attention_mask=attention_mask, encoder_hidden_states=seen)
        return read.last_hidden_state, states.layers or ()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        videos: Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> AnswerOutput:
        """Args:
        pixel_values: (V, T, 3, H, W), normalised.
        input_ids, attention_mask: (B, L), the question.
        decoder_input_ids, decoder_attention_mask: (B, A), the answer behind [DEC]; None: [DEC] alone.
        videos: (B,) int64, which of the V videos each question is about; None: as many, each about its own.
        """
        question, before = self.read(pixel_values, input_ids, attention_mask, videos, output_hidden_states)
        if decoder_input_ids is None:
            decoder_input_ids = self._begin(len(input_ids), input_ids.device)
        written = self.text_decoder.bert(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=question,
            encoder_attention_mask=attention_mask,
            is_decoder=True,
            use_cache=False,
            output_hidden_states=output_hidden_states,
        )
        head = self.text_decoder.cls.predictions
        last = head.transform(written.last_hidden_state)
        states = (*before, *written.hidden_states) if output_hidden_states else None
        return AnswerOutput(logits=head.decoder(last), last_hidden_state=last, hidden_states=states)

    def _begin(self, count: int, device: torch.device) -> Tensor:
        return torch.full((count, 1), self._parts()[1].bos_token_id, device=device)

    @torch.no_grad()
    def answer(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        videos: Tensor | None = None,
        tokens: int = 10,
    ) -> list[list[int]]:
        """The likeliest answer to each question, step by step: ids without [DEC] and [SEP]."""
        question, _ = self.read(pixel_values, input_ids, attention_mask, videos)
        config = self._parts()[1]
        found = self.text_decoder.generate(
            input_ids=self._begin(len(input_ids), input_ids.device),
            encoder_hidden_states=question,
            encoder_attention_mask=attention_mask,
            eos_token_id=config.sep_token_id,
            pad_token_id=config.pad_token_id,
            max_new_tokens=tokens,
            do_sample=False,
        )
        ends = (config.sep_token_id, config.pad_token_id)
        return [[i for i in row if i not in ends] for row in found[:, 1:].tolist()]


AutoModel.register(LiteVLConfig, LiteVLModel, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(LiteVLConfig, LiteVLForVideoQuestions, exist_ok=True)
