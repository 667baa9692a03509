"""The loop on its own: what a step does, what it logs, and what becomes of a loss that is not finite."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.settings import TrainingSettings
from abridged.data.blocks import Blocks
from abridged.data.examples import Order
from abridged.objectives.base import ObjectiveContext, StudentForward
from abridged.objectives.settings import Labels
from abridged.training.loop import Run, train
from abridged.training.modes import set_checkpointing
from abridged.training.optimizer import rate_factor
from abridged.training.workspace import Workspace

CONTEXT, VOCABULARY = 8, 40
PLAIN = {"compile": "no", "mixed_precision": "no", "batch_size": 4, "steps": 6}


@pytest.fixture
def blocks():
    return Blocks(np.random.default_rng(0).integers(0, VOCABULARY, 20 * CONTEXT + 1).astype(np.int32), CONTEXT)


def gpt2(**config):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **config}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0, initializer_range=0.2))


def student(blocks, model=None):
    sizes = ObjectiveContext(16, 16, VOCABULARY, len(blocks), CONTEXT, 2)
    return StudentForward(model or gpt2(), {"labels": Labels()}, sizes)


def measured(value, better="lower"):
    return Measured([Measurement("perplexity", value, better=better, headline=True)])


def run_of(tmp_path, blocks, system, name="out", **settings):
    """Train, and return what was logged; the workspace stays."""
    others = {key: settings.pop(key) for key in ("validate", "before_step", "groups") if key in settings}
    with Workspace(tmp_path / name) as work:
        train(Run(system, blocks, TrainingSettings(**{**PLAIN, **settings}), work, **others))
        return work.metrics()


def test_it_is_a_bare_torch_loop(tmp_path, blocks):
    """Order, batches, schedule, clipping and AdamW written out by hand, with all logits at once, in FP64."""
    settings = TrainingSettings(**PLAIN, learning_rate=1e-2, weight_decay=0.1, warmup=0.5, gradient_clip=0.5, seed=3)
    model = gpt2().double()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=settings.betas)
    losses = []
    for step in range(6):
        batch = blocks.batch(Order(len(blocks), 3)[step * 4 : step * 4 + 4])
        inputs, labels = batch.input_ids, batch.labels
        loss = nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * rate_factor(settings, step, 6)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    system = student(blocks).double()
    logged = run_of(tmp_path, blocks, system, **settings.model_dump())
    assert [m["loss"] for m in logged] == pytest.approx(losses, rel=1e-6)
    for ours, bare in zip(system.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, bare, rtol=1e-6, atol=1e-9)


def test_accumulated_passes_are_one_large_batch(tmp_path, blocks):
    """In double precision, where the order of a sum does not matter."""
    systems = {passes: student(blocks).double() for passes in (1, 2, 4)}
    for passes, system in systems.items():
        logged = run_of(tmp_path, blocks, system, str(passes), gradient_accumulation=passes, learning_rate=1e-3)
        assert len(logged) == 6
    for passes in (2, 4):
        for one, several in zip(systems[1].parameters(), systems[passes].parameters(), strict=True):
            torch.testing.assert_close(one, several, rtol=1e-6, atol=1e-8)


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(blocks):
    plain = student(blocks).train()
    saving = copy.deepcopy(plain)
    set_checkpointing(saving.model, True)
    batch = blocks.batch(torch.arange(4))
    values = []
    for system in (plain, saving):
        loss, _ = system(batch)
        loss.backward()
        values.append([loss.detach(), *(p.grad for p in system.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
    calls = []
    saving.model.transformer.h[0].ln_1.register_forward_hook(lambda *_: calls.append(1))
    saving(batch)[0].backward()
    assert len(calls) == 2  # it really runs again


def test_a_batch_that_does_not_divide(tmp_path, blocks):
    with pytest.raises(AbridgedError, match="batch_size 4 does not divide among 1 processes with 3 accumulated"):
        run_of(tmp_path, blocks, student(blocks), gradient_accumulation=3)


def test_no_steps_leave_everything_as_it_is(tmp_path, blocks):
    system = student(blocks)
    before = copy.deepcopy(system.state_dict())
    assert run_of(tmp_path, blocks, system, steps=0) == []
    assert all(torch.equal(before[key], value) for key, value in system.state_dict().items())


def test_progress_rates_and_validation(tmp_path, blocks):
    seen, values = [], iter([3.0, 1.0, 2.0])
    logged = run_of(
        tmp_path, blocks, student(blocks), steps=5, evaluate_every=2, save_every=2, warmup=0, learning_rate=1e-2,
        validate=lambda: measured(next(values)), before_step=seen.append,
    )  # fmt: skip
    assert seen == [0, 0.2, 0.4, 0.6, 0.8]
    assert [m["step"] for m in logged if m["event"] == "train"] == [1, 2, 3, 4, 5]
    assert [m["lr"] for m in logged if m["event"] == "train"] == pytest.approx([1e-2 * (1 - i / 5) for i in range(5)])
    evaluated = [(m["step"], m["perplexity"]) for m in logged if m["event"] == "evaluate"]
    assert evaluated == [(2, 3.0), (4, 1.0), (5, 2.0)]
    assert all(m["tokens_per_second"] > 0 for m in logged if m["event"] == "train")


@pytest.mark.parametrize(
    ("keep", "better", "found", "kept"),
    [
        ("last", "lower", [3.0, 1.0, 2.0], 3),
        ("best", "lower", [4.0, 3.0, 1.0, 2.0], 2),
        ("best", "higher", [0.0, 1.0, 3.0, 2.0], 2),
        ("best", "lower", [0.5, 3.0, 1.0, 2.0], 0),
        ("best", "lower", [1.0, 3.0, 1.0, 1.0], 2),
    ],
)
def test_the_best_weights_can_be_kept(tmp_path, blocks, keep, better, found, kept, capsys):
    """Those from before training are among them, and a person is told where they win."""
    system, values, weights = student(blocks), iter(found), {}

    def validate():
        weights[4 - len(found) + len(weights)] = system.model.transformer.wte.weight.detach().clone()
        return measured(next(values), better)

    logged = run_of(
        tmp_path, blocks, system, steps=3, evaluate_every=1, validate=validate, keep=keep, learning_rate=1e-2
    )
    equal = [step for step, w in weights.items() if torch.equal(system.model.transformer.wte.weight, w)]
    assert equal == [kept]
    assert not system.training
    assert [line["step"] for line in logged if line["event"] == "kept"] == ([kept] if keep == "best" else [])
    assert ("the weights from before are kept" in capsys.readouterr().err) == (kept == 0)


class Fragile(nn.Module):
    """Learns to run away: its loss falls as its one weight grows, and is infinite from `limit` on."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.weight = limit, nn.Parameter(torch.zeros(1))

    def forward(self, batch, targets):
        loss = torch.where(self.weight < self.limit, -self.weight, torch.inf).sum()
        return loss, {}


