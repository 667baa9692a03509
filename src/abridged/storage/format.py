"""What ``quantization_config`` says: for every compressed module, how it is stored. No torch here.

Version 2 records the model's view; of a checkpoint of version 1 it is derived. Version 3 records what the files beside
the weights say, which before nothing vouched for. Version 4 has code books of 3, 5 and 6 bits, and zero points. Version
5 hashes each tensor by itself, so that all cores can.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from abridged.core.errors import AbridgedError
from abridged.storage.code_books import storage_bits
from abridged.storage.factors import Factors
from abridged.storage.matrix import Storage
from abridged.storage.shapes import ShapesSpec
from abridged.storage.view import View

FORMAT_VERSION: Literal[5] = 5
QUANT_METHOD = "abridged"

Float = Literal["float32", "float16"]
Dense = Literal["float32", "float16", "bfloat16"]
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
_MODULE_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
FILE_NAMES = {"codes": "weight", "scales": "weight_scale", "zeros": "weight_zero_point"}
"""What the parameters of a packed module are called in a file."""

GUARDED = "abridged."
"""Before the name of the tensor whose place is a guard's."""

FIRST_CODE_BOOKS = ("binary", "ternary", "quaternary", "int4", "int8")
"""Those of versions before 4."""

_MAX_SIZE = 1 << 31
_MAX_MODULES = 1 << 17
_VIEW = TypeAdapter(View)
Spec = TypeVar("Spec", bound="MatrixSpec")


class ActivationSpec(BaseModel):
    """An activation quantiser: static (scale and zero point are stored) or dynamic (a scale for each token)."""

    model_config = _STRICT
    kind: Literal["static", "dynamic"]
    bits: int
    symmetric: bool | None = None
    """Static ones only: around 0, or with a zero point."""

    @model_validator(mode="after")
    def _check(self) -> ActivationSpec:
        if self.bits not in (1, 4, 8) or (self.bits == 1 and self.kind == "dynamic"):
            raise ValueError(f"activations are stored in 1, 4 or 8 bits, dynamic ones in 4 or 8, not {self.bits}")
        if (self.kind == "static") != (self.symmetric is not None):
            raise ValueError("symmetric is given for a static activation quantiser, and only for one")
        return self


class MatrixSpec(BaseModel):
    """A packed matrix (rows, columns), rows being output features or vocabulary entries."""

    model_config = _STRICT
    kind: str
    rows: int = Field(ge=1, lt=_MAX_SIZE)
    columns: int = Field(ge=1, lt=_MAX_SIZE)
    code_book: str
    packing: str
    bits: float
    """Storage bits of a code, 1.6 for five to a byte; follows from code book and packing and must agree with them."""
    num_scales: int = Field(ge=1)
    """Each scale covers rows * columns / num_scales consecutive weights of the row-major matrix."""
    scale_dtype: Float = "float32"
    tied: str | None = None
    """The embedding whose packed matrix this module reads instead of one of its own."""

    @model_validator(mode="after")
    def _check(self) -> MatrixSpec:
        try:
            _ = self.storage
        except AbridgedError as error:
            raise ValueError(str(error)) from None
        if self.bits != storage_bits(self.code_book, self.packing):
            raise ValueError(f"{self.code_book} codes packed as {self.packing} are not of {self.bits} bits")
        return self

    @classmethod
    def of(cls: type[Spec], storage: Storage, scale_dtype: str, **rest: Any) -> Spec:
        """Of a matrix that lies so in memory; `rest` are the other fields."""
        bits = storage_bits(storage.code_book, storage.packing)
        fields = {name: getattr(storage, name) for name in ("rows", "columns", "code_book", "packing", "num_scales")}
        return cls(**fields, bits=bits, scale_dtype=scale_dtype, **rest)

    @property
    def storage(self) -> Storage:
        """How the matrix lies in memory."""
        return Storage(self.rows, self.columns, self.code_book, self.packing, self.num_scales)

    @property
    def granularity(self) -> str:
        """What a scale covers: tensor, block (of rows), row or group (within a row)."""
        if self.num_scales == 1:
            return "tensor"
        if self.num_scales < self.rows:
            return "block"
        return "row" if self.num_scales == self.rows else "group"

    def shared(self) -> dict[str, Any]:
        """The fields that two modules sharing one matrix must have in common."""
        return self.model_dump(include=set(MatrixSpec.model_fields) - {"kind", "tied"})


class LinearSpec(MatrixSpec):
    """A linear layer."""

    kind: Literal["linear"]
    bias: bool
    input: ActivationSpec | None = None


