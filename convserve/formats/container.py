"""The native container, `.convserve`: a safetensors file that is mapped, not read. Here it is read.

    8 bytes          length of the header, little-endian
    header           JSON, padded with spaces until the data begin at a multiple of 4096
    data             float32, and from format version 2 on float16 and bfloat16, little-endian;
                     each tensor at a multiple of 64, each layer at a multiple of 4096

The format allows no holes, so U8 tensors named filler.N lie between. `__metadata__` has texts:
format, format_version (the first that has all of the dtypes), graph (packed, see graph_json), preprocessing
and labels, the last three JSON.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import ModelFormatError, ModelNotFoundError
from convserve.formats.graph_json import graph_from_json
from convserve.formats.mapping import Mapping as MappedBytes
from convserve.formats.storage import ALIGNMENT, WEIGHT_TYPES
from convserve.graph.ir import Graph

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LAYER_ALIGNMENT",
    "MAX_HEADER_BYTES",
    "MEAN",
    "Container",
    "checked_labels",
    "dtype_entry",
    "is_container",
    "parse_container",
    "read_container",
]

FORMAT = "convserve"
FORMAT_VERSION = 2
LAYER_ALIGNMENT = 4096
MAX_HEADER_BYTES = 16 << 20
MEAN = "preprocessing.mean"
"""Name of the tensor that holds a per-pixel mean."""

# each with the format version that brought it
_FLOATS = {"F32": (WEIGHT_TYPES["fp32"], 1), "F16": (WEIGHT_TYPES["fp16"], 2), "BF16": (WEIGHT_TYPES["bf16"], 2)}
_DTYPES = {**_FLOATS, "U8": (np.dtype("u1"), 1)}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Container:
    """What a container holds; the graph's params and a per-pixel mean are read-only views of its content.

    content: the whole container, uint8: its mapped file, or the memory in which it was made. path, mapping: that file,
    and how it is mapped.

    preprocess has the fields that images.Preprocess.from_dict takes, or is None.
    """

    graph: Graph
    preprocess: dict[str, Any] | None
    labels: list[str] | None
    content: np.ndarray
    path: Path | None = None
    mapping: MappedBytes | None = None


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def dtype_entry(dtype: np.dtype) -> tuple[str, int]:
    """Return what a container calls a dtype of weights, and the first format version that has it."""
    return next((name, since) for name, (known, since) in _FLOATS.items() if known == dtype)


def is_container(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as a container does, whatever its name; False where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("an object has the same key twice")
    return record


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _parsed(text: str | bytes, what: str) -> Any:
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{what} is not JSON: {error}") from error


def _read_header(content: np.ndarray) -> tuple[dict[str, Any], int]:
    """Return the header and where the data begin."""
    size = content.size
    if size < 8:
        raise ModelFormatError(f"the file has {size} bytes, too few for a header's length")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFormatError(f"the header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if 8 + length > size:
        raise ModelFormatError(f"the header claims {length} bytes, but the file has only {size}")
    header = _parsed(content[8 : 8 + length].tobytes(), "the header")
    if not isinstance(header, dict):
        raise ModelFormatError("the header is no JSON object")
    return header, 8 + length


def _metadata(header: dict[str, Any]) -> tuple[dict[str, str], int]:
    """Return the metadata and the format version."""
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFormatError("the header's __metadata__ has values that are not texts")
    if metadata.get("format") != FORMAT:
        raise ModelFormatError(
            "the file is in the safetensors format, but not a convserve container; a state dict goes with the name of "
            "its network: build('resnet50', parameters='resnet50.safetensors')"
        )
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 10 and int(version) > 0):
        raise ModelFormatError(f"the container's format_version is {version!r}; it must be a whole number above 0")
    if int(version) > FORMAT_VERSION:
        raise ModelFormatError(
            f"the container has format version {version}, from a newer convserve; this one reads up to {FORMAT_VERSION}"
        )
    if "graph" not in metadata:
        raise ModelFormatError("the container's metadata lack the graph")
    return metadata, int(version)


def _are_whole(values: Any, low: int) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= low for value in values
    )


def _tensor(name: str, entry: Any, data_bytes: int, version: int) -> _Tensor:
    what = f"the tensor '{name}'"
    if not isinstance(entry, dict):
        raise ModelFormatError(f"{what} is no JSON object in the header")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    allowed = [known for known, (_, since) in _DTYPES.items() if since <= version]
    if dtype not in allowed:
        raise ModelFormatError(
            f"{what} has dtype {dtype!r}; allowed in format version {version}: {', '.join(allowed)}"
        )
    if not _are_whole(shape, 1) or len(shape) > _MOST_DIMENSIONS:
        raise ModelFormatError(f"{what} has shape {shape!r}; it must be at most {_MOST_DIMENSIONS} sizes above 0")
    if not _are_whole(offsets, 0) or len(offsets) != 2:
        raise ModelFormatError(f"{what} has data_offsets {offsets!r}; they must be two whole numbers")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise ModelFormatError(f"{what} lies at bytes {begin} to {end} of the data, which have {data_bytes}")
    size = math.prod(shape) * _DTYPES[dtype][0].itemsize
    if size != end - begin:
        raise ModelFormatError(f"{what} of shape {shape} takes {size} bytes, but has {end - begin}")
    if dtype in _FLOATS and begin % ALIGNMENT:
        raise ModelFormatError(f"{what} begins at byte {begin}; tensors must begin at multiples of {ALIGNMENT}")
    return _Tensor(name, dtype, tuple(shape), begin, end)


def _tensors(header: dict[str, Any], data_bytes: int, version: int) -> list[_Tensor]:
    tensors = [_tensor(name, entry, data_bytes, version) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            relation = "overlaps the tensor" if tensor.begin < end else "leaves a hole behind the tensor"
            raise ModelFormatError(f"the tensor '{tensor.name}' at byte {tensor.begin} {relation} that ends at {end}")
        end = tensor.end
    if end != data_bytes:
        raise ModelFormatError(f"the tensors end at byte {end} of the data, but the file has {data_bytes}")
    return tensors


def _check_layers(graph: Graph, data: np.ndarray) -> None:
    for node in graph.nodes:
        begins = [array.ctypes.data - data.ctypes.data for array in node.params.values()]
        if begins and min(begins) % LAYER_ALIGNMENT:
            raise ModelFormatError(
                f"{node} begins at byte {min(begins)} of the data; layers begin at multiples of {LAYER_ALIGNMENT}"
            )


def checked_labels(labels: Any) -> list[str]:
    """Return labels that are a list of texts; ModelFormatError for anything else."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelFormatError("the labels must be a list of texts")
    return labels


