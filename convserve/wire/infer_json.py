"""Inferences to and from the Open Inference Protocol's JSON, with its extension for binary tensors behind it."""

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.errors import InputError, ShapeError
from convserve.wire.infer import (
    MOST_TENSORS,
    Contents,
    InferAnswer,
    InferRequest,
    InferTensor,
    Parameter,
    bytes_of,
    checked_shape,
    dtype_of,
    tensor_of,
)
from convserve.wire.infer_messages import requested_output
from convserve.wire.json_text import Numbers, read_json

__all__ = ["JSON_LENGTH", "AnswerForm", "answer_to_body", "message_to_json", "request_from_body"]

JSON_LENGTH = "Inference-Header-Content-Length"
"""The header that tells how many bytes of a body are JSON; binary tensors are behind them."""

_PIECE = 4096
_PIECE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Which outputs come as binary tensors: those named, and whether the others do."""

    named: Mapping[str, bool]
    others: bool = False

    def is_binary(self, output: str) -> bool:
        """Tell whether an output comes as a binary tensor, rather than as JSON."""
        return self.named.get(output, self.others)


# ---- requests


def request_from_body(
    body: memoryview, json_length: int | None, *, model: str, version: str
) -> tuple[InferRequest, AnswerForm]:
    """Return what a body asks of a model, and how the answer shall be written.

    json_length: of JSON_LENGTH, None where the whole body is JSON. Raises InputError, ShapeError where the body's parts
    do not fit together. Arrays may be views of the body.
    """
    length = len(body) if json_length is None else json_length
    if json_length is not None and not 0 < length <= len(body):
        raise InputError(f"{JSON_LENGTH} is {length}, but the body has {len(body)} bytes")
    message = _object(read_json(body[:length]), "the request")
    parameters = _parameters(message, "the request")
    inputs, at = [], length
    for entry in _list(message, "inputs"):
        tensor, at = _input(entry, body, at)
        inputs.append(tensor)
    if at != len(body):
        raise InputError(f"{len(body) - at} bytes are left behind the tensors of the request")
    outputs, named = [], {}
    for entry in _list(message, "outputs"):
        name, its = _text(entry, "name", "an output"), _parameters(entry, "an output")
        outputs.append(requested_output(name, its))
        if "binary_data" in its:
            named[name] = _flag(its, "binary_data")
    form = AnswerForm(named, _flag(parameters, "binary_data_output"))
    request = InferRequest(
        model=model,
        version=version,
        id=_text(message, "id", "the request", default=""),
        parameters={name: value for name, value in parameters.items() if name != "binary_data_output"},
        inputs=inputs,
        outputs=outputs,
    )
    return request, form


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object")
    return value


def _list(message: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = message.get(name, [])
    if not isinstance(found, list):
        raise InputError(f"{name} of the request must be an array of objects")
    if len(found) > MOST_TENSORS:
        raise InputError(f"the request has {len(found)} {name}; allowed: at most {MOST_TENSORS}")
    return [_object(entry, f"each of the request's {name}") for entry in found]


def _text(message: Mapping[str, Any], name: str, what: str, *, default: str | None = None) -> str:
    found = message.get(name, default)
    if not isinstance(found, str):
        raise InputError(f"{name} of {what} is {'missing' if found is None else 'no text'}; it must be a text")
    return found


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"the parameter {name} is {str(value)[:100]!r}; it must be true or false")
    return value


def _parameters(message: Mapping[str, Any], what: str) -> dict[str, Parameter]:
    found = _object(message.get("parameters", {}), f"parameters of {what}")
    for name, value in found.items():
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"the parameter {name[:100]!r} of {what} must be a text, a number, true or false")
    return found


def _input(entry: Mapping[str, Any], body: memoryview, at: int) -> tuple[InferTensor, int]:
    """Return an input, and where the binary tensor behind it begins."""
    name, parameters = _text(entry, "name", "an input"), _parameters(entry, "an input")
    datatype, sizes = _text(entry, "datatype", f"the input {name[:100]!r}"), entry.get("shape")
    if "shared_memory_region" in parameters:
        raise InputError(f"the input {name[:100]!r} is in shared memory; contents travel in the body")
    if not isinstance(sizes, Numbers):
        raise InputError(f"the shape of the input {name[:100]!r} must be an array of whole numbers")
    shape, size = sizes.sizes(f"the shape of the input {name[:100]!r}"), parameters.get("binary_data_size")
    if size is None:
        return _from_json(name, datatype, shape, entry.get("data"), parameters), at
    if "data" in entry:
        raise InputError(f"the input {name[:100]!r} has data beside a binary tensor; send one of the two")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - at:
        raise InputError(
            f"binary_data_size of the input {name[:100]!r} is {str(size)[:30]}, but {len(body) - at} bytes are left"
        )
    tensor = tensor_of(name, datatype, shape, body[at : at + size])
    return InferTensor(name, datatype, tensor.shape, _aligned(tensor.contents)), at + size


def _aligned(contents: Contents) -> Contents:
    # the JSON in front may have any length, and kernels read aligned values
    return np.require(contents, requirements="A") if isinstance(contents, np.ndarray) else contents


def _from_json(
    name: str, datatype: str, sizes: Sequence[int], data: Any, parameters: Mapping[str, Parameter]
) -> InferTensor:
    said = f"the input {name[:100]!r}"
    dtype, shape = dtype_of(name, datatype), checked_shape(name, sizes)
    if data is None:
        raise InputError(f"{said} has neither data nor binary_data_size")
    if datatype == "FP16":
        raise InputError(f"{said} is FP16, which comes as a binary tensor only")
    if dtype is not None:
        if not isinstance(data, Numbers):
            raise InputError(f"{said} is {datatype}; its data must be an array of numbers")
        return InferTensor(name, datatype, shape, data.array(name, shape, dtype))
    flat = [one for part in _listed(data) for one in _listed(part)]
    if not all(isinstance(one, str) for one in flat):
        raise InputError(f"{said} is BYTES; its data must be an array of texts")
    if len(flat) != math.prod(shape):
        raise ShapeError(f"{said} of shape {list(shape)} has {math.prod(shape)} elements, but {len(flat)} came")
    if parameters.get("content_type") != "base64":
        return InferTensor(name, datatype, shape, [one.encode() for one in flat])
    try:
        return InferTensor(name, datatype, shape, [base64.b64decode(one, validate=True) for one in flat])
    except (binascii.Error, ValueError):
        raise InputError(f"{said} has the content_type base64, but an element is none") from None


def _listed(data: Any) -> list[Any]:
    return data if isinstance(data, list) else [data]


# ---- answers


def answer_to_body(answer: InferAnswer, form: AnswerForm) -> tuple[int | None, int | None, Iterator[bytes]]:
    """Return the bytes that are JSON, None for all of them; the bytes in all, None where not known; the body in pieces.

    Without binary tensors the pieces are made as they are taken.
    """
    binary = [one for one in answer.outputs if form.is_binary(one.name)]
    text = _text_pieces(answer, form)
    if not binary:
        return None, None, text
    head = b"".join(text)
    raw = [bytes_of(one) for one in binary]
    pieces = [head, *(part[at : at + _PIECE_BYTES] for part in raw for at in range(0, len(part), _PIECE_BYTES))]
    return len(head), len(head) + sum(map(len, raw)), iter(pieces)


def _text_pieces(answer: InferAnswer, form: AnswerForm) -> Iterator[bytes]:
    top = {"model_name": answer.model, "model_version": answer.version}
    top |= {"id": answer.id} if answer.id else {}
    yield _open({**top, "parameters": dict(answer.parameters)}) + b', "outputs": ['
    for number, one in enumerate(answer.outputs):
        entry: dict[str, Any] = {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
        comma = b", " if number else b""
        if form.is_binary(one.name):
            yield comma + json.dumps({**entry, "parameters": {"binary_data_size": _size_of(one)}}).encode()
            continue
        yield comma + _open(entry) + b', "data": ['
        yield from _values(one)
        yield b"]}"
    yield b"]}"


def _open(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode()[:-1]


def _size_of(tensor: InferTensor) -> int:
    contents = tensor.contents
    return contents.nbytes if isinstance(contents, np.ndarray) else sum(4 + len(one) for one in contents)


def _values(tensor: InferTensor) -> Iterator[bytes]:
    contents = tensor.contents
    if not isinstance(contents, np.ndarray):
        yield json.dumps([one.decode() for one in contents]).encode()[1:-1]
        return
    flat = contents.reshape(-1)
    for at in range(0, flat.size, _PIECE):
        yield (b", " if at else b"") + json.dumps(flat[at : at + _PIECE].tolist()).encode()[1:-1]


def message_to_json(message: Any) -> Any:
    """Return a message of the protocol, or a map or list of its fields, as it stands in JSON: every field, by name."""
    if isinstance(message, str | int | float | bool):
        return message
    if hasattr(message, "DESCRIPTOR"):
        return {field.name: _field_to_json(message, field) for field in message.DESCRIPTOR.fields}
    if hasattr(message, "items"):
        return {name: message_to_json(one) for name, one in message.items()}
    return [message_to_json(one) for one in message]


def _field_to_json(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return message_to_json(value)
