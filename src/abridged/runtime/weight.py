"""A packed matrix in memory, and the dense one that it shows to whoever expects a stock layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from abridged.core.errors import AbridgedError
from abridged.storage.matrix import Storage
from abridged.storage.packing import check_packed, check_zeros, unpack, unpack_rows, unpack_zeros

NO_GRADIENTS = "packed weights are codes, which have no gradients: train adapters beside them (--recipe lora)"


class PackedWeight(NamedTuple):
    """codes: flat uint8. scales: (num_scales,), used in FP32. storage: how they lie. zeros: flat uint8, the zero points
    packed as one row of codes; None where the code book has none."""

    codes: Tensor
    scales: Tensor
    storage: Storage
    zeros: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and zero points, as the torch ops take them."""
        return self.codes, self.scales, self.zeros

    def check(self) -> None:
        """Raise AbridgedError unless all are of the type and size that the storage says."""
        check_packed(self.codes, self.storage)
        count, expected = self.scales.numel(), self.storage.num_scales
        if count != expected:
            rows, columns = self.storage.rows, self.storage.columns
            raise AbridgedError(f"{count} scales for a matrix of {rows}x{columns} that has {expected}")
        check_zeros(self.zeros, self.storage)

    def levels(self) -> Tensor:
        """(rows, columns) int8, or uint8 where there are zero points."""
        return unpack(self.codes, self.storage)

    def zero_points(self) -> Tensor | None:
        """(num_scales,) FP32, in levels."""
        return None if self.zeros is None else unpack_zeros(self.zeros, self.storage)

    def row_scales(self) -> Tensor:
        """(rows, k) FP32, k scales in each row; a scale that covers several rows is said for each."""
        return self._by_row(self.scales.float())

    def row_zeros(self) -> Tensor | None:
        """(rows, k) FP32, the zero points beside `row_scales`."""
        zeros = self.zero_points()
        return None if zeros is None else self._by_row(zeros)

    def _by_row(self, values: Tensor) -> Tensor:
        rows = self.storage.rows
        if len(values) >= rows:
            return values.view(rows, -1)
        return values.view(-1, 1, 1).expand(-1, rows // len(values), 1).reshape(rows, 1)

    def dequantize(self) -> Tensor:
        """The whole matrix (rows, columns) in FP32, exactly as it was in training."""
        self.check()
        return self.scaled(self.codes.view(self.storage.rows, -1), self.row_scales(), self.row_zeros())

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids (...) as (..., columns) FP32, reading no others. Raises IndexError for one that is not."""
        self.check()
        storage, wanted = self.storage, ids.reshape(-1)
        codes = self.codes.view(storage.rows, -1).index_select(0, wanted)  # checks the ids, on every device

        def chosen(values: Tensor) -> Tensor:
            if storage.num_scales >= storage.rows:
                return values.view(storage.rows, -1).index_select(0, wanted)
            return values.index_select(0, wanted // (storage.rows // storage.num_scales))[:, None]

        zeros = self.zero_points()
        found = self.scaled(codes, chosen(self.scales.float()), None if zeros is None else chosen(zeros))
        return found.contiguous().view(*ids.shape, storage.columns)  # rows of whole bytes may have been cut

    def scaled(self, codes: Tensor, row_scales: Tensor, row_zeros: Tensor | None) -> Tensor:
        """Weights (n, columns) FP32 of n packed rows (n, row_bytes) with their scales and zero points (n, k)."""
        levels = unpack_rows(codes, self.storage, torch.float32)
        count = row_scales.shape[1]
        grouped = levels.reshape(len(levels), count, levels.shape[1] // count)  # of no rows, too
        if row_zeros is not None:
            grouped -= row_zeros[:, :, None]
        grouped *= row_scales[:, :, None]  # in place: it may be the largest tensor there is
        return grouped.view_as(levels)


class DenseWeight(Tensor):
    """A matrix that is made when somebody computes with it; its type, shape and device cost nothing.

    Modelling code of transformers reads ``module.weight.dtype`` at every step. What is computed is an ordinary tensor
    without gradients; writing into it is an AbridgedError, for nothing would come of it.
    """

    _is_hf_initialized = True  #: transformers has nothing to initialise here
    _make: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, make: Callable[[], Tensor], shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> DenseWeight:
        made: DenseWeight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made._make = make
        return made

    def dense(self) -> Tensor:
        """The values (rows, columns)."""
        with torch.no_grad():
            return self._make().to(self.dtype)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable and isinstance(args[0], cls):
            raise AbridgedError("a packed weight cannot be written to")
        args, kwargs = tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Raises AbridgedError where gradients are asked for: the next one that is made would not have them."""
        if requires_grad:
            raise AbridgedError(NO_GRADIENTS)
        return self

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.dense()

    def numpy(self, **kwargs: Any) -> Any:
        return self.dense().numpy(**kwargs)

    def tolist(self) -> Any:
        return self.dense().tolist()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.dense()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({tuple(self.shape)}, dtype={self.dtype}, device={self.device})"


class StandIn(nn.Module):
    """What stands where a stock linear layer or embedding stood, and keeps its contract."""

    @property
    def rows(self) -> int:
        """Output features, or vocabulary entries."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """Input features, or the width of an embedding."""
        raise NotImplementedError

    def dequantized(self) -> Tensor:
        """The matrix (rows, columns), in FP32 where it is packed."""
        raise NotImplementedError

    def like(self) -> tuple[torch.dtype, torch.device]:
        """Type and device that the weight of a stock layer would have."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """(rows, columns) in the type that the model computes in, made when it is used; see `DenseWeight`."""
        dtype, device = self.like()
        if torch.compiler.is_compiling():
            return self.dequantized().to(dtype)
        return DenseWeight(self.dequantized, (self.rows, self.columns), dtype, device)


class LinearSizes:
    """A linear layer's sizes, under their names."""

    out_features = property(lambda self: self.rows)
    in_features = property(lambda self: self.columns)


class EmbeddingSizes:
    """An embedding's sizes, under their names, and what else a stock one has."""

    num_embeddings = property(lambda self: self.rows)
    embedding_dim = property(lambda self: self.columns)
    padding_idx: int | None = None
    #: Multiplies the rows, as in BART.
    embed_scale: float = 1.0

    def take_settings(self, stock: Any) -> None:
        """What the embedding that stood here, or still stands in the student, does beside looking up rows."""
        # a number in most families, a buffer in Gemma 3, which may be on the meta device
        scale: Any = getattr(stock, "scalar_embed_scale", None) or getattr(stock, "embed_scale", 1.0)
        self.embed_scale, self.padding_idx = float(scale), stock.padding_idx
