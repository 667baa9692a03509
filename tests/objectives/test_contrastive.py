"""The contrastive term against the formula written out token by token, its bank, and its gathering across processes."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as multiprocessing

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives.base import CachedOutputs, Head, ObjectiveContext, Outputs
from abridged.objectives.contrastive import Bank, ContrastiveDistillation
from abridged.objectives.settings import Contrastive

ALONE = SimpleNamespace(num_processes=1)


def term_of(context, **settings):
    torch.manual_seed(0)
    return ContrastiveDistillation(Contrastive(dimensions=6, **settings), context)


def outputs(seed, shape=(3, 8), width=16, vocabulary=11, dtype=torch.float32):
    torch.manual_seed(seed)
    hidden = torch.randn(*shape, width, dtype=dtype, requires_grad=True)
    return Outputs(hidden, Head(torch.nn.Linear(width, vocabulary, bias=False)))


def naive(queries, positives, candidates, ids, candidate_ids, counted, candidate_counted, temperature=0.1):
    """The loss written out token by token; everything indexed by sequence."""
    similarity = torch.nn.CosineSimilarity(dim=0)
    losses = []
    for b, i in counted.nonzero().tolist():
        positive = torch.exp(similarity(queries[b, i], positives[b, i]) / temperature)
        below = positive
        for j in range(candidates.shape[1]):
            if candidate_ids[b, j] != ids[b, i] and candidate_counted[b, j]:
                below = below + torch.exp(similarity(queries[b, i], candidates[b, j]) / temperature)
        losses.append(-torch.log(positive / below))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("negatives", ["teacher", "student"])
def test_loss_equals_formula_token_by_token(batch, context, negatives):
    term = term_of(context, bank="none", negatives=negatives)
    student, teacher = outputs(1), outputs(2)
    h, t = term.projection(student.last_hidden), term.projection(teacher.last_hidden).detach()
    others = t if negatives == "teacher" else h.detach()
    ids = batch.input_ids
    assert any(len(set(row.tolist())) < len(row) for row in ids), "no word occurs twice: same ids are not tested"
    expected = naive(h, t, others, ids, ids, batch.counted, batch.counted)
    loss = term(student, teacher, batch)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [student.last_hidden, term.projection.weight])
    got = torch.autograd.grad(loss, [student.last_hidden, term.projection.weight])
    torch.testing.assert_close(got, wanted)


def test_negatives_from_the_vocabulary(batch, context):
    term = term_of(context, bank="none", negatives="vocabulary", num_negatives=4)
    student, teacher = outputs(1), outputs(2)
    torch.manual_seed(7)
    loss = term(student, teacher, batch)
    torch.manual_seed(7)
    drawn = torch.randint(11, (1, 4)).expand(3, -1)
    h, t = term.projection(student.last_hidden), term.projection(teacher.last_hidden).detach()
    words = term.projection(teacher.head.weights()[0][drawn])
    everything = torch.ones_like(drawn).bool()
    torch.testing.assert_close(loss, naive(h, t, words, batch.input_ids, drawn, batch.counted, everything))


def test_number_of_negatives(batch, context):
    """Fewer candidates leave less below the fraction; as many as there are tokens are all of them."""
    student, teacher = outputs(1), outputs(2)
    loss = {n: term_of(context, bank="none", num_negatives=n)(student, teacher, batch).item() for n in (1, 4, 8, None)}
    assert loss[1] < loss[4] < loss[8]
    assert loss[8] == loss[None]


def test_same_word_is_no_negative(context):
    """In a sequence of one word only the positive is left: the loss is exactly 0."""
    ids = torch.full((3, 8), 4)
    batch = Batch.of(ids, ids, torch.arange(3))
    assert term_of(context, bank="none")(outputs(1), outputs(2), batch) == 0


def test_padding_changes_nothing(batch, context):
    term, student, teacher = term_of(context), outputs(1), outputs(2)
    loss = term(student, teacher, batch)
    for outs in (student, teacher):
        outs.last_hidden = torch.where(batch.counted.unsqueeze(-1), outs.last_hidden, 50.0)
    torch.testing.assert_close(term(student, teacher, batch), loss)


@pytest.mark.parametrize("bank", ["position", "vocabulary", "none"])
def test_gradient_in_float64_flows_through_h_only(batch, context, bank):
    term = term_of(context, bank=bank).double()
    student, teacher = outputs(1, dtype=torch.float64), outputs(2, dtype=torch.float64)
    if term.bank is not None:
        term(student, teacher, batch)
        term.after_step(ALONE)  # from here on the queries are half bank

    def loss(hidden):
        return term(Outputs(hidden, student.head), teacher, batch)

    assert torch.autograd.gradcheck(loss, torch.randn(3, 8, 16, dtype=torch.float64, requires_grad=True))
    loss(student.last_hidden).backward()
    assert student.last_hidden.grad is not None
    assert teacher.last_hidden.grad is None


def test_bank_starts_with_h_then_smooths(batch, context):
    term = term_of(context, momentum=0.25)
    teacher, first, second = outputs(0), outputs(1), outputs(2)
    term(first, teacher, batch)
    rows = batch.index.unsqueeze(-1) * 8 + torch.arange(8)
    assert not term.bank.read(rows)[1].any(), "the bank moves only after the step"
    term.after_step(ALONE)
    held, visited = term.bank.read(rows)
    torch.testing.assert_close(visited.squeeze(-1), batch.counted)
    h = term.projection(first.last_hidden).detach()
    scale = h.abs().amax(-1, keepdim=True)
    counted = batch.counted
    torch.testing.assert_close((held / scale)[counted], (h / scale)[counted], rtol=0, atol=0.51 / 127)

    loss = term(second, teacher, batch)
    g = term.projection(second.last_hidden)
    queries = torch.where(visited, 0.25 * held + 0.75 * g, g)
    positives = term.projection(teacher.last_hidden).detach()
    expected = naive(queries, positives, positives, batch.input_ids, batch.input_ids, counted, counted)
    torch.testing.assert_close(loss, expected)
    term.after_step(ALONE)
    q = queries.detach()[counted]
    limit = 0.51 / 127 * q.abs().max()
    torch.testing.assert_close(term.bank.read(rows)[0][counted], q, rtol=0, atol=limit.item())


def test_vocabulary_bank_takes_the_mean_of_a_word():
    bank = Bank(10, 2)
    hidden = torch.tensor([[1.0, 0.0], [3.0, 4.0], [-2.0, 2.0]])
    bank.update(torch.tensor([7, 7, 1]), hidden, 0.5)
    held, visited = bank.read(torch.tensor([7, 1, 0]))
    torch.testing.assert_close(held, torch.tensor([[2.0, 2.0], [-2.0, 2.0], [0.0, 0.0]]))
    assert visited.squeeze(-1).tolist() == [True, True, False]


def test_evaluation_leaves_the_bank_alone(batch, context):
    term = term_of(context).eval()
    term(outputs(1), outputs(2), batch)
    term.after_step(ALONE)
    assert not term.bank.scales.any()


def test_accumulated_passes_reach_the_bank_together(batch, context):
    halves = [Batch.of(batch.input_ids[p], batch.labels[p], batch.index[p]) for p in (slice(0, 1), slice(1, 3))]
    student, teacher = outputs(1), outputs(2)
    whole, parts = term_of(context), term_of(context)
    whole(student, teacher, batch)
    for half, p in zip(halves, (slice(0, 1), slice(1, 3)), strict=True):
        cut = [Outputs(o.last_hidden[p], o.head) for o in (student, teacher)]
        parts(*cut, half)
    for term in (whole, parts):
        term.after_step(ALONE)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_state_comes_back_exactly(batch, context):
    term, other = term_of(context), term_of(context)
    for seed in (1, 2):
        term(outputs(seed), outputs(0), batch)
        term.after_step(ALONE)
    other(outputs(5), outputs(0), Batch.of(batch.input_ids, batch.labels, torch.tensor([1, 2, 3])))
    other.after_step(ALONE)  # must be forgotten
    state = {name: tensor.clone() for name, tensor in term.state_dict().items()}
    assert len(state["bank.rows"]) == batch.counted.sum()
    other.load_state_dict(state)
    torch.testing.assert_close(other.state_dict(), state, rtol=0, atol=0)
    assert other(outputs(3), outputs(0), batch) == term(outputs(3), outputs(0), batch)


def test_state_of_another_size_is_refused(context):
    wide = ContrastiveDistillation(Contrastive(dimensions=5), context)
    with pytest.raises(RuntimeError, match="memory bank of another size|size mismatch"):
        term_of(context).load_state_dict(wide.state_dict())


def test_memory_of_a_row_is_claimed_when_it_is_visited():
    bank = Bank(50_000_000, 64)  # 3.2 GB

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("tells resident memory by /proc")
    before = resident()
    bank.update(torch.arange(1000), torch.randn(1000, 64), 0.5)
    assert bank.read(torch.arange(2000))[1].sum() == 1000
    assert resident() - before < 2**29


def test_other_hidden_size_of_the_teacher(batch):
    context = replace(SIZES, teacher_hidden_size=24)
    term = term_of(context)
    loss = term(outputs(1), outputs(2, width=24), batch)
    loss.backward()
    assert loss > 0
    assert term.projection.weight.grad is not None
    assert not term.teacher_projection.weight.requires_grad


def test_offline_teacher(batch, context):
    student, teacher = outputs(1), outputs(2)
    cached = CachedOutputs(last_hidden=teacher.last_hidden)
    assert term_of(context)(student, cached, batch) == term_of(context)(student, teacher, batch)
    with pytest.raises(AbridgedError, match="no hidden states"):
        term_of(context)(student, CachedOutputs(), batch)
    with pytest.raises(AbridgedError, match="in memory"):
        term_of(context, negatives="vocabulary")(student, cached, batch)
    with pytest.raises(AbridgedError, match="in memory"):
        Contrastive(negatives="vocabulary").cached_parts()


SIZES = ObjectiveContext(hidden_size=16, teacher_hidden_size=16, vocab_size=11, num_blocks=5, context=8, layers=2)


def two_steps(bank, given, mine, accelerator):
    """The term's state after two steps on some of the sequences."""
    term, head = term_of(SIZES, bank=bank), Head(torch.nn.Linear(16, 11, bias=False))
    batch = Batch.of(given["ids"][mine], given["labels"][mine], given["index"][mine])
    for name in ("first", "second"):
        term(Outputs(given[name][mine], head), Outputs(given["teacher"][mine], head), batch)
        term.after_step(accelerator)
    return term.state_dict()


