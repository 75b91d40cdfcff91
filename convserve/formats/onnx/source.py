"""One ONNX node as the importer reads it: typed attributes with their defaults, named in every error."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from convserve.errors import ModelFormatError
from convserve.formats.onnx.reader import OnnxFile
from convserve.formats.views import LARGEST, Size

__all__ = ["FLOATS", "LARGEST", "Source"]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)

_REQUIRED: Any = object()
_FIELDS = {
    AttributeProto.INT: "i",
    AttributeProto.INTS: "ints",
    AttributeProto.FLOAT: "f",
    AttributeProto.FLOATS: "floats",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
}


class Source:
    """One node of the file: op, inputs and outputs by name ("" where left out), opset and attributes."""

    def __init__(self, proto: NodeProto, opset: int, file: OnnxFile) -> None:
        self.op = proto.op_type
        self.domain = proto.domain
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self.opset = opset
        self.name = proto.name or next((name for name in proto.output if name), "")
        self._file = file
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"

    def has(self, name: str) -> bool:
        """Tell whether the file gives the attribute."""
        return name in self._attributes

    def value(self, name: str) -> Any:
        """Return an attribute as the message holds it; ModelFormatError where missing or of an unknown type."""
        attribute = self._attributes.get(name)
        if attribute is None:
            raise ModelFormatError(f"{self} has no attribute '{name}'")
        if attribute.type not in _FIELDS:
            raise ModelFormatError(f"{self}: the attribute '{name}' has an unexpected type")
        return getattr(attribute, _FIELDS[attribute.type])

    def _typed(self, name: str, default: Any, kind: int) -> Any:
        if not self.has(name) and default is not _REQUIRED:
            return default
        value = self.value(name)
        if self._attributes[name].type != kind:
            wanted = AttributeProto.AttributeType.Name(kind)  # type: ignore[arg-type]
            raise ModelFormatError(f"{self}: the attribute '{name}' must be of type {wanted}")
        return value

    def integer(self, name: str, default: int = _REQUIRED) -> int:
        """Return an integer attribute."""
        return int(self._typed(name, default, AttributeProto.INT))

    def real(self, name: str, default: float = _REQUIRED) -> float:
        """Return a float attribute."""
        return float(self._typed(name, default, AttributeProto.FLOAT))

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self._typed(name, default, AttributeProto.STRING)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def integers(self, name: str, default: tuple[int, ...] | None = _REQUIRED) -> tuple[int, ...]:
        """Return a list of integers as a tuple (or the default as it is, which may be None)."""
        value = self._typed(name, default, AttributeProto.INTS)
        return tuple(int(item) for item in value) if value is not None else None  # type: ignore[return-value]

    def reals(self, name: str) -> tuple[float, ...]:
        """Return a list of floats as a tuple."""
        return tuple(float(item) for item in self._typed(name, _REQUIRED, AttributeProto.FLOATS))

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor attribute as an array in its own dtype."""
        value: TensorProto = self._typed(name, _REQUIRED, AttributeProto.TENSOR)
        return self._file.array(value, f"the attribute '{name}' of {self}")

    def axes(self, inputs: Sequence[np.ndarray], *, since: int = 13) -> tuple[int, ...] | None:
        """Return the node's axes: an attribute before the opset `since`, then the second input."""
        if self.opset < since:
            return self.integers("axes", None)
        if not inputs:
            return None
        if inputs[0].dtype.kind not in "iu":
            raise ModelFormatError(f"{self}: its axes are no whole numbers")
        return tuple(int(axis) for axis in inputs[0].reshape(-1))

    def cut_shape(self, sizes: Sequence[Size]) -> Sequence[Size]:
        """Return what a Shape node gives of these sizes: all, or from opset 15 those from start to end."""
        if self.opset < 15:
            return sizes
        return sizes[self.integer("start", 0) : self.integer("end", len(sizes))]