class EmbeddingSpec(MatrixSpec):
    """An embedding."""

    kind: Literal["embedding"]


class AttentionSpec(BaseModel):
    """Activation quantisers within a self-attention."""

    model_config = _STRICT
    kind: Literal["attention"]
    query: ActivationSpec
    key: ActivationSpec
    value: ActivationSpec
    probabilities: ActivationSpec


class KroneckerSpec(BaseModel):
    """A linear layer or an embedding made of Kronecker factors, whose weights are those of its children.

    The children are `left` and `right`, or `blocks.N.left` and `blocks.N.right` of a fused one; a child that is packed
    has a specification of its own.
    """

    model_config = _STRICT
    kind: Literal["kronecker"]
    reads: Literal["linear", "embedding"]
    """What the module is: a linear layer, or one that looks rows up."""
    left_rows: int = Field(ge=1, lt=_MAX_SIZE)
    left_columns: int = Field(ge=1, lt=_MAX_SIZE)
    right_rows: int = Field(ge=1, lt=_MAX_SIZE)
    right_columns: int = Field(ge=1, lt=_MAX_SIZE)
    rank: int = Field(ge=1, lt=_MAX_SIZE)
    fused: int = Field(ge=1, le=64)
    bias: bool = False
    tied: str | None = None
    """The module whose factors this one reads."""
    error: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """‖W − ΣA⊗B‖ / ‖W‖ where training began, W being the original's matrix; for information."""

    @model_validator(mode="after")
    def _check(self) -> KroneckerSpec:
        factors = self.factors
        if factors.rows >= _MAX_SIZE or factors.columns >= _MAX_SIZE:
            raise ValueError(f"{factors} multiply out to more than any model has")
        most = min(self.left_rows * self.left_columns, self.right_rows * self.right_columns)
        if self.rank > most:
            raise ValueError(f"rank {self.rank} is above {most}, with which {factors} is exact")
        if self.reads == "embedding" and (self.right_rows != 1 or self.fused != 1 or self.bias):
            raise ValueError("a factored embedding has one right factor of one row, and no bias")
        return self

    @classmethod
    def of(cls, factors: Factors, embedding: bool, **rest: Any) -> KroneckerSpec:
        """Of a linear layer or an embedding made of `factors`; `rest` are the other fields."""
        (left_rows, left_columns), (right_rows, right_columns) = factors.left, factors.right
        return cls(
            kind="kronecker",
            reads="embedding" if embedding else "linear",
            left_rows=left_rows,
            left_columns=left_columns,
            right_rows=right_rows,
            right_columns=right_columns,
            rank=factors.rank,
            fused=factors.fused,
            **rest,
        )

    @property
    def factors(self) -> Factors:
        left, right = (self.left_rows, self.left_columns), (self.right_rows, self.right_columns)
        return Factors(left, right, self.rank, self.fused)

    @property
    def rows(self) -> int:
        return self.factors.rows

    @property
    def columns(self) -> int:
        return self.factors.columns

    def children(self) -> dict[str, tuple[int, int]]:
        """Path from the module and shape of every factor's weight."""
        blocks = [""] if self.fused == 1 else [f"blocks.{index}." for index in range(self.fused)]
        factors = self.factors
        shapes = {"left": factors.left_weight, "right": factors.right_weight}
        return {block + side: shape for block in blocks for side, shape in shapes.items()}


ModuleSpec = LinearSpec | EmbeddingSpec | AttentionSpec | KroneckerSpec
_KINDS: dict[str, type[ModuleSpec]] = {
    "linear": LinearSpec,
    "embedding": EmbeddingSpec,
    "attention": AttentionSpec,
    "kronecker": KroneckerSpec,
}


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileDigest(BaseModel):
    """SHA-256 of a file beside the weights: of what it says (see ``checkpoint.files.REWRITTEN``), of its bytes, or of
    both, of which one must be right."""

    model_config = _STRICT
    content: Sha256 | None = None
    bytes: Sha256 | None = None


