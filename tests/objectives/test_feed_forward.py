"""Feed-forward distillation, and the recorder that it reads."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.layers import DropLayers
from abridged.methods.quantization.method import Quantize
from abridged.objectives.base import CachedOutputs, Recorder, StudentForward
from abridged.objectives.settings import FeedForward
from abridged.training.modes import set_checkpointing


def hooks(model):
    return sum(len(module._forward_hooks) for name, module in model.named_modules() if name.endswith("c_proj"))


def test_mean_squared_error_over_layers_and_tokens_that_count(student, teacher, batch, context):
    system = StudentForward(student.eval(), {"feed_forward": FeedForward(layers={1: 0})}, context)
    _, terms = system(batch, system.teach(teacher, batch))
    system.close()
    kept = {}
    for name, model, layer in (("student", student, 1), ("teacher", teacher, 0)):
        hook = model.transformer.h[layer].mlp.register_forward_hook(lambda m, i, o, name=name: kept.update({name: o}))
        model.transformer(**batch.model_inputs)
        hook.remove()
    error = (kept["student"] - kept["teacher"])[batch.counted].square().mean()
    torch.testing.assert_close(terms["feed_forward"], error.detach())


@pytest.mark.parametrize("method", [Kronecker(), Quantize(), DropLayers(keep=[1])], ids=lambda m: type(m).__name__)
def test_it_follows_whatever_a_method_puts_there(method, student, teacher, batch, context):
    method.build(student, families.view(student), lambda model: model(**batch.model_inputs))
    student.requires_grad_(True)
    system = StudentForward(student, {"feed_forward": FeedForward()}, context)
    total, _ = system(batch, system.teach(teacher, batch))
    total.backward()
    assert total > 0
    assert student.transformer.h[0].mlp.c_fc.bias.grad.abs().max() > 0


def test_nothing_is_left_behind_and_nothing_is_kept(student, teacher, batch, context):
    system = StudentForward(student, {"feed_forward": FeedForward()}, context)
    system(batch, system.teach(teacher, batch))
    assert hooks(student) == hooks(teacher) == 2
    assert all(kept is None for _, recorder in system._recorders.values() for kept in recorder._outputs)
    system.close()
    assert hooks(student) == hooks(teacher) == 0


def test_compiled_blocks_and_checkpointing_give_the_same_gradients(student, teacher, batch, context):
    def gradients(change):
        student.zero_grad()
        system = StudentForward(student, {"feed_forward": FeedForward()}, context)
        change()
        total, _ = system(batch, system.teach(teacher, batch))
        total.backward()
        system.close()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    def compiled():
        for block in student.transformer.h:
            block.compile(backend="eager")

    student.train()
    expected = gradients(lambda: None)
    checkpointed = gradients(lambda: set_checkpointing(student, True))
    set_checkpointing(student, False)
    for found in (checkpointed, gradients(compiled)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_classifier_and_what_cannot_be_compared(student, wide_teacher, batch, context):
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32))
    recorder = Recorder(model)
    model(torch.randint(32, (2, 5)))
    assert [tuple(kept.shape) for kept in recorder.take()] == [(2, 5, 16), (2, 5, 16)]
    system = StudentForward(student, {"feed_forward": FeedForward()}, context)
    with pytest.raises(AbridgedError, match="compares like with like"):
        system(batch, system.teach(wide_teacher, batch))
    with pytest.raises(AbridgedError, match="needs the teacher in memory"):
        system(batch, CachedOutputs())
