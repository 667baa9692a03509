"""One run, one or many processes: what accelerate sets up, and how a fault in one process ends all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.attention import SDPBackend, sdpa_kernel

from abridged.core.errors import AbridgedError
from abridged.core.hardware import fast_bf16
from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch

Thing = TypeVar("Thing")

SHORT = 128  #: tokens up to which a CPU is quicker without fused attention


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """An Accelerator for one stage. Precision is `autocast`'s business, since it may differ from stage to stage.

    Raises:
        AbridgedError: a tracker that `settings` asks for is unknown or not installed.
    """
    check_trackers(settings.track_with)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        log_with=settings.track_with or None,
        project_dir="runs" if settings.track_with else None,
        # Objectives may leave parameters without gradients; buffers are the same everywhere and stay so.
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        ],
    )


def autocast(settings: TrainingSettings) -> torch.autocast:
    """The context in which models run: matrix products in bf16 where `settings` say so, else nothing changes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=in_bf16(settings))


def in_bf16(settings: TrainingSettings) -> bool:
    """Whether matrix products are in bf16."""
    return settings.mixed_precision == "bf16" or (settings.mixed_precision == "auto" and fast_bf16())


def attention_for(batch: Batch) -> AbstractContextManager[None]:
    """The context in which attention over a batch of short texts runs on a CPU: plain matrix products.

    There torch's fused attention in bf16 takes 1.4 to 3 times as long as those, forward and backward, up to 128 tokens;
    over longer texts, and in FP32, it is as fast or faster.
    """
    bf16 = torch.is_autocast_enabled("cpu") and not batch.labels.is_cuda
    longest = max((ids.shape[1] for ids in batch.tokens), default=0)
    if not bf16 or longest > SHORT:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def together() -> Iterator[None]:
    """What fails in one process within the block ends all of them, instead of leaving the others to wait for ever.

    Every process enters it, and none communicates within it. Where there is one process, it does nothing.

    Raises:
        AbridgedError: the block failed in another process; that one raises what happened.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    state = PartialState()
    if state.num_processes > 1:
        failures = torch.tensor([float(failure is not None)], device=state.device)
        try:
            distributed.all_reduce(failures)
        except RuntimeError as error:  # it cannot be reached any more
            failure = failure or AbridgedError(f"another process of this run was stopped: {error}".splitlines()[0])
        if failure is None and failures.item():
            raise AbridgedError("another process of this run has stopped, and says why")
    if failure is not None:
        raise failure


def share(things: Sequence[Thing]) -> list[Thing]:
    """Every n-th of them, where there are n processes: all processes together have each of them once."""
    state = PartialState()
    return list(things[state.process_index :: state.num_processes])


def check_trackers(names: list[str]) -> None:
    """Raise AbridgedError for a tracker that accelerate does not know, or that is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise AbridgedError(f"track_with: there is no tracker '{name}' (there are: {', '.join(known)})")
        if name not in {str(tracker) for tracker in get_available_trackers()}:
            raise AbridgedError(f"track_with: {name} is not installed: pip install {name}")
