"""Running a model up to its head, and the module that makes one loss of many terms."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiny
from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives import OBJECTIVES
from abridged.objectives.base import ObjectiveContext, StudentForward, outputs_of
from abridged.objectives.settings import Contrastive, Hidden, Labels, Logits
from abridged.training.processes import attention_for


def test_outputs_times_head_are_the_models_logits(student, batch):
    outputs = outputs_of(student.eval(), batch)
    weight, bias = outputs.head.weights()
    torch.testing.assert_close(
        F.linear(outputs.head.inputs(outputs.last_hidden), weight, bias), student(batch.input_ids).logits
    )
    assert outputs.hidden_states is None


@pytest.mark.parametrize("name", ["gemma2", "cohere2", "granite", "t5", "opt"])
def test_losses_are_those_of_the_models_own_logits(name):
    """Also where a scale or a soft cap stands between head and logits, and where no module is the body (T5)."""
    model = tiny.build(name)
    ids = tiny.inputs(model)["input_ids"]
    labels = ids.roll(-1, 1).masked_fill(ids == ids[0, 0], -100)
    batch = Batch.of(ids, labels, torch.arange(len(ids)), source_ids=ids if model.config.is_encoder_decoder else None)
    context = ObjectiveContext(64, 64, tiny.TOKENS, len(ids), ids.shape[1], 2)
    loss, _ = StudentForward(model, {"labels": Labels()}, context)(batch)
    given = {key: value for key, value in batch.model_inputs.items() if value is not None}
    expected = F.cross_entropy(model(**given).logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss.detach(), expected.detach())
    weight = model.get_output_embeddings().weight
    (wanted,) = torch.autograd.grad(expected, weight)
    loss, _ = StudentForward(model, {"labels": Labels()}, context)(batch)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], wanted, rtol=1e-4, atol=1e-6)


def test_a_capped_teacher_is_matched_at_any_temperature():
    teacher, student = tiny.build("gemma2"), tiny.build("gemma2", seed=1)
    ids = tiny.inputs(teacher)["input_ids"]
    batch = Batch.of(ids, ids, torch.arange(len(ids)))
    context = ObjectiveContext(64, 64, tiny.TOKENS, len(ids), ids.shape[1], 2)
    forward = StudentForward(student, {"logits": Logits(temperature=2.0)}, context)
    loss, _ = forward(batch, forward.teach(teacher, batch))
    log_p, log_q = ((m(ids).logits / 2.0).log_softmax(-1) for m in (teacher, student))
    torch.testing.assert_close(loss, 4.0 * (log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_a_model_without_a_head_for_tokens_is_refused():
    model = tiny.build("bert-bare")
    ids = tiny.inputs(model)["input_ids"]
    with pytest.raises(AbridgedError, match="BertModel does not read its last hidden state as it is"):
        outputs_of(model, Batch.of(ids, ids, torch.arange(len(ids))))


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


@pytest.fixture
def vit():
    """Two tiny classifiers of pictures, and a batch of three."""
    models = [tiny.build("vit") for _ in range(2)]
    with torch.no_grad():
        models[1].classifier.weight.neg_()
        models[1].vit.embeddings.cls_token.add_(1.0)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return *models, Batch({"pixel_values": pixels}, torch.tensor([2, 0, 1]), torch.arange(3))


def test_perfect_student_loses_nothing(teacher, batch, context):
    system = StudentForward(teacher, {"logits": Logits(), "hidden": Hidden()}, context)
    total, _ = system(batch, system.teach(teacher, batch))
    assert abs(total.item()) < 1e-6


def test_batch_moves(batch):
    moved = Batch.of(batch.input_ids, batch.labels, batch.index, *(torch.ones(3, 8) for _ in range(4))).to("meta")
    assert {x.device.type for x in (*moved.inputs.values(), moved.labels, moved.index)} == {"meta"}
    assert batch.to("cpu").attention_mask is None


def test_pixels_are_a_batch_as_texts_are(vit):
    model, teacher, batch = vit
    objectives = {"labels": Labels(), "logits": Logits(), "hidden": Hidden()}
    system = StudentForward(model, objectives, ObjectiveContext(64, 64, 1, 3, 1, 2))
    total, terms = system(batch, system.teach(teacher, batch))
    with torch.no_grad():
        ours, theirs = (m(**batch.inputs, output_hidden_states=True) for m in (model, teacher))
    assert terms["labels"].item() == pytest.approx(F.cross_entropy(ours.logits, batch.labels).item(), rel=1e-5)
    both = zip(ours.hidden_states, theirs.hidden_states, strict=True)
    assert terms["hidden"].item() == pytest.approx(float(sum(F.mse_loss(a, b) for a, b in both)) / 3, rel=1e-5)
    total.backward()
    assert model.vit.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
    with attention_for(batch):
        assert batch.to("cpu").tokens == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_key_is_described(name):
    module, _, attribute = OBJECTIVES[name].partition(":")
    settings = getattr(__import__(module, fromlist=[attribute]), attribute)
    assert [key for key, field in settings.model_fields.items() if not field.description] == []


def test_settings_do_not_import_torch():
    code = "import sys, abridged.objectives.settings; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_encoder_decoder_that_labels_shows_the_layers_of_both():
    model = tiny.build("bart-labels").eval()
    ids = torch.randint(3, 128, (2, 7))
    ids[:, -1] = model.config.eos_token_id  # whose state the label is read from
    labelled = Batch.of(ids, torch.tensor([0, 2]), torch.arange(2), attention_mask=torch.ones_like(ids))
    found = outputs_of(model, labelled, hidden_states=True, attentions=True)
    assert (len(found.hidden_states), len(found.attentions), found.encoder_layers) == (6, 6, 2)
    torch.testing.assert_close(found.label_logits, model(**labelled.inputs).logits)
    system = StudentForward(model, {"labels": Labels(), "hidden": Hidden()}, ObjectiveContext(64, 64, 128, 2, 7, 2))
    total, terms = system(labelled, system.teach(tiny.build("bart-labels", seed=1), labelled))
    assert terms["hidden"] > 0
    total.backward()
