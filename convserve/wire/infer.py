"""An inference of the Open Inference Protocol without its transport: request, answer, and tensors from raw bytes."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convserve.errors import InputError, ShapeError

__all__ = [
    "LONGEST_ID",
    "MOST_ELEMENTS",
    "MOST_TENSORS",
    "Contents",
    "InferAnswer",
    "InferRequest",
    "InferTensor",
    "Parameter",
    "RequestedOutput",
    "bytes_of",
    "checked_shape",
    "dtype_of",
    "tensor_of",
]

Parameter = bool | int | float | str
Contents = np.ndarray | list[bytes]

MOST_TENSORS = 64
"""Inputs, and requested outputs, that one request may name."""

MOST_ELEMENTS = 1024
"""Images that one request may hold: files of a BYTES tensor, or the batch of any other."""

LONGEST_ID = 1024
"""Characters of a request's id, which its answers repeat."""

_MOST_AXES = 8
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2"), "UINT8": np.dtype("u1")}
_KNOWN = (*_DTYPES, "BYTES")
_OTHERS = ("BOOL", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP64", "BF16")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class InferTensor:
    """A tensor: values (float32, float16, uint8, int32) of its shape, or as many byte strings."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    contents: Contents


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that is asked for. classification: so many of its best classes as text instead; 0: its values."""

    name: str
    classification: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What is asked. outputs: none for all of them."""

    model: str
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    inputs: Sequence[InferTensor] = ()
    outputs: Sequence[RequestedOutput] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferAnswer:
    """What is answered: whole, or one part of it."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, bool | int | str] = field(default_factory=dict)
    outputs: Sequence[InferTensor] = ()


def dtype_of(name: str, datatype: str) -> np.dtype[Any] | None:
    """Return the dtype of an input's datatype, None for BYTES; InputError for one that no network reads."""
    if datatype not in _KNOWN:
        what = "" if datatype in _OTHERS else ", which the protocol does not have"
        raise InputError(f"the input {name[:100]!r} has the datatype {datatype[:100]!r}{what}; allowed: {_allowed()}")
    return _DTYPES.get(datatype)


def _allowed() -> str:
    return "FP32 and FP16 (values), UINT8 (pixels), BYTES (image files)"


def checked_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return an input's shape; ShapeError where it has no axis, too many, or a size below 1."""
    if not 1 <= len(shape) <= _MOST_AXES:
        raise ShapeError(f"the input {name[:100]!r} has {len(shape)} axes; allowed: 1 to {_MOST_AXES}")
    sizes = tuple(shape)
    if min(sizes) < 1:
        raise ShapeError(f"the input {name[:100]!r} has the shape {list(sizes)}; every size must be at least 1")
    return sizes


def tensor_of(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> InferTensor:
    """Return an input from its raw bytes, which are viewed; InputError, ShapeError where they do not fit together."""
    dtype, sizes = dtype_of(name, datatype), checked_shape(name, shape)
    # Python integers do not wrap, so a shape such as [2**62, 4, 4] cannot pass as a small one.
    count = math.prod(sizes)
    if dtype is None:
        return InferTensor(name, datatype, sizes, _strings(name, count, raw))
    expected = count * dtype.itemsize
    if expected != len(raw):
        raise ShapeError(
            f"the input {name[:100]!r}, {datatype} of shape {list(sizes)}, takes {expected} bytes, but {len(raw)} came"
        )
    return InferTensor(name, datatype, sizes, np.frombuffer(raw, dtype).reshape(sizes))


def _strings(name: str, count: int, raw: bytes | memoryview) -> list[bytes]:
    if count > MOST_ELEMENTS:
        raise ShapeError(f"the input {name[:100]!r} has {count} elements; allowed: 1 to {MOST_ELEMENTS}")
    found, at = [], 0
    for number in range(count):
        begin = at + _LENGTH.size
        if begin > len(raw):
            raise ShapeError(f"the input {name[:100]!r} has {count} elements, but its bytes end before number {number}")
        at = begin + _LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise ShapeError(
                f"element {number} of the input {name[:100]!r} is {at - begin} bytes long, but {len(raw) - begin}"
                " are left; an element is its length in 4 bytes, little-endian, and then its bytes"
            )
        found.append(bytes(raw[begin:at]))
    if at != len(raw):
        raise ShapeError(f"{len(raw) - at} bytes are left behind the {count} elements of the input {name[:100]!r}")
    return found


def bytes_of(tensor: InferTensor) -> bytes:
    """Return a tensor's raw contents."""
    if isinstance(tensor.contents, np.ndarray):
        return tensor.contents.tobytes()
    return b"".join(part for one in tensor.contents for part in (_LENGTH.pack(len(one)), one))
