import pytest

import isolated


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """command(…) -> how it ended; each in a process and a folder of its own."""
    return lambda *arguments, **launch: isolated.abridged(
        *arguments, folder=tmp_path_factory.mktemp("process"), **launch
    )
