"""Running a model up to its head, and the module that makes one loss of many terms."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from abridged.data.batch import Batch
from abridged.errors import AbridgedError
from abridged.objectives import OBJECTIVES
from abridged.objectives.base import StudentForward, outputs_of
from abridged.objectives.settings import Contrastive, Hidden, Labels, Logits


def test_outputs_times_head_are_the_models_logits(student, batch):
    outputs = outputs_of(student.eval(), batch)
    weight, bias = outputs.head.weights()
    torch.testing.assert_close(
        F.linear(outputs.head.inputs(outputs.last_hidden), weight, bias), student(batch.input_ids).logits
    )
    assert outputs.hidden_states is None


def test_outputs_on_request(student, batch):
    student.set_attn_implementation("eager")
    outputs = outputs_of(student, batch, hidden_states=True, attentions=True)
    assert [tuple(x.shape) for x in outputs.hidden_states] == [(3, 8, 16)] * 3
    assert [tuple(x.shape) for x in outputs.attentions] == [(3, 2, 8, 8)] * 2


class PreparedHead(nn.Module):
    """A head as quantised ones are: input and weight are worked on before they are multiplied."""

    def __init__(self, weight):
        super().__init__()
        self.source, self.bias, self.calls = nn.Parameter(weight), None, 0

    def prepared_inputs(self, x):
        return x.round()

    def prepared_weight(self):
        self.calls += 1
        return self.source.sign()


def test_prepared_head_is_prepared_once(student, batch):
    student.lm_head = PreparedHead(student.lm_head.weight.detach())
    outputs = outputs_of(student, batch)
    for _ in range(2):
        weight, bias = outputs.head.weights()
    assert bias is None
    assert student.lm_head.calls == 1
    torch.testing.assert_close(weight, student.lm_head.source.sign())
    torch.testing.assert_close(outputs.head.inputs(outputs.last_hidden), outputs.last_hidden.round())


def test_total_is_the_weighted_sum(student, teacher, batch, context):
    objectives = {"logits": Logits(), "labels": Labels(weight=0.5), "contrastive": Contrastive(), "hidden": Hidden()}
    system = StudentForward(student, objectives, context)
    total, values = system(batch, system.teach(teacher, batch))
    expected = values["logits"] + 0.5 * values["labels"] + 0.1 * values["contrastive"] + values["hidden"]
    torch.testing.assert_close(total.detach(), expected)
    assert total.dtype == torch.float32
    total.backward()
    assert [name for name, p in system.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in teacher.parameters())


def test_labels_equal_the_models_own_loss(student, batch, context):
    system = StudentForward(student, {"labels": Labels()}, context)
    total, _ = system(batch)
    expected = F.cross_entropy(student(batch.input_ids).logits.flatten(0, 1), batch.labels.flatten())
    torch.testing.assert_close(total, expected)
    wanted = torch.autograd.grad(expected, list(student.parameters()))
    torch.testing.assert_close(torch.autograd.grad(total, list(student.parameters())), wanted)


def test_teacher_is_asked_for(student, batch, context):
    with pytest.raises(AbridgedError, match="teacher"):
        StudentForward(student, {"logits": Logits()}, context)(batch)


def test_perfect_student_loses_nothing(teacher, batch, context):
    system = StudentForward(teacher, {"logits": Logits(), "hidden": Hidden()}, context)
    total, _ = system(batch, system.teach(teacher, batch))
    assert abs(total.item()) < 1e-6


def test_batch_moves(batch):
    moved = Batch(batch.input_ids, batch.labels, batch.index, *(torch.ones(3, 8) for _ in range(4))).to("meta")
    assert {x.device.type for x in vars(moved).values()} == {"meta"}
    assert batch.to("cpu").attention_mask is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_key_is_described(name):
    module, _, attribute = OBJECTIVES[name].partition(":")
    settings = getattr(__import__(module, fromlist=[attribute]), attribute)
    assert [key for key, field in settings.model_fields.items() if not field.description] == []


def test_settings_do_not_import_torch():
    code = "import sys, abridged.objectives.settings; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
