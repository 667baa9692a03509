"""An view accounts for every parameter of the model that it describes."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from abridged import families
from abridged.core.errors import AbridgedError


def gpt2(**config):
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 24}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **config}))


@pytest.mark.parametrize("config", [{}, {"n_inner": 48}], ids=["standard", "own width of the feed-forward part"])
def test_matrices_have_the_shapes_of_the_modules(config):
    model = gpt2(**config)
    for matrix in families.view(model).matrices:
        weight = model.get_submodule(matrix.name).weight
        assert tuple(weight.shape) == (
            (matrix.columns, matrix.rows) if matrix.transposed else (matrix.rows, matrix.columns)
        )
        assert matrix.rows % matrix.fused == 0
        for tied in matrix.tied:
            assert model.get_submodule(tied).weight is weight


def test_every_two_dimensional_parameter_is_a_matrix_or_a_position_embedding():
    model = gpt2()
    view = families.view(model)
    named = {f"{matrix.name}.weight" for matrix in view.matrices} | {f"{p}.weight" for p in view.positions}
    assert named == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}


def test_what_it_says_of_the_whole():
    model = gpt2()
    view = families.view(model)
    assert (view.hidden_size, view.layers, view.heads, view.context) == (32, 3, 4, 24)
    assert len(view.attentions) == len(view.blocks) == 3
    for path in (*view.attentions, *view.blocks):
        model.get_submodule(path)
    fused = [matrix.name for matrix in view.matrices if matrix.fused == 3]
    assert fused == [f"transformer.h.{i}.attn.c_attn" for i in range(3)]
    after_gelu = [matrix.name for matrix in view.matrices if matrix.input == "asymmetric"]
    assert after_gelu == [f"transformer.h.{i}.mlp.c_proj" for i in range(3)]


def test_an_untied_head_is_a_matrix_of_its_own():
    view = families.view(gpt2(tie_word_embeddings=False))
    assert view.matrices[0].tied == ()
    assert [(m.name, m.rows, m.columns) for m in view.matrices if m.part == "head"] == [("lm_head", 100, 32)]


def test_layers_that_no_pass_calls_are_reached_by_nothing():
    view = families.view(gpt2(add_cross_attention=True))
    assert view.bare > families.MOST_BARE
    assert all(".crossattention." in name for name in view.bare_names)
    with pytest.raises(AbridgedError, match="h.0.crossattention.* of gpt2 are not compressed yet"):
        families.refuse_uncompressed(view)
