"""Dense export of pruned models: stock transformers reload them, padded to one width where they need it."""

import pytest
import torch

from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.exporters import export
from abridged.families.layout import HIDDEN
from abridged.methods.pruning.masked import ATTRIBUTE
from abridged.storage.compressed import compressed_of
from pruned import answer, build, cut_to, masked, parts

RECORD = {"recipe": {"name": "test"}, "teacher": "tiny", "seed": 0}


def saved(name, directory, hidden, heads=None, inner=None, removed=()):
    """A pruned model of so many hidden units; of heads and inner units, so many in every layer, or various."""
    model = build(name)
    masks, kept = masked(model, removed=removed)
    assert masks is getattr(model, ATTRIBUTE, None)
    kept[HIDDEN] = torch.arange(hidden)
    for kind, count in (("attention", heads), ("ffn", inner)):
        for path in parts(model, kind) if count else ():
            kept[path] = torch.arange(count)
    cut_to(model, masks, kept)
    save_checkpoint(model.eval(), directory, None, RECORD)
    return load(directory)


def exported(directory, **options):
    export(directory, directory.with_name("dense"), dtype="float32", **options)
    model = build_class(directory)
    return model.from_pretrained(directory.with_name("dense")).eval()


def build_class(directory):
    return type(load(directory))


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "bart"])
def test_uniform_widths_reload_in_stock_transformers(name, tmp_path):
    model = saved(name, tmp_path / "small", hidden=24, heads=3, inner=20)
    dense = exported(tmp_path / "small")
    assert compressed_of(dense).shapes is None
    assert torch.allclose(answer(dense), answer(model), atol=1e-5)


@pytest.mark.parametrize(("name", "hidden"), [("gpt2", 32), ("bert", 32), ("llama", 20), ("llama-tied", 20)])
def test_layers_that_differ_are_padded_on_request(name, hidden, tmp_path):
    first = parts(build(name), "attention")[0], parts(build(name), "ffn")[1]
    model = saved(name, tmp_path / "small", hidden=hidden, removed=first)
    with pytest.raises(AbridgedError, match="--uniform pads them"):
        exported(tmp_path / "small")
    dense = exported(tmp_path / "small", uniform=True)
    assert torch.allclose(answer(dense), answer(model), atol=1e-5)


def test_a_width_that_no_stock_model_has(tmp_path):
    saved("gpt2", tmp_path / "small", hidden=19, heads=2, inner=20)
    with pytest.raises(AbridgedError, match="only abridged can load"):
        exported(tmp_path / "small", uniform=True)
    with pytest.raises(AbridgedError, match="only abridged can load"):
        export(tmp_path / "small", tmp_path / "x.gguf", format="gguf", dtype="float16", uniform=True)
    with pytest.raises(AbridgedError, match="--dtype float16"):
        export(tmp_path / "small", tmp_path / "x.gguf", format="gguf")
    with pytest.raises(AbridgedError, match="use dense or gguf"):
        export(tmp_path / "small", tmp_path / "x", format="compressed-tensors")
