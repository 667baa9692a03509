"""Where a run keeps what it needs to go on: a locked folder beside the output, renamed into place when done."""

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from abridged.core.atomic import disk_fault, flush, settle, write_atomically, written_file
from abridged.core.errors import AbridgedError
from abridged.core.locks import is_still, let_go, lock, opened
from abridged.core.outputs import check_output, output_path

METRICS = "metrics.jsonl"


class Workspace:
    """`OUTPUT.partial`: lock, metrics.jsonl and the training state, until `publish` puts the result at OUTPUT.

    Making one only looks; entering it claims the folder. Only the main process writes, but for parts, of which all
    processes write their own; the others (`main=False`) read.

    Args:
        inputs: what the run reads (see `check_output`), which it never replaces.

    Attributes:
        finished: where to write the result, a directory of the output's name; `publish` puts it in place.

    Raises:
        AbridgedError: OUTPUT is no place to write (see `check_output`), or exists (without `overwrite`), an interrupted
            run is there (without `resume` or `overwrite`), or another process works there.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        main: bool = True,
        inputs: Iterable[str | Path | None] = (),
    ) -> None:
        self.output = output_path(output)
        self.main, self.resume, self.overwrite, self.inputs = main, resume, overwrite, tuple(inputs)
        self.folder = self.output.with_name(self.output.name + ".partial")
        self.state_path = self.folder / "state.safetensors"
        self.finished = self.folder / "finished" / self.output.name
        self.parts = self.folder / "parts"
        self._replaced = self.folder / "replaced"  # what was at OUTPUT, for a moment
        self._replaces = self.folder / "replaces-output"  # noted on disk, since a run may be resumed
        self._lock: int | None = None
        if main:
            try:
                self._check()
            except OSError as error:
                raise AbridgedError(f"cannot write to {self.output}: {error.strerror}") from error

    def _check(self) -> None:
        self._check_folder()
        if self.resume and not self.overwrite and not self._replaces.exists() and (self.output / METRICS).exists():
            raise AbridgedError(f"{self.output} is finished: nothing is left to resume; --overwrite begins anew")
        self._check_output()
        if self.state_path.exists() and not self.resume and not self.overwrite:
            raise AbridgedError(
                f"an interrupted run is in {self.folder}: add --resume to go on with it, or --overwrite to begin anew"
            )

    def _check_folder(self) -> None:
        """Raise AbridgedError where the folder is another run's, or no run's."""
        lock = self.folder / "lock"
        if self._lock is None and _is_locked(lock):
            raise AbridgedError(f"another run is writing to {self.output}")
        there = os.path.lexists(self.folder) and not lock.exists()
        if there and (self.folder.is_symlink() or not self.folder.is_dir() or any(self.folder.iterdir())):
            raise AbridgedError(f"{self.folder}, where a run keeps its state, is something else: move it away")

    def _check_output(self) -> None:
        may_replace = self.overwrite or (self.resume and self._replaces.exists())
        check_output(self.output, overwrite=may_replace, inputs=self.inputs)

    def __enter__(self) -> "Workspace":
        if self.main:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self.folder / "lock")
                self._restore()
                self._check()
                shutil.rmtree(self.finished.parent, ignore_errors=True)  # half of a result, of an earlier attempt
                if not self.resume:
                    self._clear()
                if self.overwrite:
                    self._replaces.touch()
            except BlockingIOError as error:
                raise AbridgedError(f"another run is writing to {self.output}") from error
            except OSError as error:
                self._release()
                raise AbridgedError(f"cannot write to {self.output}: {error.strerror}") from error
            except AbridgedError:
                self._release()
                raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_ours():
            with suppress(OSError):
                self._restore()
            if not self.state_path.exists() and not self._replaced.exists():
                self._remove()  # there is nothing in it to go on from
        reason = disk_fault(error, self.folder) if error is not None else None
        self._release()
        if reason is not None and not isinstance(error, AbridgedError):
            raise AbridgedError(f"cannot write to {self.folder}: {reason}{self._how()}") from error

    def _how(self) -> str:
        return "; free some space and --resume" if self.state_path.exists() else ""

    def _release(self) -> None:
        if self._lock is not None:
            let_go(self._lock, self.folder / "lock")
            self._lock = None

    def _is_ours(self) -> bool:
        """Whether the folder is still the one that was claimed."""
        return self._lock is not None and is_still(self._lock, self.folder / "lock")

    def _must_be_ours(self) -> None:
        if not (self._is_ours() if self.main else self.folder.exists()):
            raise AbridgedError(f"{self.folder} was removed while the run worked: begin anew")

    def _restore(self) -> None:
        """Put back what was at OUTPUT where something has come between taking it away and putting the new there."""
        if self._replaced.exists() and not self.output.exists():
            os.rename(self._replaced, self.output)

    def _clear(self) -> None:
        self.state_path.unlink(missing_ok=True)  # first: what is half removed must not look like a run
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove(self) -> None:
        with suppress(OSError):
            self._clear()  # all but the lock, by which the folder is known for a run's
        shutil.rmtree(self.folder, ignore_errors=True)

    def interrupted_recipe(self) -> dict[str, Any] | None:
        """The recipe of the run that is to be resumed, as JSON; None where there is none, or it cannot be read."""
        try:
            run = json.loads((self.folder / "run.json").read_text(encoding="utf-8")) if self.resume else {}
            return run.get("recipe") if isinstance(run, dict) else None
        except (OSError, ValueError, RecursionError):
            return None  # entering says what is wrong

    def check_same_run(self, run: dict[str, Any], libraries: dict[str, str] | None = None) -> list[str]:
        """Note what the run is, as JSON, or refuse to resume one that was something else.

        Returns:
            A sentence where `libraries`, by name and version, are others: then it goes on, but not bit for bit.
        """
        path, libraries = self.folder / "run.json", libraries or {}
        if self.resume and (path.exists() or self.state_path.exists()):
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
                changed = [key for key, value in json.loads(json.dumps(run)).items() if before.get(key) != value]
                others = [f"{name} {was}" for name, was in before["libraries"].items() if libraries.get(name) != was]
            except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
                raise AbridgedError(f"{path} is missing or damaged: begin anew with --overwrite") from error
            if changed:
                told = [f"{key} ({before.get(key)})" if key == "version" else key for key in changed]
                raise AbridgedError(
                    f"cannot resume {self.output}: its {' and '.join(told)} differ from the interrupted run's; "
                    "use the same settings, or --overwrite to begin anew"
                )
            return [f"the run was begun with {' and '.join(others)}: it goes on, but not bit for bit"] if others else []
        if self.main:
            write_atomically(path, json.dumps({**run, "libraries": libraries}, indent=1))
        return []

    def save_state(self, tensors: dict[str, Any], position: dict[str, Any]) -> None:
        """Write the training state, all or nothing: `position` is JSON kept inside the same file."""
        self._save(tensors, self.state_path, position)

    def load_state(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The state last saved and its position, or None when nothing was saved yet.

        Raises:
            AbridgedError: it is damaged, as in the others.
        """
        return self._load(self.state_path) if self.state_path.exists() else None

    def save_best(self, stage: int, tensors: dict[str, Any]) -> None:
        """Write the best weights of a stage, all or nothing."""
        self._save(tensors, self.folder / f"best-{stage}.safetensors")

    def load_best(self, stage: int) -> dict[str, Any] | None:
        """The best weights of a stage, or None when none were saved."""
        path = self.folder / f"best-{stage}.safetensors"
        return self._load(path)[0] if path.exists() else None

    def save_student(self, stage: int, tensors: dict[str, Any]) -> None:
        """Write what a stage has made, all or nothing, for the next to learn from."""
        self._save(tensors, self.folder / f"student-{stage}.safetensors")

    def load_student(self, stage: int) -> dict[str, Any]:
        """What `save_student` wrote."""
        return self._load(self.folder / f"student-{stage}.safetensors")[0]

    def save_part(self, name: str, tensors: dict[str, Any], told: dict[str, Any]) -> None:
        """Write what a runner goes on from, all or nothing; `told` is JSON kept inside the same file."""
        self._must_be_ours()
        self.parts.mkdir(exist_ok=True)
        self._write(tensors, self.parts / f"{name}.safetensors", told)

    def load_part(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What `save_part` wrote, its tensors memory-mapped; None where there is none of that name."""
        path = self.parts / f"{name}.safetensors"
        return self._load(path) if path.exists() else None

    def has_part(self, name: str) -> bool:
        return (self.parts / f"{name}.safetensors").exists()

    def forget_parts(self, pattern: str) -> None:
        """Remove the parts whose names fit a pattern."""
        for path in self.parts.glob(f"{pattern}.safetensors"):
            path.unlink()

    def _save(self, tensors: dict[str, Any], path: Path, position: dict[str, Any] | None = None) -> None:
        if self.main:
            self._must_be_ours()
            self._write(tensors, path, position)

    def _write(self, tensors: dict[str, Any], path: Path, position: dict[str, Any] | None) -> None:
        told = json.dumps(position)
        try:
            with written_file(path) as temporary:
                save_file(tensors, temporary, metadata={"position": told, "crc32": _checksum(tensors, told)})
        except AbridgedError as error:
            raise AbridgedError(
                f"cannot write the training checkpoint (is the disk full?): {error}{self._how()}"
            ) from error

    def _load(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            tensors, told = load_file(path), metadata["position"]
            if metadata["crc32"] != _checksum(tensors, told):
                raise ValueError("other bits than were written")
            return tensors, json.loads(told)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise AbridgedError(
                f"the training checkpoint {path} is missing or damaged: begin anew with --overwrite"
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; a number that is not finite becomes null, which JSON has a word for."""
        if self.main:
            self._must_be_ours()
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(finite) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All that was logged; a line that a fault has cut short or damaged is left out."""
        path = self.folder / METRICS
        records = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and all(type(record.get(key, 0)) is int for key in ("stage", "step")):
                    records.append(record)
        return records

    def forget_metrics_after(self, stage: int, step: int) -> None:
        """Drop what an interrupted run logged after its last checkpoint: those steps will be done again."""
        if self.main:
            self._must_be_ours()
            kept = [m for m in self.metrics() if (m.get("stage", 0), m.get("step", 0)) <= (stage, step)]
            write_atomically(self.folder / METRICS, "".join(json.dumps(m) + "\n" for m in kept))

    def publish(self) -> None:
        """Put what was written to `finished` in OUTPUT's place, and remove the workspace.

        Raises:
            AbridgedError: something has appeared at OUTPUT that this run may not replace.
        """
        if not self.main:
            return
        self._must_be_ours()
        try:
            self._check_output()
        except AbridgedError as error:
            raise AbridgedError(
                f"{self.output} has appeared while this run worked: move it away, then --resume"
            ) from error
        settle(self.finished)
        self._replaces.touch()
        if self.output.exists():
            if self._replaced.exists():  # by an earlier attempt, which was stopped right after
                shutil.rmtree(self._replaced)
            os.rename(self.output, self._replaced)
        os.rename(self.finished, self.output)
        flush(self.output.parent)
        self._replaces.unlink()  # from here on there is nothing to resume
        self._remove()


def _checksum(tensors: dict[str, Tensor], position: str) -> str:
    """Of all that a checkpoint holds: a flipped bit in it would make another model, and nobody would know."""
    crc = zlib.crc32(position.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _lock(path: Path) -> int:
    """A descriptor that holds the lock; BlockingIOError where another process does."""
    descriptor = opened(path)
    try:
        lock(descriptor, wait=False)
        if not is_still(descriptor, path):
            raise BlockingIOError  # whoever held it has finished just now, and removed its folder
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        os.close(_lock(path))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
