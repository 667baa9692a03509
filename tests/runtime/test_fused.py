"""GELU goes into the matrix after it wherever one reads it plainly, whatever the model's type, and nowhere else."""

import pytest
import torch

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.methods.quantization.method import Quantize
from abridged.runtime.fused import fuse_gelu
from abridged.runtime.modules import PackedLinear
from tiny import build, inputs


@pytest.mark.parametrize(
    ("name", "function", "layers"),
    [
        ("gpt2", "gelu_tanh", 2),
        ("bert", "gelu", 2),
        ("bart", "gelu", 4),
        pytest.param("gpt_neox", "gelu", 2, marks=pytest.mark.slow),
        pytest.param("phi", "gelu_tanh", 2, marks=pytest.mark.slow),
        pytest.param("gemma", None, 0, marks=pytest.mark.slow),  # gated
        pytest.param("opt", None, 0, marks=pytest.mark.slow),  # ReLU
    ],
)
def test_the_matrix_after_it_computes_gelu(name, function, layers):
    model = build(name)
    given = inputs(model)
    method = Quantize.model_validate({"activations": {"bits": 8, "quantizer": "dynamic", "attention": False}})
    method.build(model, families.view(model), lambda model: model(**given)).finish()
    packed = pack_model(model)
    with torch.no_grad():
        before = packed(**given).logits
        fuse_gelu(packed, families.view(packed))
        after = packed(**given).logits
    fused = [m.input_function for m in packed.modules() if isinstance(m, PackedLinear)]
    assert [f for f in fused if f != "identity"] == [function] * layers
    assert (after - before).abs().median() < 1e-5  # one that falls between two levels may go to either
