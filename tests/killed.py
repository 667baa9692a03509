"""Processes that are killed at one of their operations on files: the n-th, whichever it is."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isolated import command_line

_CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: What tells of time and machine, and is another in every run.
_DIFFER = {"abridged.json", "report.html", "metrics.jsonl", "README.md"}


class Operations:
    """Counts a process's operations on files below `folder`, and kills it at the `kill`-th.

    A file that was to be written is left empty, and one that safetensors was to write is left half.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.kill, self.counting, self.seen = str(folder), 0, False, [""]
        sys.addaudithook(self._audit)
        import safetensors.torch as written

        fsync, serialize = os.fsync, written.serialize_file

        def counted_fsync(descriptor: int) -> None:
            self._count("fsync", _path_of(descriptor))
            fsync(descriptor)

        def counted_serialize(tensors: Any, file: Any, *more: Any, **named: Any) -> None:
            def half() -> None:
                serialize(tensors, file, *more, **named)
                os.truncate(file, os.path.getsize(file) // 2)

            self._count("serialize", str(file), half)
            serialize(tensors, file, *more, **named)

        os.fsync, written.serialize_file = counted_fsync, counted_serialize

    @contextlib.contextmanager
    def count(self, kill: int = 0) -> Iterator[list[str]]:
        """Yield a list that gets the operations of the block; with `kill`, the process does not outlive that one."""
        self.seen, self.kill, self.counting = [], kill, True
        try:
            yield self.seen
        finally:
            self.counting = False

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.counting:
            return
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITES:
                keep = flags & os.O_APPEND or not flags & os.O_TRUNC
                self._count("open", str(path), lambda: open(path, "ab" if keep else "wb").close())
        elif event in _CHANGING:
            within = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # as rmtree calls them
            self._count(event, str(Path(_path_of(arguments[1]) if within else "", str(arguments[0]))))

    def _count(self, what: str, path: str, begin: Callable[[], None] = lambda: None) -> None:
        if self.counting and path.startswith(self.folder):
            self.seen.append(f"{what} {path.removeprefix(self.folder)}")
            if len(self.seen) == self.kill:
                self.counting = False
                with contextlib.suppress(OSError):
                    begin()
                os.kill(os.getpid(), signal.SIGKILL)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def contents(path: Path) -> Any:
    """What is at `path`, so far as it is the same in every run: bytes of a file, names and bytes of a directory."""
    if path.is_dir():
        return {one.name: None if one.name in _DIFFER else one.read_bytes() for one in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def forked(work: Callable[[], Any]) -> tuple[int, str]:
    """Do `work` in a child. Returns its exit code (negative: the signal) and what it printed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(writer), "wb", 0), write_through=True)
            code = called(work)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def called(work: Callable[[], Any]) -> int:
    """Do `work`, and return the exit code that it ends with."""
    try:
        work()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def verb(first: list[str], resume: list[str], output: str, old: str | None, every: bool, report: str) -> None:
    """Run a command to its end, kill it at its operations one after the other, and look what comes of that.

    Args:
        resume: the command that goes on with what was killed; where it says that there is nothing to go on with, and
            what was there before is there still, `first` is run again.
        output: what it writes, alone in its folder.
        old: a directory that is at `output` before, and may be replaced.
        every: whether it is killed at every operation, or at some, those that put the output in its place among them.
        report: a JSON file for what was wrong, the operations, and how many of them were tried.
    """
    target, good = Path(output), None if old is None else contents(Path(old))
    partial = target.with_name(f"{target.name}.partial")
    operations = Operations(target.parent)

    def prepare() -> None:
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        if old is not None:
            shutil.copytree(old, target)

    prepare()
    with operations.count() as seen:
        assert called(lambda: command_line(*first)) == 0
    wanted = contents(target)
    assert wanted not in (None, good)
    assert list(target.parent.iterdir()) == [target]
    placing = {n for n, one in enumerate(seen, 1) if one.startswith("os.rename") and one.endswith(f"/{target.name}")}
    some = {1, len(seen) // 2, *placing, *(n + 1 for n in placing), len(seen)}
    tried, wrong = range(1, len(seen) + 1) if every else sorted(some & {*range(1, len(seen) + 1)}), []
    for number in tried:
        where = f"{number}, {seen[number - 1]}"

        def killed(number: int = number) -> None:
            with operations.count(number):
                command_line(*first)

        prepare()
        code, said = forked(killed)
        if code != -signal.SIGKILL:
            wrong.append(f"{where}: {code}, {said[-300:]}")
            continue
        there = contents(target)
        if good is not None and wanted != there and good not in (there, contents(partial / "replaced")):
            wrong.append(f"{where}: what was there is gone")
        code, said = forked(lambda: command_line(*resume))
        if code and there is not None and there == good and "nothing is left to resume" in said:
            code, said = forked(lambda: command_line(*first))
        ended = there == wanted and ("nothing is left to resume" in said or "exists already" in said)
        if code and not ended:
            wrong.append(f"{where}, again: {code}, {said[-300:]}")
        if contents(target) != wanted:
            wrong.append(f"{where}: another result")
        left = {path.name for path in target.parent.iterdir()} - {target.name} - ({partial.name} if ended else set())
        if left:
            wrong.append(f"{where}: {left} is left")
    Path(report).write_text(json.dumps({"wrong": wrong, "tried": len(tried), "operations": seen}))
