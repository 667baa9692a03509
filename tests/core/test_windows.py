"""What Windows does not have is asked for by no module when it is imported."""

import subprocess
import sys
from pathlib import Path

import abridged

BLOCKED = """
import importlib, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # importing it raises ImportError
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) in ("fcntl", "resource", "termios", "pwd", "grp"):
            failed.append(f"{name}: {error}")
sys.exit("; ".join(failed))
"""


def test_every_module_is_imported_without_what_unix_alone_has():
    root = Path(abridged.__file__).parent
    names = [
        ".".join(("abridged", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(root.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    assert len(names) > 100
    done = subprocess.run([sys.executable, "-c", BLOCKED, *names], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
