"""Objectives on videos and texts, against plain loops."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.models.video.litevl import LiteVLModel
from abridged.objectives import video_settings as settings
from abridged.objectives.base import ObjectiveContext, Outputs, StudentForward, VideoEmbeddings, outputs_of
from abridged.objectives.settings import EmbeddingDistillation, Hidden, Logits
from video_models import blip, inputs

CONTEXT = ObjectiveContext(32, 32, 128, 6, 16, 2)


def outputs(count=4, seed=0, **more):
    draw = torch.Generator().manual_seed(seed)
    video, text = (normalize(torch.randn(count, 8, generator=draw), dim=-1) for _ in range(2))
    frames = normalize(torch.randn(count, 3, 8, generator=draw), dim=-1)
    made = {"captions": None, "match": None, **more}
    return Outputs(text, None, embeddings=VideoEmbeddings(text, video, frames, temperature=torch.tensor(0.1), **made))


def batch(labels, twins=False, **further):
    count = len(labels)
    ids = {"input_ids": torch.zeros(count, 2, dtype=torch.int64)}
    return Batch({**ids, **further}, torch.tensor(labels), torch.arange(count), twins)


def test_contrast_counts_examples_of_one_label_as_right():
    own, labels = outputs(), [0, 1, 0, 2]
    term = settings.VideoTextContrast(momentum=None).build(CONTEXT)
    logits = own.embeddings.video @ own.embeddings.text.T / 0.1
    wanted = []
    for table in (logits, logits.T):
        for i in range(4):
            right = [j for j in range(4) if labels[j] == labels[i]]
            wanted.append(-sum(float(table[i].log_softmax(0)[j]) for j in right) / len(right))
    assert float(term(own, None, batch(labels))) == pytest.approx(sum(wanted) / 8, rel=1e-5)


def test_the_slow_copy_follows_fills_the_queue_and_softens_the_targets():
    model = LiteVLModel.from_blip(blip(), num_frames=4)
    context = ObjectiveContext(32, 32, 128, 6, 16, 2, model=model)
    term = settings.VideoTextContrast(momentum=0.5, queue=100, soft_targets=0.4).build(context).train()
    assert len(term.labels) == 6  # no more than there are examples
    given = Batch(inputs(), torch.tensor([3, 4]), torch.arange(2))
    own = outputs_of(model, given)
    first = float(term(own, None, given).detach())
    video, text = own.embeddings.video, own.embeddings.text
    logits = video @ text.T / model.temperature
    soft = [0.4 * table.softmax(-1) + 0.6 * torch.eye(2) for table in (logits, logits.T)]
    wanted = -sum((s * t.log_softmax(-1)).sum(-1).mean() for s, t in zip(soft, (logits, logits.T), strict=True)) / 2
    assert first == pytest.approx(float(wanted.detach()), rel=1e-4)
    before = model.vision_proj.weight.detach().clone()
    with torch.no_grad():
        model.vision_proj.weight.add_(1.0)
    term.after_step(SimpleNamespace(gather=lambda x: x))
    torch.testing.assert_close(term.slow.vision_proj.weight, before + 0.5)
    assert term.labels.tolist() == [3, 4, -1, -1, -1, -1]
    torch.testing.assert_close(term.videos[:2], video)
    assert math.isfinite(float(term(outputs_of(model, given), None, given).detach()))
    assert not any(p.requires_grad for p in term.slow.parameters())


def test_matching_draws_negatives_of_other_labels_alone():
    seen = []

    def match(videos, texts):
        seen.append((videos.tolist(), texts.tolist()))
        return torch.stack([torch.zeros(len(videos)), (videos == texts) * 4.0 - 2.0], 1)

    term = settings.VideoTextMatching().build(CONTEXT)
    labels = [0, 0, 1, 1]
    torch.manual_seed(0)
    for _ in range(20):
        loss = term(outputs(match=match), None, batch(labels))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-5)
    for videos, texts in seen:
        assert len(videos) == 12
        assert videos[:4] == texts[:4] == [0, 1, 2, 3]
        assert all(labels[v] != labels[t] for v, t in zip(videos[4:], texts[4:], strict=True))
    alone = term(outputs(match=match), None, batch([5, 5, 5, 5]))
    assert math.isfinite(float(alone))


def test_matching_takes_each_nth_step_that_it_could_have_been_for():
    term = settings.VideoTextMatching(every=3).build(CONTEXT)
    plain, twins = batch([0, 1, 2, 3]), batch([0, 1, 2, 3], twins=True)
    steps = []
    for one in [plain, twins] * 6:  # turns of twins are no steps of it
        steps.append(term.is_for(one))
        term.after_step(None)
    assert [number for number, taken in enumerate(steps) if taken] == [0, 6]
    again = settings.VideoTextMatching(every=3).build(CONTEXT)
    again.turns += 1
    assert not again.is_for(plain)
    again.eval()  # what is chosen by is measured whole
    assert again.is_for(plain)
    again.load_state_dict(term.state_dict())
    assert int(again.turns) == 6


def turned(count=4, seed=5):
    """Texts turned around: two of each, but the first has one, and the last none."""
    vectors = normalize(torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)
    mask = torch.ones(count, 2, 3, dtype=torch.int64)
    mask[0, 1, 2] = mask[-1, :, 2] = 0  # two tokens are no words
    return vectors, {"turned_attention_mask": mask}


def test_a_text_turned_around_is_wrong_for_its_own_video():
    vectors, mask = turned()
    own = outputs(turned=vectors).embeddings
    term = settings.VideoTextContrast(momentum=None).build(CONTEXT)
    found = float(term(outputs(turned=vectors), None, batch([0, 1, 2, 3], **mask)))
    wanted = 0.0
    for i in range(4):
        wrong = [k for k in range(2) if mask["turned_attention_mask"][i, k].sum() > 2]
        videos = torch.cat([own.text, vectors[i, wrong]]) @ own.video[i] / 0.1
        wanted -= float(videos.log_softmax(0)[i] + (own.video @ own.text[i] / 0.1).log_softmax(0)[i])
    assert found == pytest.approx(wanted / 8, rel=1e-5)


def test_matching_reads_texts_turned_around():
    seen = set()

    def match(videos, texts):
        seen.update(zip(videos.tolist(), texts.tolist(), strict=True))
        return torch.zeros(len(videos), 2)

    vectors, mask = turned()
    term = settings.VideoTextMatching().build(CONTEXT)
    torch.manual_seed(0)
    for _ in range(40):
        term(outputs(match=match, turned=vectors), None, batch([0, 1, 2, 3], **mask))
    assert {pair for pair in seen if pair[1] >= 4} == {(0, 4), (1, 6), (1, 7), (2, 8), (2, 9)}
    assert any(text < 4 and text != video for video, text in seen)


def test_order_sets_a_pair_against_its_own_twin():
    own, given = outputs(), batch([1, 2, 3, 4], twins=True)
    logits = own.embeddings.video @ own.embeddings.text.T / 0.05

    def wanted(allowed):
        found = []
        for table in (logits, logits.T):
            for i in range(4):
                found.append(float(torch.logsumexp(table[i][allowed(i)], 0) - table[i, i]))
        return sum(found) / 8

    term = settings.EventOrder().build(CONTEXT)
    assert float(term(own, None, given)) == pytest.approx(wanted(lambda i: [0, 1, 2, 3]), rel=1e-5)
    term = settings.EventOrder(alpha_cross=0.0).build(CONTEXT)  # its own half, and its twin
    halves = lambda i: [j for j in range(4) if j // 2 == i // 2 or j % 2 == i % 2]  # noqa: E731
    assert float(term(own, None, given)) == pytest.approx(wanted(halves), rel=1e-5)
    term = settings.EventOrder(beta=0.0).build(CONTEXT)
    first = [float(-t[i].log_softmax(0)[i]) for t in (logits, logits.T) for i in (0, 1)]
    assert float(term(own, None, given)) == pytest.approx(sum(first) / 4, rel=1e-5)


def test_frames_are_told_from_others_but_not_from_alike_captions_or_none():
    captions = normalize(torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    own = outputs(captions=captions)
    ids = torch.arange(4 * 3 * 4).view(4, 3, 4) + 10
    mask = torch.ones_like(ids)
    given = batch([0, 1, 2, 3], frame_input_ids=ids, frame_attention_mask=mask)
    term = settings.FrameContrast().build(CONTEXT)
    logits = own.embeddings.frames.flatten(0, 1) @ captions.flatten(0, 1).T / 0.05
    wanted = -(logits.log_softmax(1).diagonal().mean() + logits.T.log_softmax(1).diagonal().mean()) / 2
    assert float(term(own, None, given)) == pytest.approx(float(wanted), rel=1e-5)
    ids[1, 1], mask[2, 0, 2:] = ids[0, 0], 0  # one caption twice; another one that says nothing
    left = [i for i in range(12) if i != 6]
    logits = logits.clone()
    logits[0, 4] = logits[4, 0] = -torch.inf
    logits = logits[left][:, left]
    wanted = -(logits.log_softmax(1).diagonal().mean() + logits.T.log_softmax(1).diagonal().mean()) / 2
    assert float(term(own, None, given)) == pytest.approx(float(wanted), rel=1e-5)


def told_of(given, **objectives):
    """What a model's pass over a batch tells of each objective."""
    model = torch.nn.Linear(1, 1)
    model.config = None
    system = StudentForward(model, objectives, CONTEXT)
    system._outputs_of = lambda model, batch: outputs(captions=normalize(torch.ones(4, 3, 8), dim=-1))
    return system(given)[1]


