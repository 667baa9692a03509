"""What all tests share: processes that they start find this checkout's package too, installed or not."""

import os
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
