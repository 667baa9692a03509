"""What `make demo` prints (examples/demo.py), as a row of benchmarks/results/demo.jsonl.

python benchmarks/demo.py
"""

import json
import subprocess
import sys
from pathlib import Path

from results import append

ROOT = Path(__file__).parent.parent


def main() -> None:
    subprocess.run([sys.executable, "examples/demo.py"], cwd=ROOT, check=True)
    append("demo", json.loads((ROOT / "demo" / "demo.json").read_text()))


if __name__ == "__main__":
    main()
