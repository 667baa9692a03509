"""A way to run the command as people do, in a process of its own."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def abridged(tmp_path):
    """abridged("recipes", "show", …) -> CompletedProcess, run in a folder of its own."""

    def run(*arguments, **environment):
        command = [sys.executable, "-c", "from abridged.cli import main; main()", *map(str, arguments)]
        env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **environment}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return run
