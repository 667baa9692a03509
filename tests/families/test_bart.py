"""BART: the view, and the way from a random model to a packed directory that answers and searches the same."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSeq2SeqLM, BartConfig, BartForCausalLM, BartForConditionalGeneration

import abridged
from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from abridged.exporters.dense import dense_model
from abridged.methods.quantization.method import Quantize

IDS = torch.randint(4, 128, (2, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, 9:] = 0


def build(**config):
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**{**sizes, **heads, "vocab_size": 128, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def student(attention=False, **config):
    model = build(**config)
    method = Quantize.model_validate({"activations": {"bits": 8, "attention": attention}})
    attached = method.build(model, families.view(model), lambda model: model(input_ids=IDS, decoder_input_ids=IDS))
    attached.finish()
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :7]).logits


def save(model, directory):
    save_checkpoint(model, directory, None, {"recipe": {"name": "test"}, "teacher": "bart", "seed": 0})
    return directory


def test_every_matrix_is_named_with_its_shape():
    model = build()
    view = families.view(model)
    positions = {f"{path}.weight" for path in view.positions}
    shapes = {f"{matrix.name}.weight": (matrix.rows, matrix.columns) for matrix in view.matrices}
    stock = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2 and name not in positions}
    assert shapes == stock
    assert (view.layers, len(view.blocks), len(view.attentions)) == (3, 3, 4)
    for path in (*view.attentions, *view.blocks, *view.positions):
        model.get_submodule(path)
    assert len({p.data_ptr() for path in view.matrices[0].tied for p in [model.get_submodule(path).weight]}) == 1


def test_the_decoder_alone_is_described_without_what_it_does_not_call():
    view = families.view(BartForCausalLM(build().config))
    assert view.blocks == ["model.decoder.layers.0"]
    assert all(".encoder_attn." in name for name in view.bare_names)


@pytest.mark.parametrize("attention", [False, True], ids=["plain", "quantised attention"])
@pytest.mark.parametrize("scaled", [False, True], ids=["as it is", "embeddings scaled"])
def test_packed_saved_and_loaded_it_answers_as_in_training(attention, scaled, tmp_path, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    model = student(attention, scale_embedding=scaled)
    expected = logits(model)
    loaded = load(save(model, tmp_path / "small"))
    assert type(loaded) is BartForConditionalGeneration
    assert torch.allclose(logits(loaded), expected, atol=1e-4)
    assert torch.allclose(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "small")), expected, atol=1e-4)


def test_the_embedding_is_stored_and_held_once(tmp_path):
    directory = save(student(), tmp_path / "small")
    stored = load_file(directory / "model.safetensors")
    assert {name for name in stored if "shared" in name} == {"model.shared.weight", "model.shared.weight_scale"}
    assert not [name for name in stored if "embed_tokens" in name or name.startswith("lm_head.weight")]
    modules = packed_modules(load(directory))
    owner = modules["model.shared"]
    for path in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        assert modules[path].codes is owner.codes
        assert modules[path].scales is owner.scales
    loaded = load(directory)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def test_a_bias_of_the_logits_is_stored_only_where_it_is_not_zero(tmp_path):
    assert "final_logits_bias" not in load_file(save(student(), tmp_path / "zero") / "model.safetensors")
    model = student()
    model.final_logits_bias[0, 5] = 3.0
    expected = logits(pack_model(model))
    directory = save(model, tmp_path / "other")
    assert "final_logits_bias" in load_file(directory / "model.safetensors")
    assert torch.allclose(logits(load(directory)), expected, atol=1e-5)


def test_beams_from_packed_weights_are_those_of_the_dense_values(tmp_path):
    packed = load(save(student(), tmp_path / "small"))
    settings = {"num_beams": 4, "max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    answer = packed.generate(input_ids=IDS, attention_mask=MASK, **settings)
    assert answer.shape == (2, 11)
    without = Quantize.model_validate({"activations": {"bits": None}})
    model = build()
    without.build(model, families.view(model), lambda model: None)
    packed = load(save(model.eval(), tmp_path / "weights"))
    ours = packed.generate(input_ids=IDS, attention_mask=MASK, **settings)
    dense = dense_model(packed, torch.float32)
    assert torch.equal(ours, dense.generate(input_ids=IDS, attention_mask=MASK, **settings))


def test_the_base_model_loads_alone(tmp_path):
    directory = save(student(), tmp_path / "small")
    base = AutoModel.from_pretrained(directory)
    with torch.no_grad():
        hidden = base(input_ids=IDS, decoder_input_ids=IDS).last_hidden_state
        whole = load(directory).model(input_ids=IDS, decoder_input_ids=IDS).last_hidden_state
    assert torch.allclose(hidden, whole, atol=1e-5)


def test_it_is_accounted_for(tmp_path):
    inspected = abridged.inspect(save(student(), tmp_path / "small"))
    assert set(inspected["parts"]) == {
        "embedding", "attention", "ffn", "norms", "biases", "positions", "headers", "activation quantizers"
    }  # fmt: skip
    assert inspected["parameters"] == sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize("kind", ["MBart", "Pegasus"])
def test_its_relatives_are_packed_the_same_way(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, vocab_size=128, init_std=0.2)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    method = Quantize.model_validate({"activations": {"bits": 8}})
    attached = method.build(model, families.view(model), lambda model: model(input_ids=IDS, decoder_input_ids=IDS))
    attached.finish()
    expected = logits(model)
    loaded = load(save(model.eval(), tmp_path / "small"))
    assert type(loaded) is type(model)
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_ties_that_a_config_makes_up_are_refused(tmp_path):
    directory = save(student(), tmp_path / "small")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["modules"]["lm_head"]["tied"] = "model.encoder.embed_tokens"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(AbridgedError, match="no embedding of its own"):
        load(directory)