class QuantizationSpec(BaseModel):
    """The whole of ``quantization_config``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    quant_method: Literal["abridged"] = "abridged"
    version: Literal[1, 2, 3, 4, 5] = 5
    unquantized_dtype: Dense = "float32"
    """How position embeddings, norms and biases are stored."""
    sha256: Sha256 | None = None
    """Digest of the stored tensors and of this configuration, see :class:`ContentDigest`."""
    files: dict[str, FileDigest] | None = None
    """What config.json, generation config and tokenizer files are, by name; version 3, once it is saved."""
    guard: str | None = None
    """A tensor of the stock model whose place is empty, while it is stored as `GUARDED` and its name: where no packed
    matrix stands in the way of a process without abridged, this does; version 3."""
    shapes: ShapesSpec | None = None
    """The sizes of a model that was pruned, where they are smaller than config.json makes them."""
    view: View | None = None
    """What the model is made of before it is cut, see ``abridged.storage.view``; version 2."""
    modules: dict[str, ModuleSpec]

    @model_validator(mode="after")
    def _check(self) -> QuantizationSpec:
        if self.view is not None:
            if self.version == 1:
                raise ValueError("a checkpoint of version 1 has no view")
            self.view.check()
        if self.version < 3 and (self.files is not None or self.guard is not None):
            raise ValueError(f"a checkpoint of version {self.version} has no files and no guard")
        newer = {spec.code_book for spec in self.matrices().values()} - set(FIRST_CODE_BOOKS)
        if self.version < 4 and newer:
            raise ValueError(f"a checkpoint of version {self.version} has no {min(newer)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without what is at its default within a module."""
        data = self.model_dump(mode="json", exclude={"modules", "view"}, exclude_none=True)
        if self.view is not None:
            data["view"] = _VIEW.dump_python(self.view, mode="json", exclude_defaults=True)
        modules = {path: spec.model_dump(exclude_none=True) for path, spec in self.modules.items()}
        return {**data, "modules": modules}

    def matrices(self) -> dict[str, LinearSpec | EmbeddingSpec]:
        """The modules with a packed matrix, tied ones included."""
        return {path: spec for path, spec in self.modules.items() if isinstance(spec, MatrixSpec)}

    def tensors_of(self, path: str) -> tuple[str, ...]:
        """The parameters of the packed module at `path`: of `FILE_NAMES`, those that it has."""
        spec = self.modules[path]
        has_zeros = isinstance(spec, MatrixSpec) and spec.storage.zero_bytes > 0
        return tuple(name for name in FILE_NAMES if name != "zeros" or has_zeros)

    def factored(self) -> dict[str, KroneckerSpec]:
        """The modules made of Kronecker factors, tied ones included."""
        return {path: spec for path, spec in self.modules.items() if isinstance(spec, KroneckerSpec)}

    def activations(self) -> list[ActivationSpec]:
        """Every activation quantiser."""
        return [part for spec in self.modules.values() for _, part in spec if isinstance(part, ActivationSpec)]

    def wholes(self) -> dict[str, str]:
        """{path of a factor: path of the module that it is a factor of}."""
        return {f"{path}.{child}": path for path, spec in self.factored().items() for child in spec.children()}

    def tied(self) -> dict[str, str]:
        """{module that reads another's packed matrix: module that owns it}."""
        return {path: spec.tied for path, spec in self.matrices().items() if spec.tied}

    def tied_modules(self) -> dict[str, str]:
        """{module of the model that reads another's weight: module that owns it}, packed or factored."""
        wholes = self.wholes()
        packed = {path: owner for path, owner in self.tied().items() if path not in wholes}
        return packed | {path: spec.tied for path, spec in self.factored().items() if spec.tied}

    def tied_tensors(self) -> dict[str, str]:
        """{parameter that is another: its owner}: of packed matrices, and factors that are not packed."""
        ties: dict[str, str] = {}
        for path, owner in self.tied().items():
            ties |= {f"{path}.{name}": f"{owner}.{name}" for name in self.tensors_of(owner)}
        for path, spec in self.factored().items():
            for child in spec.children() if spec.tied else ():
                if f"{path}.{child}" not in self.modules:
                    ties[f"{path}.{child}.weight"] = f"{spec.tied}.{child}.weight"
        return ties