def test_a_term_is_told_of_only_where_the_batch_is_for_it():
    objectives = {
        "contrast": settings.VideoTextContrast(momentum=None),
        "frames": settings.FrameContrast(),
        "order": settings.EventOrder(),
    }
    ids = torch.arange(4 * 3 * 4).view(4, 3, 4) + 10
    captions = {"frame_input_ids": ids, "frame_attention_mask": torch.ones_like(ids)}
    assert set(told_of(batch([0, 1, 2, 3], twins=True), **objectives)) == {"order"}
    assert set(told_of(batch([0, 1, 2, 3]), **objectives)) == {"contrast"}
    assert set(told_of(batch([0, 1, 2, 3], **captions), **objectives)) == {"contrast", "frames"}
    captions["frame_attention_mask"][..., 2:] = 0  # none of them says anything
    assert set(told_of(batch([0, 1, 2, 3], **captions), **objectives)) == {"contrast"}
    assert not settings.VideoTextMatching().build(CONTEXT).is_for(batch([0, 1], twins=True))


def test_a_model_of_vectors_alone_is_not_matched():
    context = ObjectiveContext(32, 32, 128, 6, 16, 2, model=torch.nn.Linear(1, 1))
    assert not settings.VideoTextMatching().build(context).is_for(batch([0, 1]))
    context.model.match = lambda videos, texts: None
    assert settings.VideoTextMatching().build(context).is_for(batch([0, 1]))


