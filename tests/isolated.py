"""The command line in processes of its own, which may be killed wherever a test wants.

They are forked from a server that has imported the heavy libraries: a real process in a tenth of a second.
"""

import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "abridged.training.publisher",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.auto.modeling_auto",
        "accelerate",
        "safetensors.torch",
    ]
)
TIMEOUT = 200


@dataclass
class Stop:
    """A signal that a process sends itself before or after the `call`-th call of `target` (module:attribute)."""

    target: str
    call: int = 1
    when: str = "before"
    signal: int = signal.SIGKILL

    def install(self) -> None:
        module, _, path = self.target.partition(":")
        *parents, name = path.split(".")
        owner: Any = import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        original, calls = getattr(owner, name), 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls == self.call
            if mine and self.when == "before":
                os.kill(os.getpid(), self.signal)
            result = original(*args, **kwargs)
            if mine and self.when == "after":
                os.kill(os.getpid(), self.signal)
            return result

        setattr(owner, name, counted)


@dataclass
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it) and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> list[str]:
        """Lines on standard error, without the three that say what a run is going to do, and its progress."""
        announced = ("model: ", "data: ", "work: ", "stage ")
        return [line for line in self.stderr.splitlines() if line.strip() and not line.startswith(announced)]


@dataclass
class Launch:
    """What a process is given besides its arguments."""

    environment: dict[str, str] = field(default_factory=dict)
    stop: Stop | None = None
    file_limit: int | None = None


def start(function: Callable[..., Any], arguments: tuple, folder: Path, launch: Launch) -> Any:
    """Start `function(*arguments)` in a process of its own; what it prints goes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    process = _context.Process(target=_child, args=(function, arguments, folder, launch))
    process.start()
    return process


def end(process: Any, folder: Path) -> Ended:
    """Wait for a process that `start` started."""
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"still running after {TIMEOUT} seconds: {(folder / 'stderr').read_text()}")
    return Ended(process.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text())


def call(function: Callable[..., Any], *arguments: Any, folder: Path, **launch: Any) -> Ended:
    """Run `function(*arguments)` in a process of its own."""
    return end(start(function, arguments, folder, Launch(**launch)), folder)


def abridged(*arguments: Any, folder: Path, **launch: Any) -> Ended:
    """Run the command line in a process of its own."""
    return call(command_line, *map(str, arguments), folder=folder, **launch)


def student_of(*arguments: Any, folder: Path) -> Path:
    """The directory that a run of the command line makes that nothing disturbs."""
    ended = abridged(*arguments, "--output", folder / "student", folder=folder / "process")
    assert ended.code == 0, ended.stderr
    return folder / "student"


def killed_and_resumed(arguments: Sequence[Any], folder: Path, stop: Stop, until: Stop | None = None) -> Path:
    """The directory that a run of the command line makes that is killed at `stop`, and then resumed; `until` stops the
    second run, where it comes so far."""
    student = folder / "student"
    first = abridged(*arguments, "--output", student, folder=folder / "first", stop=stop)
    assert first.code == -9, first.stderr
    second = abridged(*arguments, "--output", student, "--resume", folder=folder / "second", stop=until)
    assert second.code == 0, second.stderr
    return student


def call_all(
    function: Callable[..., Any], *arguments: Any, folder: Path, stops: Sequence[Stop | None] = (None, None)
) -> list[Ended]:
    """Run `function(*arguments)` in as many processes as there are `stops`, which find each other as under `accelerate
    launch`."""
    processes = len(stops)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    folders = [folder / f"rank-{rank}" for rank in range(processes)]
    launches = [Launch({**common, "RANK": str(r), "LOCAL_RANK": str(r)}, stop) for r, stop in enumerate(stops)]
    started = [start(function, arguments, f, launch) for f, launch in zip(folders, launches, strict=True)]
    return [end(process, f) for process, f in zip(started, folders, strict=True)]


def command_line(*arguments: str) -> None:
    """What `python -m abridged` does with these arguments."""
    from abridged.cli import main

    sys.argv = ["abridged", *arguments]
    main()


def _child(function: Callable[..., Any], arguments: tuple, folder: Path, launch: Launch) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update({"NO_COLOR": "1", "COLUMNS": "200", **launch.environment})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)
    if launch.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (launch.file_limit, launch.file_limit))
    if launch.stop is not None:
        launch.stop.install()
    os.chdir(folder)
    function(*arguments)
