"""Inferences to and from the Open Inference Protocol's messages; no tensor becomes a Python list on the way."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convserve.errors import InputError, ShapeError
from convserve.wire.fields import split_field
from convserve.wire.infer import (
    LONGEST_ID,
    MOST_TENSORS,
    InferAnswer,
    InferRequest,
    InferTensor,
    Parameter,
    RequestedOutput,
    bytes_of,
    checked_shape,
    dtype_of,
    tensor_of,
)
from convserve.wire.open_inference import messages as oip

__all__ = ["answer_to_message", "request_from_bytes", "request_from_message", "requested_output"]

_RAW_CONTENTS = oip.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_FIELD_OF = {"FP32": "fp32_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}


def request_from_bytes(data: bytes) -> InferRequest:
    """Return what an encoded ModelInferRequest asks for, raw contents as views of it: they are most of it.

    Raises DecodeError, InputError, ShapeError.
    """
    rest, raw = split_field(data, _RAW_CONTENTS)
    return request_from_message(oip.ModelInferRequest.FromString(rest), raw)


def request_from_message(message: Any, raw: Sequence[bytes | memoryview] | None = None) -> InferRequest:
    """Return what a ModelInferRequest asks for. raw: its raw contents, where they are not in the message.

    Raises InputError, ShapeError where its parts do not fit together.
    """
    for what, parts in (("inputs", message.inputs), ("outputs", message.outputs)):
        if len(parts) > MOST_TENSORS:
            raise InputError(f"the request has {len(parts)} {what}; allowed: at most {MOST_TENSORS}")
    if len(message.id) > LONGEST_ID:
        raise InputError(f"the request's id has {len(message.id)} characters; allowed: at most {LONGEST_ID}")
    raw = message.raw_input_contents if raw is None else raw
    if raw and len(raw) != len(message.inputs):
        raise InputError(f"the request has {len(message.inputs)} inputs, but {len(raw)} raw contents; one for each")
    inputs = []
    for number, tensor in enumerate(message.inputs):
        if "shared_memory_region" in tensor.parameters:
            raise InputError(f"the input {tensor.name[:100]!r} is in shared memory; contents travel in the message")
        if not raw:
            inputs.append(_from_contents(tensor))
        elif tensor.HasField("contents"):
            raise InputError(f"the input {tensor.name[:100]!r} has typed contents beside raw ones; send one of the two")
        else:
            inputs.append(tensor_of(tensor.name, tensor.datatype, tensor.shape, raw[number]))
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        parameters=_parameters(message.parameters),
        inputs=inputs,
        outputs=[requested_output(one.name, _parameters(one.parameters)) for one in message.outputs],
    )


def requested_output(name: str, parameters: Mapping[str, Parameter]) -> RequestedOutput:
    """Return an output that is asked for, with its parameters; InputError for those that cannot be met."""
    if "shared_memory_region" in parameters:
        raise InputError(f"the output {name[:100]!r} is asked for in shared memory; contents travel in the message")
    best = parameters.get("classification", 0)
    if isinstance(best, bool) or not isinstance(best, int) or best < 0:
        raise InputError(f"classification of the output {name[:100]!r} is {best!r}; it must be a whole number from 1")
    return RequestedOutput(name, best)


def _parameters(parameters: Any) -> dict[str, Parameter]:
    kinds = ((name, one, one.WhichOneof("parameter_choice")) for name, one in parameters.items())
    return {name: getattr(one, kind) for name, one, kind in kinds if kind}


def _from_contents(message: Any) -> InferTensor:
    name, datatype, contents = message.name, message.datatype, message.contents
    dtype, shape = dtype_of(name, datatype), checked_shape(name, message.shape)
    if not message.HasField("contents"):
        raise InputError(f"the input {name[:100]!r} has neither raw nor typed contents")
    if datatype not in _FIELD_OF:
        raise InputError(f"the input {name[:100]!r} is {datatype}, which has raw contents only")
    field = _FIELD_OF[datatype]
    wrong = [descriptor.name for descriptor, _ in contents.ListFields() if descriptor.name != field]
    if wrong:
        raise InputError(f"the input {name[:100]!r} is {datatype} and has {wrong[0]}; its field is {field}")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise ShapeError(
            f"the input {name[:100]!r} of shape {list(shape)} has {math.prod(shape)} elements, but {len(values)} came"
        )
    if dtype is None:
        return InferTensor(name, datatype, shape, list(values))
    if datatype == "FP32":
        return InferTensor(name, datatype, shape, _floats(contents).reshape(shape))
    wide = np.fromiter(values, np.uint32, len(values))
    if wide.max() > 255:
        raise InputError(f"the input {name[:100]!r} is UINT8 and has the value {wide.max()}; allowed: 0 to 255")
    return InferTensor(name, datatype, shape, wide.astype(np.uint8).reshape(shape))


def _floats(contents: Any) -> np.ndarray:
    # packed floats lie in the message's bytes as they do in an array, and end it where nothing else is set
    only = oip.InferTensorContents()
    only.fp32_contents.MergeFrom(contents.fp32_contents)
    size = 4 * len(only.fp32_contents)
    data = only.SerializeToString()
    return np.frombuffer(data, "<f4", offset=len(data) - size)


def answer_to_message(answer: InferAnswer) -> Any:
    """Return the ModelInferResponse of an answer."""
    message = oip.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=answer.id,
        outputs=[
            oip.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in answer.outputs
        ],
        raw_output_contents=[bytes_of(one) for one in answer.outputs],
    )
    for name, value in answer.parameters.items():
        kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
        setattr(message.parameters[name], f"{kind}_param", value)
    return message
