"""The package's front: light to import, complete, and never shadowed by its own submodules."""

import pkgutil
import subprocess
import sys
import textwrap

import pytest

import abridged


def test_importing_it_is_light():
    code = """
        import sys
        import abridged
        heavy = {"torch", "transformers", "numpy", "pydantic", "typer"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("name", abridged.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(abridged, name)
    assert callable(value)
    assert value.__doc__
    assert name in dir(abridged)


def test_no_submodule_has_a_public_name():
    assert {module.name for module in pkgutil.iter_modules(abridged.__path__)}.isdisjoint(abridged.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        abridged.nothing_of_the_kind  # noqa: B018
