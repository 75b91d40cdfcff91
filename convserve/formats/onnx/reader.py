"""Reads an ONNX file: the model message, its opset and its tensors, external data included."""

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, defs, numpy_helper

from convserve.errors import ModelFormatError, ModelNotFoundError

__all__ = ["OLDEST_OPSET", "opset_version", "read_model", "tensor_array"]

OLDEST_OPSET = 7


def read_model(source: str | os.PathLike[str] | bytes) -> tuple[ModelProto, Path | None]:
    """Return the model message of a path or of a file's bytes, and the folder where its external data may lie.

    Raises ModelNotFoundError for a path that does not exist, ModelFormatError for what is not ONNX.
    """
    folder = None
    if isinstance(source, bytes | bytearray | memoryview):
        what, content = f"the {len(source)} bytes given", bytes(source)
    else:
        path = Path(source)
        what, folder = f"'{path}'", path.parent
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ModelNotFoundError(f"there is no file {what}") from None
        except OSError as error:
            raise ModelFormatError(f"{what} cannot be read: {error.strerror}") from error
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ModelFormatError(f"{what}: not an ONNX model, or a truncated one") from None
    if not model.HasField("graph") or not model.graph.node or not model.graph.output:
        raise ModelFormatError(f"{what}: not an ONNX model, it holds no graph with nodes and outputs")
    for name in _names(model):
        # protobuf hands text that is no UTF-8 over as bytes
        if not isinstance(name, str):
            raise ModelFormatError(f"{what}: the name {name!r} is no UTF-8 text")
    return model, folder


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


def tensor_array(tensor: TensorProto, folder: Path | None, what: str) -> np.ndarray:
    """Return a tensor's values in their own dtype and shape, perhaps read-only.

    External data is read only from a regular file inside folder that is reached without symbolic
    links and has no second name. Raises ModelFormatError for that and for sizes that do not fit.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelFormatError(f"{what} has the shape {tuple(tensor.dims)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        loaded = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
        loaded.raw_data = _external_bytes(tensor, folder, what)
        tensor = loaded
    try:
        array = numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFormatError(f"{what} does not hold the values that its shape and type claim: {error}") from error
    if array.shape != tuple(tensor.dims):
        raise ModelFormatError(f"{what} holds {array.size} values, but its shape is {tuple(tensor.dims)}")
    return array


def _external_bytes(tensor: TensorProto, folder: Path | None, what: str) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelFormatError(f"{what} lies in the file '{location}'; load the model by its path, not from bytes")
    values = math.prod(tensor.dims)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError:
        raise ModelFormatError(f"{what}: offset and length of its external data are no numbers") from None
    with _open_inside(folder, location, what) as file:
        size = os.fstat(file.fileno()).st_size
        if length < 0:
            length = size - offset
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelFormatError(
                f"{what}: bytes {offset} to {offset + length} of '{location}' are wanted, which has {size}"
            )
        if length > 8 * max(values, 1):
            raise ModelFormatError(f"{what}: {length} bytes in '{location}' are more than {values} values take")
        file.seek(offset)
        return file.read(length)


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
