"""Chunked losses against the formulas written out over all logits."""

import pytest
import torch
import torch.nn.functional as F

from abridged.objectives import chunked
from abridged.objectives.base import TopLogits
from abridged.objectives.chunked import label_cross_entropy, label_losses, teacher_divergence, uniform_weights
from abridged.runtime import backends
from abridged.runtime.weight import PackedWeight
from packed import drawn

TOKENS, VOCABULARY, WIDTH = 21, 13, 6


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """Four rows a chunk: 21 tokens are five full chunks and a last one of one row."""
    monkeypatch.setattr(chunked, "rows_in_chunk", lambda vocabulary, device: 4)


@pytest.fixture
def head():
    torch.manual_seed(0)
    shapes = [(3, 7, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return (
        torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(VOCABULARY, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(VOCABULARY, dtype=torch.float64, requires_grad=True),
    )


@pytest.fixture
def labels():
    torch.manual_seed(2)
    labels = torch.randint(0, VOCABULARY, (3, 7))
    labels[0, 2] = labels[2, 5:] = -100
    return labels


def same_with_gradients(value, expected, head):
    torch.testing.assert_close(value, expected)
    # A factor, because a loss is weighted before it is differentiated.
    gradients = torch.autograd.grad(3.0 * value, head)
    for gradient, wanted in zip(gradients, torch.autograd.grad(3.0 * expected, head), strict=True):
        torch.testing.assert_close(gradient, wanted)


def random_weights(labels):
    return torch.rand(labels.numel(), dtype=torch.float64) * (labels.flatten() != -100)


def divergence(head, teacher, temperature=1.0):
    """KL of each token, (TOKENS,)."""
    log_q = (F.linear(*head) / temperature).log_softmax(-1)
    log_p = (F.linear(*teacher) / temperature).log_softmax(-1).detach()
    return (log_p.exp() * (log_p - log_q)).sum(-1).flatten()


def test_labels_equal_cross_entropy_over_all_logits(head, labels):
    expected = F.cross_entropy(F.linear(*head).flatten(0, 1), labels.flatten())
    same_with_gradients(label_cross_entropy(*head, labels), expected, head)


def test_labels_with_token_weights(head, labels):
    weights = random_weights(labels)
    losses = F.cross_entropy(F.linear(*head).flatten(0, 1), labels.flatten(), reduction="none")
    same_with_gradients(label_cross_entropy(*head, labels, weights), (losses * weights).sum(), head)


def test_label_losses_of_each_token(head, labels):
    losses = F.cross_entropy(F.linear(*head).flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(label_losses(*head, labels), losses.detach().view(labels.shape))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_teacher_divergence_equals_formula(head, teacher, labels, temperature):
    weights = random_weights(labels)
    expected = (divergence(head, teacher, temperature) * weights).sum() * temperature**2
    value = teacher_divergence(*head, teacher, weights, temperature)
    same_with_gradients(value, expected, head)


def test_gradient_of_soft_cross_entropy_is_that_of_the_divergence(head, teacher):
    weights = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
    p = F.linear(*teacher).softmax(-1).detach()
    soft = -(p * F.linear(*head).log_softmax(-1)).sum(-1).mean()
    entropy = -(p * p.log()).sum(-1).mean()
    same_with_gradients(teacher_divergence(*head, teacher, weights) + entropy, soft, head)


@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1, VOCABULARY])
def test_top_logits_equal_divergence_with_the_rest_lumped(head, teacher, labels, k):
    log_p = F.linear(*teacher).log_softmax(-1).detach()
    top, indices = log_p.topk(k)
    rest = log_p.scatter(-1, indices, -torch.inf).logsumexp(-1)
    cached = TopLogits(top, indices, rest, torch.zeros(3, 7))
    log_q = F.linear(*head).log_softmax(-1)
    expected = (top.exp() * (top - log_q.gather(-1, indices))).sum(-1)
    if k < VOCABULARY:
        q_rest = log_q.scatter(-1, indices, -torch.inf).logsumexp(-1)
        expected = expected + rest.exp() * (rest - q_rest)
    weights = random_weights(labels)
    value = teacher_divergence(*head, cached, weights)
    same_with_gradients(value, (expected.flatten() * weights).sum(), head)


def test_top_logits_of_everything_equal_the_teacher(head, teacher, labels):
    log_p = F.linear(*teacher).log_softmax(-1).detach()
    top, indices = log_p.topk(VOCABULARY - 1)
    rest = log_p.scatter(-1, indices, -torch.inf).logsumexp(-1)
    weights = random_weights(labels)
    cached = TopLogits(top, indices, rest, torch.zeros(3, 7))
    same_with_gradients(teacher_divergence(*head, cached, weights), teacher_divergence(*head, teacher, weights), head)


@pytest.mark.parametrize("kind", ["labels", "teacher", "top"])
def test_gradcheck(head, teacher, labels, kind):
    weights = random_weights(labels)
    top, indices = F.linear(*teacher).log_softmax(-1).detach().topk(4)
    cached = TopLogits(top, indices, (1 - top.exp().sum(-1)).log(), torch.zeros(3, 7))
    losses = {
        "labels": lambda *h: label_cross_entropy(*h, labels, weights),
        "teacher": lambda *h: teacher_divergence(*h, teacher, weights),
        "top": lambda *h: teacher_divergence(*h, cached, weights),
    }
    assert torch.autograd.gradcheck(losses[kind], head)


def test_teacher_gets_no_gradient(head, teacher):
    teacher_divergence(*head, teacher, torch.ones(TOKENS, dtype=torch.float64)).backward()
    assert all(x.grad is None for x in teacher)
    assert all(x.grad is not None for x in head)


def test_padding_never_counts(head, labels):
    spoiled = head[0].detach().clone()
    spoiled[labels == -100] = 1e3
    same = label_cross_entropy(*head, labels)
    torch.testing.assert_close(label_cross_entropy(spoiled, *head[1:], labels), same)
    (gradient,) = torch.autograd.grad(same, head[0])
    assert gradient[labels == -100].abs().max() == 0


def test_nothing_counts(head):
    labels = torch.full((3, 7), -100)
    loss = label_cross_entropy(*head, labels)
    loss.backward()
    assert loss == 0
    assert all(x.grad.abs().max() == 0 for x in head)


def test_frozen_head_and_no_bias(head, labels):
    hidden, weight, _ = head
    loss = label_cross_entropy(hidden, weight.detach(), None, labels)
    expected = F.cross_entropy((hidden @ weight.detach().T).flatten(0, 1), labels.flatten())
    same_with_gradients(loss, expected, [hidden])


def test_without_gradients(head, labels):
    with torch.no_grad():
        loss = label_cross_entropy(*head, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, label_cross_entropy(*head, labels).detach())


def test_autocast_multiplies_in_bf16_and_sums_in_fp32():
    torch.manual_seed(3)
    hidden = torch.randn(64, 32, requires_grad=True)
    weight = torch.randn(50, 32, requires_grad=True)
    labels = torch.randint(0, 50, (64,))
    exact = label_cross_entropy(hidden, weight, None, labels)
    wanted = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_cross_entropy(hidden, weight, None, labels)
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    for gradient, want in zip(torch.autograd.grad(loss, [hidden, weight]), wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - want).norm() < 0.02 * want.norm()


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest number of elements that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["labels", "teacher", "top"])
def test_no_tensor_grows_with_tokens_times_vocabulary(kind):
    vocabulary, width = 512, 4

    def largest(tokens):
        hidden = torch.randn(tokens, width, requires_grad=True)
        weight = torch.randn(vocabulary, width, requires_grad=True)
        labels = torch.randint(0, vocabulary, (tokens,))
        top = TopLogits(
            torch.full((tokens, 2), -2.0),
            torch.zeros(tokens, 2).long() + torch.arange(2),
            torch.full((tokens,), -1.0),
            torch.zeros(tokens),
        )
        with LargestTensor() as watch:
            if kind == "labels":
                loss = label_cross_entropy(hidden, weight, None, labels)
            else:
                teacher = top if kind == "top" else (hidden, weight, None)
                loss = teacher_divergence(hidden, weight, None, teacher, uniform_weights(labels != -100))
            loss.backward()
        return watch.numbers

    bound = max(vocabulary * width, 4 * vocabulary)
    assert largest(32) <= bound
    assert largest(256) <= bound


def test_a_packed_head_is_the_dense_one_and_never_whole(labels, monkeypatch):
    packed = drawn(VOCABULARY, WIDTH, "quaternary", "bits", VOCABULARY)[0]
    dense = packed.dequantize().double()
    hidden = torch.randn(3, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    monkeypatch.setattr(backends, "SLICE_WEIGHTS", 5 * WIDTH)
    monkeypatch.setattr(PackedWeight, "dequantize", lambda self: pytest.fail("the head was made dense"))
    found = label_cross_entropy(hidden, packed, None, labels, cap=3.0)
    same_with_gradients(found, label_cross_entropy(hidden, dense, None, labels, cap=3.0), [hidden])
    weights = random_weights(labels)
    found = teacher_divergence(hidden, packed, None, (theirs, packed, None), weights)
    same_with_gradients(found, teacher_divergence(hidden, dense, None, (theirs, dense, None), weights), [hidden])
    torch.testing.assert_close(label_losses(hidden, packed, None, labels), label_losses(hidden, dense, None, labels))