def test_the_rate_is_lowered_once_where_the_loss_is_not_finite(tmp_path, blocks, capsys):
    system = Fragile(limit=5.0)  # six steps of Adam at rate 1 reach it, at a tenth they do not
    logged = run_of(tmp_path, blocks, system, learning_rate=1.0, schedule="constant", warmup=0, save_every=3)
    assert (
        "the loss is not finite at step 6: back to step 3, at a tenth of the learning rate" in capsys.readouterr().err
    )
    assert system.weight.item() == pytest.approx(3.3, rel=1e-3)
    assert [m["step"] for m in logged] == [1, 2, 3, 4, 5, 6]
    assert [m["lr"] for m in logged] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1])


def test_weights_that_only_the_next_step_would_find_broken_are_not_kept(tmp_path, blocks, capsys):
    system = Fragile(limit=2.5)  # after step 3 the weight is 3, and the loss of step 3 itself was finite
    run_of(tmp_path, blocks, system, learning_rate=1.0, schedule="constant", warmup=0, save_every=3)
    assert "at step 3: back to step 0" in capsys.readouterr().err
    assert system.weight.item() == pytest.approx(0.6, rel=1e-3)


def test_the_second_time_it_stops_and_names_the_last_good_checkpoint(tmp_path, blocks):
    from safetensors.torch import load_file

    system = Fragile(limit=0.25)
    with pytest.raises(AbridgedError, match="not finite at step 5, also at a tenth.*of step 3, is .*state.safetensors"):
        run_of(
            tmp_path, blocks, system, learning_rate=2.0, schedule="constant", warmup=0, save_every=3,
            before_step=lambda progress: setattr(system, "limit", 0.25 if progress > 0.5 else 100.0),
        )  # fmt: skip
    kept = load_file(tmp_path / "out.partial" / "state.safetensors")
    assert math.isfinite(kept["system.weight"].item())


def test_dropout_is_drawn_anew_at_every_step_from_the_seed(tmp_path, blocks):
    def losses(seed):
        system = student(blocks, gpt2(resid_pdrop=0.5))
        return [
            m["loss"] for m in run_of(tmp_path, blocks, system, f"{seed}{len(list(tmp_path.iterdir()))}", seed=seed)
        ]

    first = losses(0)
    assert losses(0) == first
    assert losses(1) != first


def test_compiled_blocks_are_left_as_they_were(tmp_path, blocks):
    system = student(blocks)
    block = system.model.transformer.h[0]
    called = []

    def before_step(progress):
        called.append(block._compiled_call_impl is not None)
        raise KeyboardInterrupt

    settings = TrainingSettings(**{**PLAIN, "compile": "yes"})
    with Workspace(tmp_path / "out") as work, pytest.raises(KeyboardInterrupt):
        train(Run(system, blocks, settings, work, before_step=before_step, compile=[block]))
    assert called == [True]
    assert block._compiled_call_impl is None


@pytest.mark.parametrize(
    ("trackers", "message"),
    [(["tensorbord"], "no tracker 'tensorbord'.*tensorboard"), (["aim"], "aim is not installed")],
)
def test_trackers_that_cannot_be_had(tmp_path, blocks, trackers, message):
    with pytest.raises(AbridgedError, match=message):
        run_of(tmp_path, blocks, student(blocks), track_with=trackers)


def test_tensorboard_is_told_what_is_logged(tmp_path, blocks, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    logged = run_of(tmp_path, blocks, student(blocks), track_with=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "runs" / "abridged")).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([m["loss"] for m in logged])


def test_what_is_logged_is_json(tmp_path, blocks):
    run_of(tmp_path, blocks, student(blocks))
    assert not list(tmp_path.glob("out.partial.tmp"))
    for line in (tmp_path / "out.partial" / "metrics.jsonl").read_text().splitlines():
        assert {"event", "stage", "step", "loss", "labels", "lr", "gradient_norm"} <= json.loads(line).keys()


def test_a_standing_clock(tmp_path, blocks, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 1.0)
    logged = run_of(tmp_path, blocks, student(blocks))
    assert all(math.isfinite(m["tokens_per_second"]) for m in logged if m["event"] == "train")
