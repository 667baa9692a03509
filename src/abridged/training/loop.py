"""The training loop, on accelerate: one process or many, resumable to the bit on a CPU."""

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from abridged.data.blocks import BlockOrder, Blocks
from abridged.errors import AbridgedError
from abridged.objectives.base import Batch
from abridged.training.hardware import fast_bf16
from abridged.training.progress import progress
from abridged.training.settings import TrainingSettings
from abridged.training.workspace import Workspace

#: Steps on a CPU from which compiling the blocks repays its minute.
_COMPILE_FROM_STEPS = 600


@dataclass
class Run:
    """All that training one stage needs."""

    system: nn.Module  #: the student and its objectives; forward(batch, targets) -> (loss, named terms)
    blocks: Blocks
    settings: TrainingSettings
    work: Workspace
    stage: int = 0
    #: what the teacher says of a batch; None where no objective asks
    targets: Callable[[Batch], Any] | None = None
    #: called with the stage's progress in [0, 1] before each step
    before_step: Callable[[float], None] = lambda progress: None
    #: called after each step, with the accelerator
    after_step: Callable[[Accelerator], None] = lambda accelerator: None
    #: validation perplexity, called on the main process
    validate: Callable[[], dict[str, float]] | None = None
    #: parameters with rates of their own, by the group's name
    groups: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    #: repeated blocks to compile
    compile: Iterable[nn.Module] = ()


def make_accelerator(settings: TrainingSettings, accumulation: int = 1) -> Accelerator:
    """An Accelerator with the precision that `settings` asks for."""
    bf16 = settings.mixed_precision == "bf16" or (settings.mixed_precision == "auto" and fast_bf16())
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if bf16 else "no",
        log_with=settings.track_with or None,
        project_dir="runs" if settings.track_with else None,
    )


def total_steps(settings: TrainingSettings, blocks: Blocks) -> int:
    """Optimiser steps of a stage."""
    if settings.epochs is not None:
        return max(1, round(settings.epochs * len(blocks) / settings.batch_size))
    return settings.steps


