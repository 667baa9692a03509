"""What a version of the format may hold."""

import pytest

from abridged.core.errors import AbridgedError
from abridged.storage.format import LinearSpec, parse_spec
from abridged.storage.matrix import Storage


def spec(code_book, version):
    """The configuration of one matrix of 4 x 16 in groups of 8."""
    linear = LinearSpec.of(Storage(4, 16, code_book, "bits", 8), "float32", kind="linear", bias=False)
    modules = {"layer": linear.model_dump(exclude_none=True)}
    return {"quant_method": "abridged", "version": version, "modules": modules}


@pytest.mark.parametrize("code_book", ["int3", "int5", "int6", "uint2", "uint8"])
def test_code_books_of_version_4_are_in_no_older_one(code_book):
    assert parse_spec(spec(code_book, 4)).matrices()["layer"].code_book == code_book
    for version in (1, 2, 3):
        with pytest.raises(AbridgedError, match=f"a checkpoint of version {version} has no {code_book}"):
            parse_spec(spec(code_book, version))


def test_older_versions_keep_what_they_had():
    for version in (1, 2, 3):
        assert parse_spec(spec("int4", version)).version == version


def test_a_packed_module_has_zero_points_where_its_code_book_does():
    assert parse_spec(spec("uint3", 4)).tensors_of("layer") == ("codes", "scales", "zeros")
    assert parse_spec(spec("int3", 4)).tensors_of("layer") == ("codes", "scales")
    assert Storage(4, 16, "uint3", "bits", 8).zero_bytes == 3
    assert Storage(4, 16, "int3", "bits", 8).zero_bytes == 0