class ContentDigest:
    """SHA-256 of a checkpoint's content, whatever the number of its files.

    Over the specification (compact JSON with sorted keys, without its ``sha256``), then for every tensor in order of
    name a line of JSON: its name, safetensors dtype and shape, and the SHA-256 of its bytes. Before version 5 that is
    left out, and the bytes themselves follow.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        data = {key: value for key, value in spec.to_dict().items() if key != "sha256"}
        self._sha = hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], sha256: str | None = None) -> None:
        """Add a tensor; without its hash its bytes follow in any number of calls of :meth:`update`."""
        told = [name, dtype, list(shape), *([] if sha256 is None else [sha256])]
        self._sha.update(b"\n" + json.dumps(told, separators=(",", ":")).encode() + b"\n")

    def update(self, data: bytes | memoryview) -> None:
        self._sha.update(data)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def parse_spec(data: Any) -> QuantizationSpec:
    """Validate ``quantization_config``. Raises :class:`AbridgedError` saying what is wrong where."""
    if not isinstance(data, Mapping) or data.get("quant_method") != QUANT_METHOD:
        raise AbridgedError('this is not a checkpoint of abridged: no quantization_config of quant_method "abridged"')
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise AbridgedError(f"quantization_config: version must be a positive integer, not {_short(version)}")
    if version > FORMAT_VERSION:
        raise AbridgedError(
            f"the checkpoint is of format version {version} and this abridged reads up to {FORMAT_VERSION}: upgrade it"
        )
    modules = data.get("modules")
    if not isinstance(modules, Mapping):
        raise AbridgedError("quantization_config: modules must map module paths to how they are stored")
    if len(modules) > _MAX_MODULES:
        raise AbridgedError(f"quantization_config: {len(modules)} modules are more than any model has")
    parsed = {path: parse_module(path, module) for path, module in modules.items()}
    whole = {**data, "modules": parsed}
    if data.get("view") is not None:
        whole["view"] = _parse_view(data["view"])
    spec = _validate(QuantizationSpec, whole, "quantization_config")
    _check_tied(spec)
    return spec


def parse_module(path: Any, data: Any) -> ModuleSpec:
    """Validate how one module is stored. Raises :class:`AbridgedError` saying what is wrong."""
    if not isinstance(path, str) or len(path) > 512 or not _MODULE_PATH.fullmatch(path):
        raise AbridgedError(f"quantization_config: {_short(path)} is not a module's path")
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise AbridgedError(f"quantization_config: {path} is of unknown kind {_short(kind)}")
    return _validate(_KINDS[kind], data, f"quantization_config: {path}")


def _parse_view(data: Any) -> View:
    try:
        return _VIEW.validate_json(json.dumps(data))
    except ValidationError as error:
        raise AbridgedError(f"quantization_config: view{_first_fault(error)}") from None


def _check_tied(spec: QuantizationSpec) -> None:
    for path, owner in spec.tied().items():
        own, shared = spec.modules[path], spec.modules.get(owner)
        if not isinstance(shared, (EmbeddingSpec, LinearSpec)) or shared.tied or not _may_share(path, owner, spec):
            named = _short(owner)
            raise AbridgedError(f"quantization_config: {path} is tied to {named}, which is no embedding of its own")
        if own.shared() != shared.shared():  # type: ignore[union-attr]
            raise AbridgedError(f"quantization_config: {path} is tied to {owner} but stored differently")
    for path, own in spec.factored().items():
        _check_factored(path, own, spec)


def _may_share(path: str, owner: str, spec: QuantizationSpec) -> bool:
    """Whether a module may read `owner`'s matrix: an embedding's, or the same factor of the embedding it is tied to."""
    if isinstance(spec.modules[owner], EmbeddingSpec):
        return True
    parent, _, child = path.rpartition(".")
    whole = spec.modules.get(parent)
    return isinstance(whole, KroneckerSpec) and owner == f"{whole.tied}.{child}"


def _check_factored(path: str, own: KroneckerSpec, spec: QuantizationSpec) -> None:
    for child, shape in own.children().items():
        packed = spec.modules.get(f"{path}.{child}")
        if packed is not None and (not isinstance(packed, MatrixSpec) or (packed.rows, packed.columns) != shape):
            raise AbridgedError(f"quantization_config: {path}.{child} is no factor of {shape[0]}x{shape[1]}")
    if own.tied is None:
        return
    shared = spec.modules.get(own.tied)
    if not isinstance(shared, KroneckerSpec) or shared.tied or shared.reads != "embedding":
        raise AbridgedError(
            f"quantization_config: {path} is tied to {_short(own.tied)}, which is no factored embedding of its own"
        )
    if own.factors != shared.factors:
        raise AbridgedError(f"quantization_config: {path} is tied to {own.tied} but factored differently")
    for child in own.children():
        mine, its = spec.modules.get(f"{path}.{child}"), spec.modules.get(f"{own.tied}.{child}")
        if (mine is None) != (its is None) or (isinstance(mine, MatrixSpec) and mine.tied != f"{own.tied}.{child}"):
            raise AbridgedError(f"quantization_config: {path}.{child} is not tied to {own.tied}.{child}")


def _validate(model: Any, data: Any, where: str) -> Any:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise AbridgedError(f"{where}{_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    """Where the first fault is, and what."""
    fault = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if fault["type"] in ("missing", "value_error") else f" (given: {_short(fault['input'])})"
    return f"{': ' + location if location else ''}: {message}{given}"


def _short(value: Any) -> str:
    """A value for an error message: a checkpoint may hold anything, at any length."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
