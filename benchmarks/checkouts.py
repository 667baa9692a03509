"""For benchmarks that hold one checkout against another: which one's code a process runs."""

import sys
from pathlib import Path


def use(checkout: Path) -> None:
    """Import `abridged` from a checkout, whatever an editable installation of another one says."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")]
    sys.path.insert(0, str(checkout.resolve() / "src"))
    import abridged

    assert Path(abridged.__file__).is_relative_to(checkout.resolve()), abridged.__file__
