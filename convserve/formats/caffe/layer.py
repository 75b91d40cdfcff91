"""One layer of a Caffe network, named in every error, with the readers of what its parameters say."""

import math
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.views import LARGEST, View

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """A layer as the file has it."""

    proto: pb.LayerParameter

    def __str__(self) -> str:
        return f"{self.type} '{self.name}'"

    @property
    def name(self) -> str:
        """The layer's name; that of what it writes where it has none."""
        return self.proto.name or (self.proto.top[0] if self.proto.top else "")

    @property
    def type(self) -> str:
        """The layer's type, as the newer files spell it."""
        return self.proto.type

    @property
    def bottoms(self) -> list[str]:
        """What the layer reads."""
        return list(self.proto.bottom)

    @property
    def tops(self) -> list[str]:
        """What the layer writes."""
        return list(self.proto.top)

    def check_numbers(self) -> None:
        """Raise ModelFormatError where a parameter is no finite number."""
        _check_finite(self, self.proto, "")

    def whole(self, param: Message, name: str, low: int = 1) -> int:
        """Return a number that is at least low; ModelFormatError where it is not, or is missing."""
        value = int(getattr(param, name))
        if not low <= value <= LARGEST:
            said = value if param.HasField(name) else "missing"
            raise ModelFormatError(f"{self}: {name} is {said}; it must be from {low} to {LARGEST}")
        return value

    def pair(self, param: Message, name: str, short: str, default: int, low: int) -> tuple[int, int]:
        """Return (vertical, horizontal) of name, given once for both, twice, or as short_h and short_w."""
        given: Any = getattr(param, name)
        is_list = hasattr(given, "extend")
        values = [int(value) for value in given] if is_list else [int(given)] if param.HasField(name) else []
        sides = [f"{short}_h", f"{short}_w"]
        if any(param.HasField(side) for side in sides):
            if values:
                raise ModelFormatError(f"{self} gives both {name} and {' or '.join(sides)}")
            values = [int(getattr(param, side)) if param.HasField(side) else default for side in sides]
        if len(values) > 2:
            raise UnsupportedOpError(f"{self}: {name} is {values}; supported are two dimensions")
        pair = (values[0], values[-1]) if values else (default, default)
        if not all(low <= value <= LARGEST for value in pair):
            said = f"{pair[0]}x{pair[1]}" if values else "missing"
            raise ModelFormatError(f"{self}: {name} is {said}; it must be from {low} to {LARGEST}")
        return pair

    def axis(self, axis: int, view: View, name: str = "axis") -> int:
        """Return an axis of a view counted from the front, the batch being 0; ModelFormatError where there is none."""
        rank = len(view.shape) + 1
        if not -rank <= axis < rank:
            raise ModelFormatError(f"{self}: {name} is {axis}, but it reads {view}")
        return axis % rank


def _check_finite(layer: Layer, message: Message, path: str) -> None:
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        values = value if hasattr(value, "extend") else [value]
        if field.message_type is not None:
            for inner in values:
                _check_finite(layer, inner, f"{name}.")
        elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            for number in values:
                if not math.isfinite(number):
                    raise ModelFormatError(f"{layer}: {name} is {number}; it must be a finite number")