def test_a_batch_that_nothing_learns_from_is_reported():
    with pytest.raises(AbridgedError, match="clips that are not joined to learn from, and none of order does"):
        told_of(batch([0, 1, 2, 3]), order=settings.EventOrder())


def test_distilled_vectors_are_nearest_to_their_own():
    term = EmbeddingDistillation(similarities=0.0).build(CONTEXT)
    ours, theirs = outputs(seed=1), outputs(seed=2)
    assert float(term(theirs, theirs, batch([0, 1, 2, 3]))) == pytest.approx(0.0, abs=1e-6)
    wanted = sum(
        float((2 - 2 * cosine_similarity(getattr(ours.embeddings, n), getattr(theirs.embeddings, n), dim=-1)).mean())
        for n in ("video", "text", "frames")
    )
    assert float(term(ours, theirs, batch([0, 1, 2, 3]))) == pytest.approx(wanted, rel=1e-4)
    more = EmbeddingDistillation().build(CONTEXT)
    assert float(more(ours, theirs, batch([0, 1, 2, 3]))) > wanted


def test_a_student_learns_matching_vectors_and_layers_from_a_teacher():
    teacher, student = LiteVLModel.from_blip(blip(), num_frames=4), LiteVLModel.from_blip(blip(), num_frames=4)
    objectives = {"embeddings": EmbeddingDistillation(), "logits": Logits(), "hidden": Hidden()}
    system = StudentForward(student, objectives, CONTEXT)
    given = Batch(inputs(), torch.tensor([0, 1]), torch.arange(2))
    _, same = system(given, system.teach(teacher, given))
    assert all(float(value) == pytest.approx(0.0, abs=1e-5) for value in same.values())
    with torch.no_grad():
        student.vision_model.embeddings.patch_embedding.weight.mul_(1.5)
    total, named = system(given, system.teach(teacher, given))
    assert all(float(value) > 1e-6 for value in named.values())
    total.backward()
    assert float(student.text_encoder.embeddings.word_embeddings.weight.grad.abs().sum()) > 0
