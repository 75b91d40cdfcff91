"""A client of the Open Inference Protocol for tests: requests from arrays, calls by name, arrays from answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from convserve.wire.open_inference import METHODS, OPEN_INFERENCE
from convserve.wire.open_inference import messages as oip

__all__ = ["Calls", "array_of", "calls_of", "request_of", "set_parameters", "strings_of"]

DATATYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}
DTYPES = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1"}


class Calls:
    """Calls over one channel: calls.ModelInfer(request)."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        method, path = METHODS[name], f"/{OPEN_INFERENCE}/{name}"
        make = self._channel.stream_stream if method.streams else self._channel.unary_unary
        return make(path, method.request.SerializeToString, method.response.FromString)

    def raw(self, name: str) -> Any:
        """A unary method whose request and answer are bytes."""
        return self._channel.unary_unary(f"/{OPEN_INFERENCE}/{name}")

    def infer(self, name: str, contents: Any, **options: Any) -> Any:
        """Answer of ModelInfer to request_of(name, contents, **options)."""
        return self.ModelInfer(request_of(name, contents, **options), timeout=20)


@contextmanager
def calls_of(address: str) -> Iterator[Calls]:
    """A channel of its own to a server."""
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, unlimited) as channel:
        yield Calls(channel)


def set_parameters(fields: Any, parameters: dict[str, Any]) -> None:
    """Write parameters of any type into a map of messages."""
    kinds = {bool: "bool", int: "int64", str: "string", float: "double"}
    for name, value in parameters.items():
        setattr(fields[name], f"{kinds[type(value)]}_param", value)


def request_of(
    name: str,
    contents: np.ndarray | list[bytes],
    *,
    model: str = "digits",
    outputs: dict[str, dict[str, Any]] | None = None,
    typed: bool = False,
    **parameters: Any,
) -> Any:
    """The ModelInferRequest with one input, as raw contents unless typed."""
    request = oip.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=name)
    if isinstance(contents, list):
        tensor.datatype, tensor.shape[:] = "BYTES", [len(contents)]
        raw = b"".join(len(one).to_bytes(4, "little") + one for one in contents)
    else:
        tensor.datatype, tensor.shape[:] = DATATYPES[contents.dtype.name], contents.shape
        raw = contents.tobytes()
    if typed:
        field = {"BYTES": "bytes_contents", "UINT8": "uint_contents"}.get(tensor.datatype, "fp32_contents")
        getattr(tensor.contents, field).extend(contents if isinstance(contents, list) else contents.ravel().tolist())
    else:
        request.raw_input_contents.append(raw)
    for output, its in (outputs or {}).items():
        set_parameters(request.outputs.add(name=output).parameters, its)
    set_parameters(request.parameters, parameters)
    return request


def array_of(response: Any, name: str | None = None) -> np.ndarray:
    """An output, by default the only one, as an array."""
    names = [one.name for one in response.outputs]
    at = names.index(name) if name else 0
    assert name or len(names) == 1
    output = response.outputs[at]
    return np.frombuffer(response.raw_output_contents[at], DTYPES[output.datatype]).reshape(output.shape)


def strings_of(response: Any) -> list[list[str]]:
    """The texts of the only output, (N, k)."""
    [output], [raw] = response.outputs, response.raw_output_contents
    assert output.datatype == "BYTES"
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : end].decode())
        at = end
    rows, cols = output.shape
    assert len(texts) == rows * cols
    return [texts[row * cols : (row + 1) * cols] for row in range(rows)]
