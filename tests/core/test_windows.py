"""What Windows does not have is asked for by no module when it is imported, nor needed to write and to lock."""

import ast
import subprocess
import sys
from pathlib import Path

import abridged

UNIX = ("fcntl", "resource", "termios", "pwd", "grp")
BLOCKED = """
import sys, types
for name in sys.argv[2:]:
    sys.modules[name] = None  # importing it raises ImportError
from abridged.core import hardware  # without psutil, which on Linux wants some of these itself
held = []
windows = types.ModuleType("msvcrt")
windows.LK_NBLCK, windows.locking = 2, lambda descriptor, mode, count: held.append((mode, count))
sys.modules["msvcrt"] = windows
from abridged.core import atomic
atomic.write_atomically(__import__("pathlib").Path(sys.argv[1]), "text")
assert held == [(2, 1)], held
"""


def at_import(path):
    """The modules that a file imports when it is imported, where it does not go on without them."""
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try)):
            waiting += ast.iter_child_nodes(node)


def test_no_module_imports_what_unix_alone_has():
    files = sorted(Path(abridged.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    assert [(file.name, name) for file in files for name in at_import(file) if name in UNIX] == []


def test_files_are_written_without_it(tmp_path):
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "file"), *UNIX]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
