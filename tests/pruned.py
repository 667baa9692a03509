"""Tiny models of every family, masks over them, and what they answer: for the tests of pruning."""

import torch
import transformers

from abridged import families
from abridged.families.layout import HIDDEN, layout_of
from abridged.methods.pruning.cut import cut
from abridged.methods.pruning.masked import attach, detach

ALL = frozenset({"hidden", "heads", "ffn", "blocks"})
IDS = torch.randint(5, 96, (2, 10), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, 7:] = 0

_ENCODER = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
_BART = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 56,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 40,
}
_LLAMA = {**_ENCODER, "num_key_value_heads": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
_GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}

#: name -> (config class, its settings, model class)
MODELS = {
    "gpt2": ("GPT2Config", {**_GPT2, "bos_token_id": 0, "eos_token_id": 0}, "GPT2LMHeadModel"),
    "bert": ("BertConfig", _ENCODER, "BertForSequenceClassification"),
    "bert-tokens": ("BertConfig", _ENCODER, "BertForTokenClassification"),
    "bert-masked": ("BertConfig", _ENCODER, "BertForMaskedLM"),
    "roberta": ("RobertaConfig", _ENCODER, "RobertaForSequenceClassification"),
    "roberta-masked": ("RobertaConfig", _ENCODER, "RobertaForMaskedLM"),
    "llama": ("LlamaConfig", _LLAMA, "LlamaForCausalLM"),
    "llama-tied": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True, "head_dim": 12}, "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", _LLAMA, "Qwen2ForCausalLM"),
    "bart": ("BartConfig", _BART, "BartForConditionalGeneration"),
}


def build(name):
    """A model with random weights, biases and norms."""
    config, settings, kind = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def answer(model):
    """Logits of a padded batch."""
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, :6]
    return model(**inputs).logits


def inputs(model):
    """A batch without padding."""
    ids = torch.randint(2, 90, (24, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


def calibrate(model, tokens=None):
    """What methods are given to run data through a model."""
    with torch.no_grad():
        model(**inputs(model))


def outputs(model):
    """Logits of that batch."""
    with torch.no_grad():
        return model(**inputs(model)).logits


def masked(model, share=0.6, removed=(), seed=2):
    """The model with masks of the bottleneck kind, of which a random part of the units is kept; and what is."""
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of(model, families.view(model))
    masks = attach(model, layout, "vib", ALL)
    keep = torch.rand(masks.mask.units, generator=generator) < share
    for name, place in masks.places.items():
        keep[place.start] = True  # something of everything
        if name in removed:
            keep[masks.gates[name]] = False
        elif name in masks.gates:
            keep[masks.gates[name]] = True
    with torch.no_grad():
        masks.mask.mu.copy_(0.5 + torch.rand(masks.mask.units, generator=generator))
        masks.mask.log_alpha.copy_(torch.where(keep, -5.0, 5.0))
    kept = {
        name: torch.zeros(0, dtype=torch.int64) if name in removed else keep[place].nonzero().flatten()
        for name, place in masks.places.items()
    }
    return masks, kept


def cut_to(model, masks, kept):
    """Cut a masked model to what is kept."""
    factors = {name: masks.mask.factors()[place] for name, place in masks.places.items()}
    gates = {name: masks.mask.factors()[place] for name, place in masks.gates.items()}
    detach(model, masks)
    cut(model, masks.layout, kept, factors, gates)
    return model


def small(name, **options):
    """A cut model of a family."""
    model = build(name)
    return cut_to(model, *masked(model, **options))


def parts(model, kind):
    """The paths of the parts of a kind."""
    return [part.path for part in families.view(model).parts if part.kind == kind]


__all__ = [
    "ALL",
    "HIDDEN",
    "IDS",
    "MASK",
    "MODELS",
    "answer",
    "build",
    "calibrate",
    "cut_to",
    "inputs",
    "masked",
    "outputs",
    "parts",
    "small",
]
