"""A checkpoint of every kind that there is: quantised, factored, cut, and what is two of them."""

import torch

import pruned
from abridged import families
from abridged.checkpoint.save import save_checkpoint
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_dense, load_tokenizer

_NONE = {"bits": None}
_PLAIN = {"weights": _NONE, "embeddings": _NONE}
IDS = torch.arange(24).view(3, 8)

#: name -> (settings of Kronecker, how it is cut, settings of Quantize), each None where the method has no part.
KINDS = {
    "quantised": (None, None, {"activations": {"bits": 8, "attention": True}}),
    "quantised, 4 bits by groups": (
        None,
        None,
        {
            "weights": {"bits": 4, "granularity": "per_group", "group_size": 16, "scale_dtype": "float16"},
            "embeddings": {"bits": 8},
            "activations": {"bits": 8, "quantizer": "dynamic"},
        },
    ),
    "3 and 5 bits with zero points": (
        None,
        None,
        {
            "weights": {
                "bits": 3,
                "quantizer": "minmax",
                "symmetric": False,
                "granularity": "per_group",
                "group_size": 16,
            },
            "embeddings": {"bits": 5, "quantizer": "lsq", "symmetric": False, "scale_dtype": "float16"},
            "activations": _NONE,
        },
    ),
    "weights alone": (None, None, {"embeddings": _NONE, "activations": _NONE}),
    "embeddings alone": (None, None, {"weights": _NONE, "activations": _NONE}),
    "activations of attention alone": (None, None, {**_PLAIN, "activations": {"bits": 8, "attention": True}}),
    "factored": ({}, None, None),
    "factored in FP16": ({}, None, {**_PLAIN, "activations": _NONE, "unquantized": "float16"}),
    "factored and quantised": ({}, None, {}),
    "pruned": (None, {}, None),
    "blocks removed alone": (None, {"share": 1.1}, None),
    "pruned and quantised": (None, {}, {"activations": {"bits": 8}}),
}


def student(teacher, name):
    """What training would leave of a small dense model."""
    factor, cut, quantize = KINDS[name]
    torch.manual_seed(0)
    model = load_dense(teacher)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: they start as zeros and ones
            parameter.add_(0.05 * torch.randn_like(parameter))
    if cut is not None:
        removed = (pruned.parts(model, "attention")[1], pruned.parts(model, "ffn")[0])
        model = pruned.cut_to(model, *pruned.masked(model, removed=removed, **cut))
    for method, settings in ((Kronecker, factor), (Quantize, quantize)):
        if settings is not None:
            attached = method.model_validate(settings).build(model, families.view(model), lambda model: model(IDS))
            attached.finish()
    return model.eval()


def write(teacher, name, directory):
    """Save it as `abridged compress` would, with the teacher's tokenizer."""
    save_checkpoint(student(teacher, name), directory, load_tokenizer(teacher), {"teacher": "tiny", "seed": 0})
    return directory
