"""The compiled CPU kernels: finding them, choosing among instruction sets, and calling them by ctypes.

ABRIDGED_KERNELS says which to use: `auto` (the fastest that this processor runs), `amx`, `avx512vnni`, `avx2`,
`portable`, `triton` (its interpreter, with TRITON_INTERPRET=1: to try a GPU's kernels), or `reference` (torch alone).
ABRIDGED_KERNELS_LIBRARY may name a library file to use, built in another way.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.runtime.activations import INPUT_FUNCTIONS, Rounding, check_function
from abridged.runtime.weight import PackedWeight
from abridged.storage.code_books import CODE_BOOKS
from abridged.storage.matrix import Storage
from abridged.storage.packing import zero_levels

PATHS = ("portable", "avx2", "avx512vnni", "amx")  #: by number, the slowest first
VARIABLE = "ABRIDGED_KERNELS"
LIBRARY_VARIABLE = "ABRIDGED_KERNELS_LIBRARY"
INTERFACE = 10  #: of the functions in csrc/abridged_kernels.cpp; a library of another one is not used
_BOOKS = {
    ("binary", "bits"): 0, ("ternary", "bits"): 1, ("ternary", "base3"): 2, ("quaternary", "bits"): 3,
    ("q2_0", "bits"): 1,
    ("int4", "bits"): 4, ("int8", "bits"): 5, ("int3", "bits"): 6, ("int5", "bits"): 7, ("int6", "bits"): 8,
}  # fmt: skip
# ternary's layout has room for a fourth level, which q2_0 and uint2 use
_SIGNED = {f"uint{bits}": "ternary" if bits == 2 else f"int{bits}" for bits in (2, 3, 4, 5, 6, 8)}
_MIDDLES = {book: -CODE_BOOKS[signed][0] for book, signed in _SIGNED.items()}  #: code of level 0 in those
FUNCTIONS = {name: number for number, name in enumerate(INPUT_FUNCTIONS)}
TYPES = {torch.float32: 0, torch.bfloat16: 1}
CACHE_TYPES = {**TYPES, torch.int8: 2}  #: of keys and values; see `decoding.cache.in_8_bits`
BEFORE = {torch.int8: 4}  #: numbers of a row of keys or values that stand before those of a head


class Kernels:
    """The library, and the path through it that was chosen.

    Raises:
        AbridgedError: the path is unknown, or this processor cannot take it.
    """

    def __init__(self, library: ctypes.CDLL, path: str = "auto") -> None:
        self.library = library
        pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._linear = library.abridged_linear
        self._linear.argtypes = [*[pointer] * 8, *[int64] * 5, *[int32] * 5, int64]
        self._dense = library.abridged_dense
        self._dense.argtypes = [*[pointer] * 4, *[int64] * 6, *[int32] * 3, int64]
        self._dense.restype = None
        self._embedding = library.abridged_embedding
        self._embedding.argtypes = [*[pointer] * 5, *[int64] * 5, int32, int64]
        self._attend = library.abridged_attend
        self._attend.argtypes = [*[pointer] * 4, *[int64] * 9, ctypes.c_float, int32, int32, int64]
        self._attend.restype = None
        self._attend_all = library.abridged_attend_all
        self._attend_all.argtypes = [*[pointer] * 10, ctypes.c_float, int32, int32, int64]
        self._attend_all.restype = None
        for serves in (library.abridged_serves, library.abridged_serves_floats):
            serves.argtypes = [int32, int64, int64]
        library.abridged_use_team.argtypes = [pointer]
        library.abridged_use_team.restype = None
        library.abridged_use_team(_torch_team())
        self.available = tuple(name for i, name in enumerate(PATHS) if library.abridged_runs(i))
        if path != "auto" and path not in PATHS:
            raise AbridgedError(f"{VARIABLE} is {path!r}; known are auto, reference, triton, {', '.join(PATHS)}")
        if path != "auto" and path not in self.available:
            raise AbridgedError(f"{VARIABLE} is {path}, but this processor has only {', '.join(self.available)}")
        self.path = self.available[-1] if path == "auto" else path
        self.number = PATHS.index(self.path)
        self._attends_all = bool(library.abridged_attends_all(self.number))
        self._serves = lru_cache(maxsize=None)(library.abridged_serves)
        self._serves_floats = lru_cache(maxsize=None)(library.abridged_serves_floats)

    def serves_linear(self, dtype: torch.dtype, storage: Storage, rounds: bool = True) -> bool:
        """Whether `linear` can be called, with a rounding or without one: of float32 or bf16, and scales that do not
        split a step."""
        book = _BOOKS[_SIGNED.get(storage.code_book, storage.code_book), storage.packing]
        serves = self._serves if rounds else self._serves_floats
        return dtype in TYPES and bool(serves(book, storage.columns, storage.groups))

    def linear(
        self, weight: Held, x: Tensor, bias: Tensor | None, rounding: Rounding | None, function: str = "identity"
    ) -> Tensor:
        """``round(function(x)) W^T + bias`` (..., rows) of x (..., columns) on the CPU, in its type, computed in FP32
        where nothing is rounded.

        Raises AbridgedError unless everything is of the size and type that the library, which trusts it, will read.
        """
        x = x.contiguous()
        bias = None if bias is None else bias.float().contiguous()
        check_function(function)
        wrong = fault(weight, x, bias, rounding)
        if wrong is not None:
            raise AbridgedError(f"a packed layer of {weight.rows}x{weight.columns}: {wrong}")
        y = x.new_empty((*x.shape[:-1], weight.rows))
        sizes = (x.numel() // weight.columns, weight.rows, weight.columns, weight.row_bytes, weight.num_scales)
        numbers = (weight.book, TYPES[x.dtype], bits_of(rounding), FUNCTIONS[function], self.number)
        pointers = (x.data_ptr(), y.data_ptr(), *addresses(weight, bias, rounding))
        if failed := self._linear(*pointers, *sizes, *numbers, torch.get_num_threads()):
            raise failure(failed, x)
        return y

    def dense(self, weight: Held, part: slice, dtype: torch.dtype) -> Tensor:
        """Rows of the matrix itself (n, columns), of those that it has, in float32 or bf16."""
        y = torch.empty(part.stop - part.start, weight.columns, dtype=dtype)
        pointers = (y.data_ptr(), weight.codes, weight.scales, weight.offsets)
        sizes = (weight.rows, weight.columns, weight.row_bytes, weight.num_scales)
        numbers = (weight.book, TYPES[dtype], self.number)
        self._dense(*pointers, part.start, part.stop, *sizes, *numbers, torch.get_num_threads())
        return y

    def prepared_linear(
        self, weight: Held, bias: Tensor | None, rounding: Rounding | None, function: str = "identity"
    ) -> Callable[[Tensor], Tensor]:
        """`linear` for many calls: a function of x (B, columns) FP32, contiguous, that returns y (B, rows).

        It returns the same memory whenever B is the same. Good for as long as the weight's tensors stay.
        """
        rows, kept = weight.rows, (weight, bias, rounding)  # `call` keeps what it points to from being freed
        pointers = [ctypes.c_void_p(address) for address in addresses(weight, bias, rounding)]
        sizes = [rows, weight.columns, weight.row_bytes, weight.num_scales]
        numbers = (weight.book, 0, bits_of(rounding), FUNCTIONS[function], self.number)
        rest = [*map(ctypes.c_int64, sizes), *map(ctypes.c_int32, numbers), ctypes.c_int64(torch.get_num_threads())]
        outputs: dict[int, tuple[Tensor, ctypes.c_void_p]] = {}
        run = self._linear

        def call(x: Tensor, _: object = kept) -> Tensor:
            batch = len(x)
            if batch not in outputs:
                y = torch.empty(batch, rows)
                outputs[batch] = y, ctypes.c_void_p(y.data_ptr())
            y, to = outputs[batch]
            if failed := run(x.data_ptr(), to, *pointers, batch, *rest):
                raise failure(failed, x)
            return y

        return call

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor | None:
        """Softmax attention of one query for each head: (B, heads, width) FP32; None where it cannot be served.

        query: (B, heads, 1, width) FP32. keys, values: (B, key heads, S, width) FP32 or bf16, or (B, key heads, S,
        4 + width) int8 as `decoding.cache.in_8_bits` has them, S at least 1, on the CPU.
        """
        batch, heads, _, width = query.shape
        key_heads, length = keys.shape[1:3]
        rows = ((keys.stride(2), keys.stride(3)), (values.stride(2), values.stride(3)))
        if keys.dtype not in CACHE_TYPES or values.dtype != keys.dtype or heads % key_heads:
            return None
        if set(rows) != {(BEFORE.get(keys.dtype, 0) + width, 1)}:
            return None
        query = query.contiguous()
        y = torch.empty(batch, heads, width)
        pointers = (query.data_ptr(), keys.data_ptr(), values.data_ptr(), y.data_ptr())
        strides = (keys.stride(0), keys.stride(1), values.stride(0), values.stride(1))
        sizes = (batch, heads, key_heads, length, width)
        self._attend(
            *pointers, *sizes, *strides, scaling, CACHE_TYPES[keys.dtype], self.number, torch.get_num_threads()
        )
        return y

    def attend_all(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scaling: float
    ) -> Tensor | None:
        """Softmax attention of many queries: (B, T, heads, width) FP32; None where it cannot be served.

        query: (B, heads, T, width); keys, values: (B, key heads, S, width), S at least 1; all FP32 on the CPU, the
        numbers of a row beside each other. mask: (B or 1, 1, T or 1, S) bool, False where a query may not look; one
        that may look nowhere gives 0. causal: query i sees keys up to i.
        """
        batch, heads, queries, width = query.shape
        key_heads, length = keys.shape[1:3]
        given = (query, keys, values)
        if not self._attends_all or not query.numel() * keys.numel() or keys.shape != values.shape or heads % key_heads:
            return None
        if any(t.dtype != torch.float32 or t.device.type != "cpu" or t.stride(3) != 1 for t in given):
            return None
        if mask is not None:
            if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[3] != length:
                return None
            mask = mask.expand(batch, 1, queries, length)
            mask = mask if mask.stride(3) == 1 else mask.contiguous()
        y = torch.empty(batch, queries, heads, width)
        sizes = (ctypes.c_int64 * 6)(batch, heads, key_heads, queries, length, width)
        # of batch, head and row; the mask has no heads
        strides = [(ctypes.c_int64 * 3)(*t.stride()[:3]) for t in (query, keys, values)]
        masked = None if mask is None else (ctypes.c_int64 * 2)(mask.stride(0), mask.stride(2))
        pointers = [None if t is None else t.data_ptr() for t in (query, keys, values, mask, y)]
        self._attend_all(*pointers, sizes, *strides, masked, scaling, causal, self.number, torch.get_num_threads())
        return y

    def embedding(self, weight: Held, ids: Tensor) -> Tensor:
        """Rows of ids (...) as (..., columns) FP32. Raises IndexError for an id that is not a row."""
        if ids.dtype not in (torch.int64, torch.int32):
            raise AbridgedError(f"a packed embedding takes 64- or 32-bit ids, not {ids.dtype}")
        ids = ids.contiguous().long()
        y = torch.empty((*ids.shape, weight.columns))
        failed = self._embedding(
            ids.data_ptr(),
            y.data_ptr(),
            weight.codes,
            weight.scales,
            weight.offsets,
            ids.numel(),
            weight.rows,
            weight.columns,
            weight.row_bytes,
            weight.num_scales,
            weight.book,
            torch.get_num_threads(),
        )
        if failed:
            raise IndexError(f"an id is outside the {weight.rows} rows of the embedding")
        return y


class Held(NamedTuple):
    """A weight as the library takes it: addresses, sizes, and the scales and offsets that had to be made anew."""

    codes: int
    scales: int
    offsets: int | None
    rows: int
    columns: int
    row_bytes: int
    num_scales: int
    book: int
    kept: tuple[Tensor, ...]

    @classmethod
    def of(cls, weight: PackedWeight) -> Held:
        """Raises AbridgedError unless codes and scales are as their storage says, and contiguous."""
        weight.check()
        storage, scales = weight.storage, weight.scales.float().contiguous()
        if not weight.codes.is_contiguous():
            raise AbridgedError(f"a packed matrix of {storage.rows}x{storage.columns}: the codes are not contiguous")
        sizes = (storage.rows, storage.columns, storage.row_bytes, storage.num_scales)
        book = _BOOKS[_SIGNED.get(storage.code_book, storage.code_book), storage.packing]
        kept, offsets = [] if scales.data_ptr() == weight.scales.data_ptr() else [scales], None
        if weight.zeros is not None:  # the kernel knows the codes as those of a grid around 0
            zeros = zero_levels(weight.zeros, storage)
            kept.append(zeros.bitwise_not_().add_(_MIDDLES[storage.code_book] + 1).view(torch.int8))  # middle - zero
            offsets = kept[-1].data_ptr()
        return cls(weight.codes.data_ptr(), scales.data_ptr(), offsets, *sizes, book, tuple(kept))


def addresses(weight: Held, bias: Tensor | None, rounding: Rounding | None) -> tuple[int | None, ...]:
    """Of codes, scales, offsets, bias, and an input's scale and zero point, None for those that there are not."""
    fixed = (None, None) if rounding is None else (rounding.scale, rounding.zero_point)
    given = (None if one is None else one.data_ptr() for one in (bias, *fixed))
    return weight.codes, weight.scales, weight.offsets, *given