def _preprocess(text: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    fields = _parsed(text, "the preprocessing")
    if not isinstance(fields, dict):
        raise ModelFormatError("the preprocessing is no JSON object")
    mean = fields.get("mean")
    if isinstance(mean, dict):
        tensor = mean.get("tensor")
        if not isinstance(tensor, str) or tensor not in arrays:
            raise ModelFormatError(f"the preprocessing takes its mean from the tensor {tensor!r}, which is not there")
        if arrays[tensor].dtype != np.float32:
            raise ModelFormatError(f"the preprocessing's mean is the tensor '{tensor}', which must be float32")
        fields["mean"] = arrays[tensor]
    return fields


def parse_container(content: np.ndarray) -> Container:
    """Return what a container's bytes (uint8) hold, as views of them. Raises ModelFormatError where they lie."""
    header, begin = _read_header(content)
    metadata, version = _metadata(header)
    if begin % LAYER_ALIGNMENT:
        raise ModelFormatError(
            f"the data begin at byte {begin} of the file; it must be a multiple of {LAYER_ALIGNMENT}"
        )
    data = content[begin:]
    arrays = {
        tensor.name: data[tensor.begin : tensor.end].view(_FLOATS[tensor.dtype][0]).reshape(tensor.shape)
        for tensor in _tensors(header, data.size, version)
        if tensor.dtype in _FLOATS
    }
    graph = graph_from_json(_parsed(metadata["graph"], "the graph"), arrays)
    _check_layers(graph, data)
    preprocess = _preprocess(metadata["preprocessing"], arrays) if "preprocessing" in metadata else None
    labels = checked_labels(_parsed(metadata["labels"], "the list of labels")) if "labels" in metadata else None
    return Container(graph, preprocess, labels, content)


def read_container(path: str | os.PathLike[str]) -> Container:
    """Map a container: weights are read-only views, shared between processes, loaded when first touched.

    Raises ModelNotFoundError where there is no such file, ModelFormatError for a file that is no
    container or whose header lies; nothing behind the file's end is ever mapped.
    """
    target = Path(path)
    try:
        if not target.is_file():
            raise ModelNotFoundError(f"there is no model file '{target}'")
        with target.open("rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise ModelFormatError("the file is empty")
            mapping = MappedBytes(stream.fileno())
        try:
            return replace(parse_container(np.frombuffer(memoryview(mapping), np.uint8)), path=target, mapping=mapping)
        finally:
            # whatever was read of a file that somebody writes to is no reason to believe it, or to say what it lacks
            mapping.check()
    except ModelFormatError as error:
        raise ModelFormatError(f"'{target}': {error}") from error
    except OSError as error:
        raise ModelNotFoundError(f"the model file '{target}' cannot be read: {error.strerror or error}") from error
