"""What ``quantization_config`` says, version 1: for every compressed module, how it is stored. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from abridged.checkpoint.code_books import check_packing, row_bytes, storage_bits
from abridged.checkpoint.shapes import ShapesSpec
from abridged.errors import AbridgedError

FORMAT_VERSION = 1
QUANT_METHOD = "abridged"

Float = Literal["float32", "float16"]
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
_MODULE_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MAX_SIZE = 1 << 31
_MAX_MODULES = 1 << 17


class ActivationSpec(BaseModel):
    """An activation quantiser: static (scale and zero point are stored) or dynamic (a scale for each token)."""

    model_config = _STRICT
    kind: Literal["static", "dynamic"]
    bits: int
    symmetric: bool | None = None
    """Static ones only: around 0, or with a zero point."""

    @model_validator(mode="after")
    def _check(self) -> ActivationSpec:
        if self.bits not in (4, 8):
            raise ValueError(f"activations are stored in 4 or 8 bits, not {self.bits}")
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
    """Storage bits of a code: 1, 1.6, 2, 4 or 8; follows from code book and packing and must agree with them."""
    num_scales: int = Field(ge=1)
    """Each scale covers rows * columns / num_scales consecutive weights of the row-major matrix."""
    scale_dtype: Float = "float32"
    tied: str | None = None
    """The embedding whose packed matrix this module reads instead of one of its own."""

    @model_validator(mode="after")
    def _check(self) -> MatrixSpec:
        try:
            check_packing(self.code_book, self.packing)
        except AbridgedError as error:
            raise ValueError(str(error)) from None
        if self.bits != storage_bits(self.code_book, self.packing):
            raise ValueError(f"{self.code_book} codes packed as {self.packing} are not of {self.bits} bits")
        if self.num_scales <= self.rows:
            fits = self.rows % self.num_scales == 0
        else:
            fits = self.num_scales % self.rows == 0 and self.columns % (self.num_scales // self.rows) == 0
        if not fits:
            raise ValueError(f"{self.num_scales} scales do not divide a matrix of {self.rows}x{self.columns}")
        return self

    @property
    def packed_bytes(self) -> int:
        return self.rows * row_bytes(self.columns, self.code_book, self.packing)

    @property
    def granularity(self) -> str:
        """What a scale covers: tensor, block (of rows), row or group (within a row)."""
        if self.num_scales == 1:
            return "tensor"
        if self.num_scales < self.rows:
            return "block"
        return "row" if self.num_scales == self.rows else "group"

    def storage(self) -> dict[str, Any]:
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


ModuleSpec = LinearSpec | EmbeddingSpec | AttentionSpec
_KINDS: dict[str, type[LinearSpec] | type[EmbeddingSpec] | type[AttentionSpec]] = {
    "linear": LinearSpec,
    "embedding": EmbeddingSpec,
    "attention": AttentionSpec,
}


class QuantizationSpec(BaseModel):
    """The whole of ``quantization_config``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    quant_method: Literal["abridged"] = "abridged"
    version: Literal[1] = 1
    unquantized_dtype: Float = "float32"
    """How position embeddings, norms and biases are stored."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest of the stored tensors and of this configuration, see :class:`ContentDigest`."""
    shapes: ShapesSpec | None = None
    """The sizes of a model that was pruned, where they are smaller than config.json makes them."""
    modules: dict[str, ModuleSpec]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without what is at its default within a module."""
        data = self.model_dump(mode="json", exclude={"modules"}, exclude_none=True)
        modules = {path: spec.model_dump(exclude_none=True) for path, spec in self.modules.items()}
        return {**data, "modules": modules}

    def matrices(self) -> dict[str, LinearSpec | EmbeddingSpec]:
        """The modules with a packed matrix, tied ones included."""
        return {path: spec for path, spec in self.modules.items() if isinstance(spec, MatrixSpec)}

    def tied(self) -> dict[str, str]:
        """{module that reads another's matrix: module that owns it}."""
        return {path: spec.tied for path, spec in self.matrices().items() if spec.tied}


class ContentDigest:
    """SHA-256 of a checkpoint's content, whatever the number of its files.

    Over the specification (compact JSON with sorted keys, without its ``sha256``), then for every tensor in order of
    name: its name, safetensors dtype and shape in one line of JSON, and its bytes.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        data = {key: value for key, value in spec.to_dict().items() if key != "sha256"}
        self._sha = hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Begin a tensor; its bytes follow in any number of calls of :meth:`update`."""
        self._sha.update(b"\n" + json.dumps([name, dtype, list(shape)], separators=(",", ":")).encode() + b"\n")

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
    parsed = {path: _parse_module(path, module) for path, module in modules.items()}
    spec = _validate(QuantizationSpec, {**data, "modules": parsed}, "quantization_config")
    _check_tied(spec)
    return spec


def _parse_module(path: Any, data: Any) -> ModuleSpec:
    if not isinstance(path, str) or len(path) > 512 or not _MODULE_PATH.fullmatch(path):
        raise AbridgedError(f"quantization_config: {_short(path)} is not a module's path")
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise AbridgedError(f"quantization_config: {path} is of unknown kind {_short(kind)}")
    return _validate(_KINDS[kind], data, f"quantization_config: {path}")


def _check_tied(spec: QuantizationSpec) -> None:
    for path, owner in spec.tied().items():
        own, shared = spec.modules[path], spec.modules.get(owner)
        if not isinstance(shared, EmbeddingSpec) or shared.tied:
            named = _short(owner)
            raise AbridgedError(f"quantization_config: {path} is tied to {named}, which is no embedding of its own")
        if own.storage() != shared.storage():  # type: ignore[union-attr]
            raise AbridgedError(f"quantization_config: {path} is tied to {owner} but stored differently")


def _validate(model: Any, data: Any, where: str) -> Any:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        location = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if fault["type"] in ("missing", "value_error") else f" (given: {_short(fault['input'])})"
        raise AbridgedError(f"{where}{': ' + location if location else ''}: {message}{given}") from None


def _short(value: Any) -> str:
    """A value for an error message: a checkpoint may hold anything, at any length."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
