"""Reads an ONNX file: the model message, its opset and its tensors, external data included; files are mapped."""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, defs, numpy_helper

from convserve.errors import ModelFormatError
from convserve.formats.mapped import MappedFiles
from convserve.formats.onnx.message import IN_MESSAGE, parse_model

__all__ = ["OLDEST_OPSET", "OnnxFile", "opset_version"]

OLDEST_OPSET = 6

# Where the raw bytes of a tensor are its values; others go through the onnx package.
_PLAIN: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT64: "<i8",
    TensorProto.INT32: "<i4",
}


class OnnxFile(MappedFiles):
    """An ONNX model as its file holds it: the message, and tensors as read-only views of the mapped files."""

    model: ModelProto
    """The message; long raw values are left in the file (message.parse_model)."""

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        """Read a path or a file's bytes.

        Raises ModelNotFoundError for a path that does not exist, ModelFormatError for what is not ONNX.
        """
        super().__init__()
        self.content: np.ndarray
        """The whole message, uint8: the mapped file, or the bytes given."""
        self.name = "network"
        self.folder: Path | None = None
        self._external: dict[str, np.ndarray] = {}
        if isinstance(source, bytes | bytearray | memoryview):
            what, self.content = f"the {len(source)} bytes given", np.frombuffer(source, np.uint8)
        else:
            path = Path(source)
            what, self.name, self.folder = f"'{path}'", path.stem, path.parent
            self.content = self.map(path)
        try:
            self.model = parse_model(self.content.data)
        except DecodeError:
            raise ModelFormatError(f"{what}: not an ONNX model, or a truncated one") from None
        if not self.model.HasField("graph") or not self.model.graph.node or not self.model.graph.output:
            raise ModelFormatError(f"{what}: not an ONNX model, it holds no graph with nodes and outputs")
        for name in _names(self.model):
            # protobuf hands text that is no UTF-8 over as bytes
            if not isinstance(name, str):
                raise ModelFormatError(f"{what}: the name {name!r} is no UTF-8 text")

    def array(self, tensor: TensorProto, what: str) -> np.ndarray:
        """Return a tensor's values in their own dtype and shape, perhaps a read-only view of the file.

        External data is taken only from a regular file inside the model's folder that is reached without symbolic
        links and has no second name. Raises ModelFormatError for that and for sizes that do not fit.
        """
        if any(dim < 0 for dim in tensor.dims):
            raise ModelFormatError(f"{what} has the shape {tuple(tensor.dims)}")
        try:
            array = self._values(tensor, what)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(f"{what} does not hold the values that its shape and type claim: {error}") from error
        if array.shape != tuple(tensor.dims):
            raise ModelFormatError(f"{what} holds {array.size} values, but its shape is {tuple(tensor.dims)}")
        return array

    def _values(self, tensor: TensorProto, what: str) -> np.ndarray:
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        raw = self._raw(tensor, what)
        if tensor.data_type in _PLAIN:
            return raw.view(_PLAIN[tensor.data_type]).reshape(tuple(tensor.dims))
        loaded = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
        loaded.raw_data = raw.tobytes()
        return numpy_helper.to_array(loaded)

    def _raw(self, tensor: TensorProto, what: str) -> np.ndarray:
        """Return the bytes of a tensor that lie outside the parsed message, uint8."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise ModelFormatError(f"{what}: offset and length of its external data are no numbers") from None
        content = self.content if location == IN_MESSAGE else self._external_content(location, what)
        if length < 0:
            length = content.size - offset
        if offset < 0 or length < 0 or offset + length > content.size:
            raise ModelFormatError(
                f"{what}: bytes {offset} to {offset + length} of '{location}' are wanted, which has {content.size}"
            )
        values = math.prod(tensor.dims)
        if length > 8 * max(values, 1):
            raise ModelFormatError(f"{what}: {length} bytes in '{location}' are more than {values} values take")
        return content[offset : offset + length]

    def _external_content(self, location: str, what: str) -> np.ndarray:
        if self.folder is None:
            raise ModelFormatError(f"{what} lies in the file '{location}'; load the model by its path, not from bytes")
        if location not in self._external:
            with _open_inside(self.folder, location, what) as stream:
                self._external[location] = self.mapped(stream, self.folder / location)
        return self._external[location]

    def digest(self) -> bytes:
        """Return the SHA-256 of the message and of all external data that was read so far, with its locations."""
        content = hashlib.sha256(self.content.data)
        for location, data in sorted(self._external.items()):
            content.update(f"\0{location}\0{data.size}\0".encode())
            content.update(hashlib.sha256(data.data).digest())
        return content.digest()


def _names(model: ModelProto) -> Iterator[object]:
    graph = model.graph
    yield from (graph.name, *(entry.domain for entry in model.opset_import))
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def opset_version(model: ModelProto) -> int:
    """Return the version of ONNX's own operations that the model uses; ModelFormatError outside the known range."""
    newest = defs.onnx_opset_version()
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelFormatError(f"the model names no ONNX opset; convserve reads opsets {OLDEST_OPSET} to {newest}")
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise ModelFormatError(f"the model uses opset {versions[0]}; convserve reads opsets {OLDEST_OPSET} to {newest}")
    return int(versions[0])


def _open_inside(folder: Path, location: str, what: str) -> BinaryIO:
    """Open a file below a folder, one directory at a time, so that no name in between can lead out of it."""
    refused = ModelFormatError(
        f"{what}: its external data '{location}' must be a regular file inside the model's folder, "
        "named without '..' and reached through no link"
    )
    parts = location.split("/")
    if any(part in ("", "..") or "\\" in part or "\0" in part for part in parts):
        raise refused
    parts = [part for part in parts if part != "."]
    if not parts:
        raise refused
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise refused from error
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = inner
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError as error:
        raise ModelFormatError(f"{what}: its external data '{location}' is missing") from error
    except OSError as error:
        raise refused from error
    finally:
        os.close(directory)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise refused
    return os.fdopen(descriptor, "rb")