def bits_of(rounding: Rounding | None) -> int:
    """Bits of an input; 0 as the library has it where it stays as it is."""
    return 0 if rounding is None else rounding.bits


def fault(
    weight: Held | Storage, x: Tensor, bias: Tensor | None, rounding: Rounding | None, fewest_bits: int = 2
) -> str | None:
    """What a kernel, which trusts its arguments, would stumble over; None where nothing is wrong."""
    if x.dim() == 0 or x.shape[-1] != weight.columns:
        return f"x ends in {x.shape[-1] if x.dim() else 0} columns"
    if bias is not None and bias.shape != (weight.rows,):
        return "the bias is of another size"
    if rounding is None:
        return None
    scale, zero_point = rounding.scale, rounding.zero_point
    if scale is not None and (scale.numel() != 1 or scale.dtype != torch.float32):
        return "the input's scale is not one FP32 number"
    if zero_point is not None and (scale is None or zero_point.numel() != 1 or zero_point.dtype != torch.int32):
        return "the input's zero point is not one 32-bit integer"
    return None if fewest_bits <= rounding.bits <= 8 else f"inputs of {rounding.bits} bits"


def failure(code: int, x: Tensor) -> Exception:
    """What the library's function for linear layers says by its number."""
    if code == 2:
        return AbridgedError("the input's zero point is outside of its levels")
    return MemoryError(f"no memory to make {x.numel()} activations ready")


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """The kernels to use, or None for the reference: where it was asked for, or where there is no library."""
    path = os.environ.get(VARIABLE, "auto").lower()
    if path in ("reference", "triton"):
        return None
    library = _library()
    if library is None:
        if path != "auto":
            raise AbridgedError(f"{VARIABLE} is {path}, but abridged was installed without its compiled kernels")
        print("abridged: no compiled kernels were installed; running the slower reference", file=sys.stderr)
        return None
    return Kernels(library, path)


def _library() -> ctypes.CDLL | None:
    """The library beside this file, or where the package was installed: a checkout may be used in place."""
    if LIBRARY_VARIABLE in os.environ:
        return ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
    candidates = sorted(Path(__file__).parent.glob("abridged_kernels.*"))
    with suppress(metadata.PackageNotFoundError):
        installed = metadata.distribution("abridged")
        candidates += [Path(str(file.locate())) for file in installed.files or () if file.stem == "abridged_kernels"]
    for path in candidates:
        if path.suffix in (".so", ".dylib", ".dll") and path.exists():
            library = ctypes.CDLL(str(path))
            if library.abridged_interface() == INTERFACE:
                return library
    return None


def _torch_team() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for path in sorted({line.split()[-1] for line in lines if "omp" in line.rsplit("/", 1)[-1]}):
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
