"""An anatomy accounts for every parameter of the model that it describes."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from abridged.errors import AbridgedError
from abridged.families import SUPPORTED, anatomy_of


def gpt2(**config):
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 24}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **config}))


@pytest.mark.parametrize("config", [{}, {"n_inner": 48}], ids=["standard", "own width of the feed-forward part"])
def test_matrices_have_the_shapes_of_the_modules(config):
    model = gpt2(**config)
    for matrix in anatomy_of(model).matrices:
        weight = model.get_submodule(matrix.name).weight
        assert tuple(weight.shape) == (
            (matrix.columns, matrix.rows) if matrix.transposed else (matrix.rows, matrix.columns)
        )
        assert matrix.rows % matrix.fused == 0
        for tied in matrix.tied:
            assert model.get_submodule(tied).weight is weight


def test_every_two_dimensional_parameter_is_a_matrix_or_a_position_embedding():
    model = gpt2()
    anatomy = anatomy_of(model)
    named = {f"{matrix.name}.weight" for matrix in anatomy.matrices} | {f"{p}.weight" for p in anatomy.positions}
    assert named == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}


def test_what_it_says_of_the_whole():
    model = gpt2()
    anatomy = anatomy_of(model)
    assert (anatomy.hidden_size, anatomy.layers, anatomy.heads, anatomy.context) == (32, 3, 4, 24)
    assert len(anatomy.attentions) == len(anatomy.blocks) == 3
    for path in (*anatomy.attentions, *anatomy.blocks):
        model.get_submodule(path)
    fused = [matrix.name for matrix in anatomy.matrices if matrix.fused == 3]
    assert fused == [f"transformer.h.{i}.attn.c_attn" for i in range(3)]
    after_gelu = [matrix.name for matrix in anatomy.matrices if matrix.input == "asymmetric"]
    assert after_gelu == [f"transformer.h.{i}.mlp.c_proj" for i in range(3)]


@pytest.mark.parametrize(
    ("config", "word"), [({"tie_word_embeddings": False}, "untied"), ({"add_cross_attention": True}, "cross-attention")]
)
def test_what_no_published_gpt2_has_is_refused(config, word):
    with pytest.raises(AbridgedError, match=word):
        anatomy_of(gpt2(**config))


def test_an_unknown_family_is_named_beside_the_known_ones():
    config = AutoConfig.for_model("opt", hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=1)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(AbridgedError, match="'opt' are not supported; supported: " + ", ".join(SUPPORTED)):
        anatomy_of(model)
