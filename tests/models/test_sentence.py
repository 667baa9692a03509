"""What the files of sentence-transformers say, in all their spellings, and what is assumed without them."""

import json

import pytest
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from abridged.core.errors import AbridgedError
from abridged.models.sentence import read_sentence_settings, sentence_settings_of
from embedders import embedder


def test_every_setting_is_read(tmp_path):
    folder = embedder(tmp_path / "m", "cls", normalize=False, max_length=48, query="ask: ", document="")
    found = read_sentence_settings(str(folder))
    assert (found.pooling, found.normalize, found.max_length, found.assumed) == ("cls", False, 48, False)
    assert found.prompt("query") == "ask: "
    assert found.prompt() == ""
    assert set(found.files) == {
        "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
    }  # fmt: skip
    with pytest.raises(AbridgedError, match="no prompt called 'passage': it has query, document"):
        found.prompt("passage")


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": ["weightedmean"]}, "weightedmean"),
        ({"word_embedding_dimension": 32}, "mean"),
    ],
)
def test_old_and_new_names_of_pooling(settings, pooling, tmp_path):
    folder = embedder(tmp_path / "m", more={"1_Pooling/config.json": settings})
    assert read_sentence_settings(str(folder)).pooling == pooling


def test_a_default_prompt_is_put_before_every_text(tmp_path):
    more = {"config_sentence_transformers.json": {"prompts": {"query": "ask: "}, "default_prompt_name": "query"}}
    assert read_sentence_settings(str(embedder(tmp_path / "m", more=more))).prompt() == "ask: "


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"1_Pooling/config.json": {"pooling_mode": "max"}}, "pools by max: one of mean, cls"),
        (
            {"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "pools by cls and mean: one of",
        ),
        (
            {"modules.json": [*MODULES, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]},
            "a module sentence_transformers.models.Dense, of which nothing is known",
        ),
        ({"modules.json": [{"path": "", "type": "custom.Transformer"}]}, "a module custom.Transformer"),
        ({"modules.json": {}}, "does not list modules with a type and a path"),
        ({"modules.json": MODULES[:1]}, "does not list a model in the directory itself and its pooling"),
        ({"modules.json": [MODULES[0], {**MODULES[1], "path": "../elsewhere"}]}, "a folder that is not in it"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "names the prompt 'query'"),
        ({"sentence_bert_config.json": {"max_seq_length": "long"}}, "max_seq_length of .* is no number of tokens"),
    ],
)
def test_what_cannot_be_done_is_said(more, message, tmp_path):
    with pytest.raises(AbridgedError, match=message):
        read_sentence_settings(str(embedder(tmp_path / "m", more=more)))


def test_files_are_read_strictly(tmp_path):
    folder = embedder(tmp_path / "m")
    (folder / "modules.json").write_text("[")
    with pytest.raises(AbridgedError, match="is not valid JSON"):
        read_sentence_settings(str(folder))
    (folder / "modules.json").unlink()
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(MODULES))
    (folder / "modules.json").symlink_to(outside)
    with pytest.raises(AbridgedError, match="a symbolic link that leads out"):
        read_sentence_settings(str(folder))


def test_of_a_bare_encoder_the_mean_is_assumed_and_of_a_decoder_nothing(tmp_path):
    found = sentence_settings_of(BertModel(BertConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=1)))
    assert (found.pooling, found.normalize, found.assumed) == ("mean", True, True)
    assert found.files["1_Pooling/config.json"]["word_embedding_dimension"] == 24
    assert sentence_settings_of(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=24, n_head=2))) is None
