"""Configs of models of videos: what their papers leave open is a setting, with the likeliest reading as its default."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.blip.configuration_blip import BlipConfig, BlipTextConfig, BlipVisionConfig

from abridged.core.errors import AbridgedError
from abridged.core.settings_text import nearest

#: What BLIP's image processor takes off pixels in 0...1, and divides them by: CLIP's numbers.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@strict
class LiteVLVisionConfig(BlipVisionConfig):
    """BLIP's image encoder with temporal attention (LiteVL, Chen et al., EMNLP 2022, arXiv:2210.11929, section 3.2).

    Attributes:
        num_frames: of a clip; the learned positions of other numbers of frames are interpolated.
        temporal: whether there is temporal attention; without it each frame is read alone, as BLIP does.
        temporal_cls: whether a frame's [CLS] stays out of the temporal attention or attends over frames as patches do.
        init: of the temporal attention: copied from the block's spatial one, random, or copied with a projection of 0.
        scale: what temporal attention is multiplied by before it is added: dynamic (1 + tanh, from 1), gated (tanh,
            from 0: the start is BLIP per frame), scalar (one learned number a block) or constant (1).
        scale_of: whether a dynamic scale is one number a frame, or one a frame and channel.
        video_cls: whether a [CLS] of the whole video reads everything beside those of frames (EA-VTR).
        image_mean, image_std: of the channels of pixels in 0...1.
    """

    model_type = "litevl_vision_model"
    base_config_key = "vision_config"

    num_frames: int = 8
    temporal: bool = True
    temporal_cls: Literal["skip", "shared"] = "skip"
    init: Literal["spatial", "random", "zero-projection"] = "spatial"
    scale: Literal["dynamic", "constant", "scalar", "gated"] = "dynamic"
    scale_of: Literal["frame", "frame-and-channel"] = "frame"
    video_cls: bool = False
    image_mean: list[float] | tuple[float, ...] = MEAN
    image_std: list[float] | tuple[float, ...] = STD
    initializer_range: float = 0.02  # BLIP's 1e-10 makes a fresh module numerically zero, so that nothing moves


@strict
class LiteVLConfig(BlipConfig):
    """A video and a text encoder, as BLIP has them.

    Attributes:
        features: what the cross-attending text encoder sees of a video: its tokens, and beside them frames, places or
            both, weighted by how alike they and the text are (section 3.3).
        tau: temperature of these weights.
        enc_token_id: what a text begins with that is matched to a video, in place of [CLS]; null: the last entry of
            the vocabulary, as in BLIP's.
    """

    model_type = "litevl"
    sub_configs_defaults = {"text_config": BlipTextConfig, "vision_config": LiteVLVisionConfig}

    features: Literal["original", "+temporal", "+spatial", "both"] = "both"
    tau: float = 1.0
    enc_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        import_module("abridged.models.video.litevl")  # which makes the models of this config known

    num_frames = property(lambda self: self.vision_config.num_frames)
    image_size = property(lambda self: self.vision_config.image_size)
    image_mean = property(lambda self: self.vision_config.image_mean)
    image_std = property(lambda self: self.vision_config.image_std)
    vocab_size = property(lambda self: self.text_config.vocab_size)

    @property
    def match_token_id(self) -> int:
        """[ENC]."""
        return self.vocab_size - 1 if self.enc_token_id is None else self.enc_token_id


@strict
class VideoDualConfig(PreTrainedConfig):
    """A stock model's config, and the frames of a clip.

    Attributes:
        backbone: the stock model's type.
        settings: of the stock model besides its two encoders, such as projection_dim.
        num_frames, image_mean, image_std: as in `LiteVLVisionConfig`.
    """

    model_type = "video_dual"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="clip_text_model"),
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone: str = "clip"
    settings: dict | None = None
    num_frames: int = 8
    image_mean: list[float] | tuple[float, ...] = MEAN
    image_std: list[float] | tuple[float, ...] = STD
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        import_module("abridged.models.video.dual")  # which makes the model of this config known

    image_size = property(lambda self: self.vision_config.image_size)
    vocab_size = property(lambda self: self.text_config.vocab_size)


def with_settings(config: LiteVLConfig, settings: Mapping[str, Any]) -> LiteVLConfig:
    """A config with settings of a recipe's `model:`, of the whole or of the vision part, by their names alone.

    Raises:
        AbridgedError: there is no such setting, or it cannot have that value.
    """
    data = config.to_dict()
    own = {"features", "tau", "enc_token_id", "image_text_hidden_size"}
    inner = {name for name in LiteVLVisionConfig.__annotations__ if name not in ("initializer_range",)}
    for name, value in settings.items():
        if name not in own | inner:
            raise AbridgedError(f"unknown key model.{name}{nearest(name, sorted(own | inner))}")
        (data if name in own else data["vision_config"])[name] = value
    try:
        return LiteVLConfig.from_dict(data)
    except Exception as error:  # the library's own checks of types and values
        raise AbridgedError(f"model: {str(error).strip().splitlines()[-1]}") from error


def config_of_blip(config: BlipConfig, settings: Mapping[str, Any]) -> LiteVLConfig:
    """The config of a LiteVL that begins as a stock BLIP.

    Raises:
        AbridgedError: see `with_settings`.
    """
    data = config.to_dict()
    for part in (data, data["vision_config"], data["text_config"]):
        for name in ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path"):
            part.pop(name, None)
    data["vision_config"]["initializer_range"] = LiteVLVisionConfig.initializer_range
    return with_settings(LiteVLConfig.from_dict(data), settings)


AutoConfig.register(LiteVLConfig.model_type, LiteVLConfig, exist_ok=True)
AutoConfig.register(VideoDualConfig.model_type, VideoDualConfig, exist_ok=True)