def rate_factor(settings: TrainingSettings, step: int, steps: int) -> float:
    """The share of its peak that every learning rate has at `step` of `steps` (warm-up, then decay)."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    decay = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[settings.schedule]
    return settings.final_rate + (1 - settings.final_rate) * decay


def make_optimizer(system: nn.Module, settings: TrainingSettings, groups: dict[str, list[nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW with one group for matrices (decayed), one for vectors, and one for each of the method's own groups."""
    own = {id(p) for parameters in groups.values() for p in parameters}
    rest = [p for p in system.parameters() if p.requires_grad and id(p) not in own]
    unknown = set(settings.learning_rates) - set(groups)
    if unknown:
        raise AbridgedError(
            f"learning_rates names the group {' and '.join(sorted(unknown))}, which this stage's methods do not have "
            f"(they have: {', '.join(groups) or 'none'})"
        )
    param_groups: list[dict[str, Any]] = [
        {"name": "weights", "params": [p for p in rest if p.ndim > 1], "rate": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"name": "vectors", "params": [p for p in rest if p.ndim <= 1], "rate": settings.learning_rate, "weight_decay": 0.0},
    ]
    for name, parameters in groups.items():
        rate = settings.learning_rates.get(name, settings.learning_rate)
        param_groups.append({"name": name, "params": parameters, "rate": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(
        [{**g, "lr": 0.0} for g in param_groups if g["params"]], lr=settings.learning_rate, betas=settings.betas, fused=True
    )


class _State:
    """Everything that a resumed run must find again, as named tensors and a JSON position."""

    def __init__(self, run: Run, accelerator: Accelerator, system: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.run, self.accelerator, self.system, self.optimizer = run, accelerator, system, optimizer
        self.step, self.rate_scale, self.best = 0, 1.0, math.inf
        names = {id(p): name for name, p in run.system.named_parameters()}
        self.names = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        held = {f"system.{k}": v for k, v in _without_aliases(self.run.system).items()}
        state = self.optimizer.state_dict()["state"]
        for i, name in enumerate(self.names):
            for key, value in state.get(i, {}).items():
                held[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        return {k: v.detach().cpu().contiguous().clone() for k, v in held.items()}

    def save(self) -> None:
        position = {"stage": self.run.stage, "step": self.step, "rate_scale": self.rate_scale, "best": self.best}
        if self.accelerator.is_main_process:
            self.run.work.save_state(self.tensors(), position)
        self.accelerator.wait_for_everyone()

    def load(self) -> bool:
        """Take up the state last saved for this stage; False when there is none."""
        found = self.run.work.load_state()
        if found is None or found[1]["stage"] != self.run.stage:
            return False
        tensors, position = found
        own = self.run.system.state_dict()
        missing = [k for k in _without_aliases(self.run.system) if f"system.{k}" not in tensors]
        if missing:
            raise AbridgedError(f"the training checkpoint lacks {missing[0]}: begin anew with --overwrite")
        with torch.no_grad():
            for key, value in own.items():
                if f"system.{key}" in tensors:
                    value.copy_(tensors[f"system.{key}"])
        packed = self.optimizer.state_dict()
        packed["state"] = {}
        for i, name in enumerate(self.names):
            entries = {
                kind: tensors[f"optimizer.{kind}.{name}"]
                for kind in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{kind}.{name}" in tensors
            }
            if entries:
                packed["state"][i] = entries
        self.optimizer.load_state_dict(packed)
        self.step, self.rate_scale, self.best = position["step"], position["rate_scale"], position["best"]
        return True


def _without_aliases(system: nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor once."""
    seen: set[int] = set()
    unique = {}
    for name, value in system.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            unique[name] = value
    return unique


def train(run: Run) -> None:
    """Train `run.system` for one stage, in place.

    Raises:
        AbridgedError: the batch does not divide among the processes, or the loss is not finite for a second time
            (after the first, the run goes back to its last checkpoint and goes on at a tenth of the rate).
    """
    settings, work = run.settings, run.work
    steps = total_steps(settings, run.blocks)
    if steps == 0:
        return
    accelerator = make_accelerator(settings)
    share = accelerator.num_processes * settings.gradient_accumulation
    if settings.batch_size % share:
        raise AbridgedError(
            f"batch_size {settings.batch_size} does not divide among {accelerator.num_processes} processes with "
            f"{settings.gradient_accumulation} accumulated passes each"
        )
    micro = settings.batch_size // share
    if settings.track_with:
        accelerator.init_trackers("abridged", config=settings.model_dump())
    if settings.compile == "yes" or (settings.compile == "auto" and steps >= _COMPILE_FROM_STEPS):
        for block in run.compile:
            block.compile(dynamic=False)
    run.system.to(accelerator.device)
    optimizer = make_optimizer(run.system, settings, run.groups)
    run.system.train()
    system = accelerator.prepare_model(run.system)
    optimizer = accelerator.prepare_optimizer(optimizer)
    state = _State(run, accelerator, system, optimizer.optimizer)
    if not (work.resume and state.load()):
        state.save()
    work.forget_metrics_after(run.stage, state.step)
    order = BlockOrder(len(run.blocks), settings.seed)
    lowered = state.rate_scale < 1.0
    log_every = max(1, min(20, steps // 50))
    pending: list[dict[str, Tensor]] = []
    began, since = time.perf_counter(), state.step
    with progress(f"stage {run.stage + 1}", steps, state.step, show=accelerator.is_main_process) as show:
        while state.step < steps:
            step = state.step
            torch.manual_seed((settings.seed * 1_000_003 + step) * 1009 + accelerator.process_index)
            factor = rate_factor(settings, step, steps) * state.rate_scale
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            run.before_step(step / steps)
            position = step * settings.batch_size + accelerator.process_index * micro * settings.gradient_accumulation
            terms: dict[str, Tensor] = {}
            for part in range(settings.gradient_accumulation):
                start = position + part * micro
                batch = _batch(run.blocks, order[start : start + micro], accelerator.device)
                last = part + 1 == settings.gradient_accumulation
                with accelerator.autocast():
                    targets = run.targets(batch) if run.targets else None
                with accelerator.no_sync(system) if not last else _nothing(), accelerator.autocast():
                    loss, named = system(batch, targets)
                    accelerator.backward(loss / settings.gradient_accumulation)
                for name, value in {"loss": loss.detach(), **named}.items():
                    terms[name] = terms.get(name, 0) + value / settings.gradient_accumulation
            if settings.gradient_clip is not None:
                terms["gradient_norm"] = accelerator.clip_grad_norm_(system.parameters(), settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.after_step(accelerator)
            state.step += 1
            pending.append(terms)
            at_end = state.step == steps
            checkpoint = state.step % settings.save_every == 0 or at_end
            evaluate = state.step % settings.evaluate_every == 0 or at_end
            if state.step % log_every == 0 or checkpoint or evaluate:
                means = _means(accelerator, pending)
                pending = []
                if not math.isfinite(means["loss"]):
                    if lowered:
                        raise AbridgedError(
                            f"the loss is not finite at step {state.step}, also at a tenth of the learning rate; the last "
                            f"good checkpoint, of an earlier step, is {work.state_path}: lower stages.{run.stage}.training.learning_rate"
                        )
                    lowered = True
                    state.load()
                    state.rate_scale *= 0.1
                    work.forget_metrics_after(run.stage, state.step)
                    _say(accelerator, f"the loss is not finite: back to step {state.step}, at a tenth of the learning rate")
                    continue
                now = time.perf_counter()
                speed = (state.step - since) * settings.batch_size * run.blocks.context / (now - began)
                record = {"stage": run.stage, "step": state.step, "lr": settings.learning_rate * factor, **means}
                work.log({"event": "train", **record, "tokens_per_second": round(speed, 1)})
                if settings.track_with:
                    accelerator.log(means, step=state.step)
                show(state.step, means["loss"], speed)
                began, since = now, state.step
            if evaluate and run.validate is not None:
                _validate(run, accelerator, state, show)
                began, since = time.perf_counter(), state.step
            if checkpoint:
                state.save()
    if settings.keep == "best":
        _restore_best(run)
    if settings.track_with:
        accelerator.end_training()
    for block in run.compile:
        block._compiled_call_impl = None  # type: ignore[assignment]  # what follows runs eagerly
    run.system.eval()


def _batch(blocks: Blocks, index: Tensor, device: torch.device) -> Batch:
    inputs, labels = blocks.batch(index)
    return Batch(input_ids=inputs.to(device), labels=labels.to(device), index=index.to(device))


def _means(accelerator: Accelerator, pending: list[dict[str, Tensor]]) -> dict[str, float]:
    names = sorted(pending[0])
    values = torch.stack([torch.stack([torch.as_tensor(t[n]).float().reshape(()) for n in names]) for t in pending]).mean(0)
    return dict(zip(names, accelerator.reduce(values, reduction="mean").tolist(), strict=True))


def _validate(run: Run, accelerator: Accelerator, state: _State, show: Callable[..., None]) -> None:
    assert run.validate is not None
    if accelerator.is_main_process:
        run.system.eval()
        with torch.no_grad(), accelerator.autocast():
            measured = run.validate()
        run.system.train()
        run.work.log({"event": "evaluate", "stage": run.stage, "step": state.step, **measured})
        show(state.step, perplexity=measured["perplexity"])
        if measured["perplexity"] < state.best:
            state.best = measured["perplexity"]
            if run.settings.keep == "best":
                _write_best(run)
    accelerator.wait_for_everyone()


def _write_best(run: Run) -> None:
    from safetensors.torch import save_file

    temporary = run.work.folder / "best.tmp"
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in _without_aliases(run.system).items()}, temporary)
    temporary.replace(run.work.folder / "best.safetensors")


def _restore_best(run: Run) -> None:
    from safetensors.torch import load_file

    path = run.work.folder / "best.safetensors"
    if path.exists():
        best = load_file(path)
        with torch.no_grad():
            for key, value in run.system.state_dict().items():
                if key in best:
                    value.copy_(best[key])


def _say(accelerator: Accelerator, sentence: str) -> None:
    if accelerator.is_main_process:
        print(sentence, file=sys.stderr)


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
