"""Where a run keeps what it needs to go on: a locked folder beside the output, renamed into place when done."""

import errno
import fcntl
import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from abridged.errors import AbridgedError

#: What a disk says that is full, over quota, read-only, or broken.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EIO
}  # fmt: skip


METRICS = "metrics.jsonl"


class Workspace:
    """`OUTPUT.partial`: lock, metrics.jsonl and the training state, until `publish` puts the result at OUTPUT.

    Making one only looks; entering it claims the folder. Only the main process writes; the others (`main=False`) read.

    Raises:
        AbridgedError: OUTPUT exists (without `overwrite`), an interrupted run is there (without `resume` or
            `overwrite`), another process works there, or the folder cannot be written.
    """

    def __init__(self, output: str | Path, *, resume: bool = False, overwrite: bool = False, main: bool = True) -> None:
        self.output = Path(output).expanduser().absolute()
        self.folder = self.output.with_name(self.output.name + ".partial")
        self.state_path = self.folder / "state.safetensors"
        self.main, self.resume, self.overwrite = main, resume, overwrite
        self._replaces = self.folder / "replaces-output"  # noted on disk, since a run may be resumed
        self._lock: int | None = None
        if main:
            self._check()

    def _check(self) -> None:
        if self._lock is None and _is_locked(self.folder / "lock"):
            raise AbridgedError(f"another run is writing to {self.output}")
        if self.resume and not self.overwrite and not self.folder.exists() and (self.output / METRICS).exists():
            raise AbridgedError(f"{self.output} is finished: nothing is left to resume; --overwrite begins anew")
        if self.output.exists() and not self._may_replace():
            raise AbridgedError(f"{self.output} exists already: choose another output, or add --overwrite")
        if self.output.exists() and not self.output.is_dir():
            raise AbridgedError(f"{self.output} is a file: choose another output")
        if self.state_path.exists() and not self.resume and not self.overwrite:
            raise AbridgedError(
                f"an interrupted run is in {self.folder}: add --resume to go on with it, or --overwrite to begin anew"
            )

    def _may_replace(self) -> bool:
        return self.overwrite or (self.resume and self._replaces.exists())

    def __enter__(self) -> "Workspace":
        if self.main:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self.folder / "lock")
                self._check()
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
        if self.main and self.folder.exists() and not self.state_path.exists():
            shutil.rmtree(self.folder, ignore_errors=True)  # there is nothing in it to go on from
        self._release()
        if isinstance(error, OSError) and error.errno in _DISK:
            how = "; free some space and --resume" if self.state_path.exists() else ""
            raise AbridgedError(f"cannot write to {self.folder}: {error.strerror}{how}") from error

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(self) -> None:
        self.state_path.unlink(missing_ok=True)  # first: what is half removed must not look like a run
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def check_same_run(self, fingerprint: dict[str, Any]) -> None:
        """Note what the run is, or refuse to resume one that was something else."""
        path = self.folder / "run.json"
        if self.resume and path.exists():
            before = json.loads(path.read_text())
            changed = [key for key, value in json.loads(json.dumps(fingerprint)).items() if before.get(key) != value]
            if changed:
                raise AbridgedError(
                    f"cannot resume {self.output}: its {' and '.join(changed)} differ from the interrupted run's; "
                    "use the same settings, or --overwrite to begin anew"
                )
        elif self.main:
            write_atomically(path, json.dumps(fingerprint, indent=1))

    def save_state(self, tensors: dict[str, Any], position: dict[str, Any]) -> None:
        """Write the training state, all or nothing: `position` is JSON kept inside the same file."""
        self._save(tensors, self.state_path, {"position": json.dumps(position)})

    def load_state(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The state last saved and its position, or None when nothing was saved yet."""
        if not self.state_path.exists():
            return None
        try:
            with safe_open(self.state_path, framework="pt") as file:
                position = json.loads(file.metadata()["position"])
            return load_file(self.state_path), position
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise AbridgedError(
                f"the training checkpoint {self.state_path} is damaged: begin anew with --overwrite"
            ) from error

    def save_best(self, stage: int, tensors: dict[str, Any]) -> None:
        """Write the best weights of a stage, all or nothing."""
        self._save(tensors, self.folder / f"best-{stage}.safetensors")

    def load_best(self, stage: int) -> dict[str, Any] | None:
        """The best weights of a stage, or None when none were saved."""
        path = self.folder / f"best-{stage}.safetensors"
        return load_file(path) if path.exists() else None

    def save_student(self, stage: int, tensors: dict[str, Any]) -> None:
        """Write what a stage has made, all or nothing, for the next to learn from."""
        self._save(tensors, self.folder / f"student-{stage}.safetensors")

    def load_student(self, stage: int) -> dict[str, Any]:
        """What `save_student` wrote.

        Raises:
            AbridgedError: it is not there any more, or is damaged.
        """
        path = self.folder / f"student-{stage}.safetensors"
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise AbridgedError(f"{path} is missing or damaged: begin anew with --overwrite") from error

    def _save(self, tensors: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
        if not self.main:
            return
        temporary = path.with_suffix(".tmp")
        try:
            save_file(tensors, temporary, metadata=metadata)
            _flush(temporary)
            os.replace(temporary, path)
        except (SafetensorError, OSError) as error:
            temporary.unlink(missing_ok=True)
            how = "; free some space and --resume" if self.state_path.exists() else ""
            raise AbridgedError(
                f"cannot write the training checkpoint to {self.folder} (is the disk full?): {error}{how}"
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; a number that is not finite becomes null, which JSON has a word for."""
        if self.main:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(finite) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All that was logged; a line that a fault has cut short is left out."""
        path = self.folder / METRICS
        records = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError):
                records.append(json.loads(line))
        return records

    def forget_metrics_after(self, stage: int, step: int) -> None:
        """Drop what an interrupted run logged after its last checkpoint: those steps will be done again."""
        if self.main:
            kept = [m for m in self.metrics() if (m.get("stage", 0), m.get("step", 0)) <= (stage, step)]
            write_atomically(self.folder / METRICS, "".join(json.dumps(m) + "\n" for m in kept))

    def publish(self, finished: Path) -> None:
        """Put the folder `finished`, which lies in the workspace, in OUTPUT's place, and remove the workspace.

        Raises:
            AbridgedError: something has appeared at OUTPUT that this run may not replace.
        """
        if not self.main:
            return
        if self.resume and not self.overwrite and not self.folder.exists() and (self.output / METRICS).exists():
            raise AbridgedError(f"{self.output} is finished: nothing is left to resume; --overwrite begins anew")
        if self.output.exists() and not self._may_replace():
            raise AbridgedError(f"{self.output} has appeared while this run worked: move it away, then --resume")
        self._replaces.touch()
        old = self.output.with_name(self.output.name + ".old.partial")
        if self.output.exists():
            if old.exists():
                shutil.rmtree(old)
            os.rename(self.output, old)
        os.rename(finished, self.output)
        shutil.rmtree(old, ignore_errors=True)
        self.state_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file through a temporary name, so that a reader never sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # processes may write the same file at once
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _lock(path: Path) -> int:
    """A descriptor that holds the lock; BlockingIOError where another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
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
