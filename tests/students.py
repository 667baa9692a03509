"""A tiny quantised GPT-2 for the tests of what happens to it after training."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from abridged import families
from abridged.methods.quantization.method import Quantize

IDS = torch.randint(128, (2, 16), generator=torch.Generator().manual_seed(1))


def quantized_student(**settings) -> GPT2LMHeadModel:
    """A GPT-2 of width 32 with two layers and random weights, prepared for quantisation-aware training."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 128, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: they start as zeros and ones
            parameter.add_(0.05 * torch.randn_like(parameter))
    method = Quantize.model_validate({"activations": {"bits": 8, "attention": True}, **settings})
    attached = method.build(model, families.view(model), lambda model, tokens=None: model(IDS))
    attached.finish()
    return model.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits
