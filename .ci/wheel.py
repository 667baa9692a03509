"""That an installed wheel is whole: the kernels are in it, and the first commands of the README run.

python .ci/wheel.py     in the environment that it was installed in, which needs no compiler
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = (
    ("--version",),
    ("recipes",),
    ("recipes", "show", "quantgpt-2-2-8"),
    ("inspect", "bundled", "--dry", "--recipe", "best-2-2-8"),
)
KERNELS = "from abridged.runtime.kernels import kernels; found = kernels(); print(*found.available if found else ())"


def main() -> None:
    environment = {**os.environ, "PATH": str(Path(sys.executable).parent)}  # of a bare machine
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:  # not the checkout, whose sources would be taken instead
        found = run([sys.executable, "-c", KERNELS], environment, folder).split()
        if not found:
            sys.exit("the wheel has no compiled kernels")
        print("kernels:", *found)
        for command in COMMANDS:
            said = run([sys.executable, "-m", "abridged", *command], environment, folder)
            print(f"abridged {' '.join(command)}: {len(said.splitlines())} lines")


def run(command: list[str], environment: dict[str, str], folder: str) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
