"""BART, mBART, Pegasus: one token embedding for encoder, decoder and head; cross-attention between the two."""

from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix, Part

if TYPE_CHECKING:
    from transformers import BartForConditionalGeneration

#: Of each kind of layer, its attention modules.
_SIDES = {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}


def anatomy(model: "BartForConditionalGeneration") -> Anatomy:
    """Describe a BartForConditionalGeneration; layers are counted through the encoder and then the decoder.

    Raises:
        AbridgedError: the model has untied embeddings, or it is not the whole encoder-decoder with its head.
    """
    config = model.config
    if not hasattr(model, "lm_head") or not hasattr(model.model, "encoder"):
        raise AbridgedError(f"a {type(model).__name__} is not supported: of its family, the whole encoder-decoder is")
    if not config.tie_word_embeddings:
        raise AbridgedError("BART with an untied head is not supported: set tie_word_embeddings in its config")
    width = config.d_model
    readers = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    matrices = [Matrix("model.shared", "embedding", "embedding", None, config.vocab_size, width, tied=readers)]
    blocks: list[str] = []
    attentions: list[str] = []
    parts: list[Part] = []
    modules = dict(model.named_modules())
    norms = [f"model.{side}.{norm}" for side in _SIDES for norm in ("layernorm_embedding", "layer_norm")]
    for side, kinds in _SIDES.items():
        inner = getattr(config, f"{side}_ffn_dim")
        for i in range(getattr(config, f"{side}_layers")):
            block, layer = f"model.{side}.layers.{i}", len(blocks)
            for part in kinds:
                attentions.append(f"{block}.{part}")
                matrices += [
                    Matrix(f"{block}.{part}.{name}_proj", "linear", "attention", layer, width, width)
                    for name in ("q", "k", "v", "out")
                ]
                inputs = tuple(f"{block}.{part}.{name}_proj" for name in "qkv")
                heads = getattr(config, f"{side}_attention_heads")
                parts.append(Part(f"{block}.{part}", "attention", layer, inputs, f"{block}.{part}.out_proj", heads))
                norms.append(f"{block}.{part}_layer_norm")
            matrices += [
                Matrix(f"{block}.fc1", "linear", "ffn", layer, inner, width),
                Matrix(f"{block}.fc2", "linear", "ffn", layer, width, inner, input="asymmetric"),
            ]
            parts.append(Part(f"{block}.fc2", "ffn", layer, (f"{block}.fc1",), f"{block}.fc2", inner))
            norms.append(f"{block}.final_layer_norm")
            blocks.append(block)
    return Anatomy(
        model_type=config.model_type,
        hidden_size=width,
        layers=len(blocks),
        heads=config.decoder_attention_heads,
        context=config.max_position_embeddings,
        matrices=matrices,
        attentions=attentions,
        positions=["model.encoder.embed_positions", "model.decoder.embed_positions"],
        blocks=blocks,
        parts=parts,
        norms=[path for path in norms if path in modules],
    )
