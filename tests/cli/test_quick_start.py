"""A process that runs one model: what it leaves out, and that whoever asks for that gets it."""

import subprocess
import sys
import textwrap

import pytest

from abridged.checkpoint.save import save_checkpoint
from abridged.families import view
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_model


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """A packed GPT-2 of width 32, with its tokenizer."""
    model, tokenizer = load_model(teacher)
    method = Quantize.model_validate({"activations": {"bits": 8}})
    method.build(model, view(model), lambda model, tokens=None: model(**tokenizer("a b", return_tensors="pt"))).finish()
    directory = tmp_path_factory.mktemp("student") / "packed"
    save_checkpoint(model.eval(), directory, tokenizer, {"teacher": "tiny", "seed": 0})
    return directory


def run(code):
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def written(student, before):
    return run(f"""
        {before}
        import sys
        from abridged.cli.app import app
        app(["generate", {str(student)!r}, "a b", "--max-new-tokens", "8", "--seed", "1"], standalone_mode=False)
        left_out = ("sympy", "torch._dynamo.config", "torch.distributed.tensor", "transformers.models.bert")
        print([name for name in left_out if name in sys.modules])
    """).splitlines()


def test_what_is_written_is_the_same_and_what_is_left_out_stays_out(student):
    quick = written(student, "pass")
    whole = written(student, "import transformers.modeling_utils, transformers.models.bert")
    assert quick[:-1] == whole[:-1]
    assert quick[-1] == "[]"
    assert "torch._dynamo.config" in whole[-1]


def test_who_asks_for_the_rest_of_transformers_gets_it():
    run("""
        from abridged.core.quick_start import quick_start
        quick_start()
        import transformers
        stands_in = transformers
        from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
        assert issubclass(GPT2LMHeadModel, PreTrainedModel)
        from transformers import BertModel, Trainer
        import transformers
        assert transformers is not stands_in and transformers.BertModel is BertModel
        assert stands_in.GPT2LMHeadModel is GPT2LMHeadModel is transformers.GPT2LMHeadModel
        from transformers.models.bert.modeling_bert import BertModel as same
        assert same is BertModel
        assert not hasattr(transformers, "Nothing") and not hasattr(stands_in, "Nothing")
    """)


@pytest.mark.parametrize("first", ["torch.compile(f, backend='eager')(x)", "import torch._dynamo.config"])
def test_who_compiles_gets_the_compiler(first):
    run(f"""
        from abridged.core.quick_start import quick_start
        quick_start()
        import sys, torch, transformers.modeling_utils
        assert "torch._dynamo.config" not in sys.modules
        x, f = torch.ones(3), lambda x: x + 1
        {first}
        import torch._dynamo.config
        assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
        assert torch._dynamo.config.cache_size_limit > 0
        torch._dynamo.config.cache_size_limit = 4
        assert torch.equal(torch.compile(f, backend="eager", fullgraph=True)(x), x + 1)
        from transformers.masking_utils import TransformGetItemToIndex
        with TransformGetItemToIndex():
            pass
    """)
