"""Where a run keeps what it needs to go on: a locked folder beside the output, renamed into place when done."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from abridged.errors import AbridgedError


class Workspace:
    """`OUTPUT.partial`: lock, metrics.jsonl and the training state, until `publish` puts the result at OUTPUT.

    Only the main process writes; the others (`main=False`) read.

    Raises:
        AbridgedError: OUTPUT exists (without `overwrite`), an interrupted run is there (without `resume` or
            `overwrite`), there is nothing to resume, another process works there, or the folder cannot be written.
    """

    def __init__(self, output: str | Path, *, resume: bool = False, overwrite: bool = False, main: bool = True) -> None:
        self.output = Path(output).expanduser().absolute()
        self.folder = self.output.with_name(self.output.name + ".partial")
        self.state_path = self.folder / "state.safetensors"
        self.main, self.resume = main, resume
        self._lock: int | None = None
        if not main:
            return
        if self.output.exists() and not overwrite and not (resume and self.folder.exists()):
            raise AbridgedError(f"{self.output} exists already: choose another output, or add --overwrite")
        found = self.state_path.exists()
        if found and not resume and not overwrite:
            raise AbridgedError(
                f"an interrupted run is in {self.folder}: add --resume to go on with it, or --overwrite to begin anew"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AbridgedError(f"another run is writing to {self.output}") from error
        except OSError as error:
            raise AbridgedError(f"cannot write to {self.output}: {error.strerror}") from error
        if not resume:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if isinstance(error, OSError) and error.errno in (28, 122, 27):  # no space, quota, file too large
            raise AbridgedError(f"cannot write to {self.folder}: {error.strerror}; free some space and --resume") from error

    def check_same_run(self, fingerprint: dict[str, Any]) -> None:
        """Note what the run is, or refuse to resume one that was something else."""
        path = self.folder / "run.json"
        if self.main and not path.exists():
            write_atomically(path, json.dumps(fingerprint, indent=1))
        elif self.resume and path.exists():
            before = json.loads(path.read_text())
            changed = [key for key, value in json.loads(json.dumps(fingerprint)).items() if before.get(key) != value]
            if changed:
                raise AbridgedError(
                    f"cannot resume {self.output}: its {' and '.join(changed)} differ from the interrupted run's; "
                    "use the same settings, or --overwrite to begin anew"
                )

    def save_state(self, tensors: dict[str, Any], position: dict[str, Any]) -> None:
        """Write the training state, all or nothing: `position` is JSON kept inside the same file."""
        if self.main:
            temporary = self.state_path.with_suffix(".tmp")
            try:
                save_file(tensors, temporary, metadata={"position": json.dumps(position)})
            except (SafetensorError, OSError) as error:
                temporary.unlink(missing_ok=True)
                raise AbridgedError(
                    f"cannot write the training checkpoint to {self.folder} (is the disk full?): {error}; "
                    "free some space and --resume"
                ) from error
            os.replace(temporary, self.state_path)

    def load_state(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The state last saved and its position, or None when nothing was saved yet."""
        if not self.state_path.exists():
            return None
        try:
            with safe_open(self.state_path, framework="pt") as file:
                position = json.loads(file.metadata()["position"])
            return load_file(self.state_path), position
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise AbridgedError(f"the training checkpoint {self.state_path} is damaged: begin anew with --overwrite") from error

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self.main:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All that was logged."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget_metrics_after(self, stage: int, step: int) -> None:
        """Drop what an interrupted run logged after its last checkpoint: those steps will be done again."""
        if self.main:
            kept = [m for m in self.metrics() if (m.get("stage", 0), m.get("step", 0)) <= (stage, step)]
            write_atomically(self.folder / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))

    def publish(self, finished: Path) -> None:
        """Put the folder `finished` in OUTPUT's place, and remove the workspace."""
        if not self.main:
            return
        old = self.output.with_name(self.output.name + ".old.partial")
        if old.exists():
            shutil.rmtree(old)
        if self.output.exists():
            os.rename(self.output, old)
        os.rename(finished, self.output)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file through a temporary name, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
