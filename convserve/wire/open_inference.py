"""The Open Inference Protocol's messages, from a descriptor pool of their own.

Other packages register a package "inference" in the default pool, where it can be but once.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["FILE", "METHODS", "OPEN_INFERENCE", "Method", "messages"]

OPEN_INFERENCE = "inference.GRPCInferenceService"
"""The service's full name."""


class Method(NamedTuple):
    """One method of the service: its messages' classes, and whether it streams in both directions."""

    request: Any
    response: Any
    streams: bool


def _read() -> FileDescriptorProto:
    data = Path(__file__).with_suffix(".binpb").read_bytes()
    [file] = FileDescriptorSet.FromString(data).file
    return file


FILE = _read()
"""The descriptor of open_inference.proto."""

_pool = DescriptorPool()
_pool.Add(FILE)

messages: Any = SimpleNamespace(
    **{kind.name: GetMessageClass(_pool.FindMessageTypeByName(f"inference.{kind.name}")) for kind in FILE.message_type}
)
"""The message classes by name."""

METHODS = {
    method.name: Method(
        GetMessageClass(method.input_type), GetMessageClass(method.output_type), method.client_streaming
    )
    for method in _pool.FindServiceByName(OPEN_INFERENCE).methods
}
"""The service's methods by name."""
