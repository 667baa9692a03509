"""The `gguf` package, with block types of llama.cpp that its newest release does not name or read yet.

Q2_0 came to llama.cpp after gguf 0.19: its name, number and size are added where they are missing, and readers of it
and of Q1_0, so that transformers dequantises them too. A release that has them keeps its own.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abridged.core.errors import AbridgedError

Q2_0 = "Q2_0"
_TYPE, _FILE_TYPE = 42, 41  # ggml.h's GGML_TYPE_Q2_0 and llama.h's LLAMA_FTYPE_MOSTLY_Q2_0
_SIZES = (64, 2 + 16)  # weights and bytes of a block: `block_q2_0` of ggml-common.h


@lru_cache(maxsize=1)
def gguf_package() -> Any:
    """The package. Raises AbridgedError where it is not there."""
    try:
        import gguf
    except ImportError:
        raise AbridgedError('GGUF files need the gguf package: pip install "abridged[gguf]"') from None
    kinds = gguf.GGMLQuantizationType
    if Q2_0 not in kinds.__members__:
        gguf.GGML_QUANT_SIZES[_add(kinds, Q2_0, _TYPE)] = _SIZES
    if f"MOSTLY_{Q2_0}" not in gguf.LlamaFileType.__members__:
        _add(gguf.LlamaFileType, f"MOSTLY_{Q2_0}", _FILE_TYPE)
    base, known = vars(gguf.quants)["__Quant"], gguf.quants._type_traits
    for name, read in (("Q1_0", _read_q1_0), (Q2_0, _read_q2_0)):
        if kinds[name] not in known:  # a subclass registers itself
            type(base)(name, (base,), {"dequantize_blocks": classmethod(read)}, qtype=kinds[name])
    return gguf


def _add(kinds: Any, name: str, number: int) -> Any:
    """A new member of an enum of integers, as Python itself would have made it."""
    member: Any = int.__new__(kinds, number)
    member._name_, member._value_ = name, number
    kinds._member_map_[name], kinds._value2member_map_[number] = member, member
    kinds._member_names_.append(name)
    assert issubclass(kinds, IntEnum)
    return member


def _scales(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The FP16 number that every block (blocks, bytes) begins with: (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)


def _read_q1_0(cls: type, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _scales(blocks) * (2.0 * np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32) - 1.0)


def _read_q2_0(cls: type, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    codes = blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    return _scales(blocks) * (codes.reshape(len(blocks), -1).astype(np.float32) - 1.0)