def _process(rank: int, folder: str) -> None:
    from accelerate import Accelerator

    port = Path(folder, "port").read_text()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    given = torch.load(f"{folder}/given.pt", weights_only=True)
    mine = slice(0, 2) if rank == 0 else slice(2, 4)
    states = {bank: two_steps(bank, given, mine, accelerator) for bank in ("position", "vocabulary")}
    torch.save(states, f"{folder}/states{rank}.pt")
    accelerator.end_training()


def test_two_processes_hold_the_bank_of_one(tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (4, 8))
    labels = ids.clone()
    labels[3, 2:] = -100  # the second process counts fewer tokens
    given = {"ids": ids, "labels": labels, "index": torch.tensor([0, 4, 2, 3])}
    given |= {name: torch.randn(4, 8, 16) for name in ("first", "second", "teacher")}
    torch.save(given, tmp_path / "given.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"states{rank}.pt", weights_only=True) for rank in (0, 1)]
    for bank in ("position", "vocabulary"):
        first, second, alone = states[0][bank], states[1][bank], two_steps(bank, given, slice(0, 4), ALONE)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        assert len(alone["bank.rows"]) == (26 if bank == "position" else len(ids[labels != -100].unique()))
        assert first["bank.rows"].tolist() == alone["bank.rows"].tolist()
        held, wanted = (x["bank.levels"] * x["bank.scales"].unsqueeze(-1) for x in (first, alone))
        step = alone["bank.scales"].max().item()  # sums in another order may round a level the other way
        torch.testing.assert_close(held, wanted, rtol=0, atol=1.01 * step)
