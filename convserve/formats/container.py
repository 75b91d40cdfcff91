"""The native container, `.convserve`: a safetensors file that is mapped, not read.

    8 bytes          length of the header, little-endian
    header           JSON, padded with spaces until the data begin at a multiple of 4096
    data             float32, little-endian; each tensor at a multiple of 64, each layer at a multiple of 4096

The format allows no holes, so U8 tensors named filler.N lie between. `__metadata__` has texts:
format, format_version, graph (packed, see graph_json), preprocessing and labels, the last three JSON.
"""

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from convserve.errors import ModelFormatError, ModelNotFoundError
from convserve.formats.graph_json import check_graph, graph_from_json, graph_to_json
from convserve.formats.packing import ALIGNMENT, pack_graph
from convserve.graph.ir import Graph

__all__ = ["FORMAT_VERSION", "Container", "is_container", "read_container", "write_container"]

FORMAT_VERSION = 1
LAYER_ALIGNMENT = 4096
MAX_HEADER_BYTES = 16 << 20

_FORMAT = "convserve"
_DTYPES = {"F32": 4, "U8": 1}
_MEAN = "preprocessing.mean"
_MOST_DIMENSIONS = 8


class _HasFields(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Container:
    """What a container holds; the graph's params and a per-pixel mean are read-only views of the mapping.

    preprocess has the fields that images.Preprocess.from_dict takes, or is None.
    """

    graph: Graph
    preprocess: dict[str, Any] | None
    labels: list[str] | None
    mapping: np.memmap


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def is_container(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as a container does, whatever its name; False where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{"


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class _Layout:
    """Places tensors one behind the other and fills the holes."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.blocks: list[tuple[int, np.ndarray]] = []
        self.end = 0
        self._fillers = 0

    def align(self, alignment: int) -> None:
        hole = -self.end % alignment
        if hole:
            self._entry(f"filler.{self._fillers}", "U8", (hole,), hole)
            self._fillers += 1

    def add(self, name: str, array: np.ndarray) -> None:
        self.align(ALIGNMENT)
        self.blocks.append((self.end, array))
        self._entry(name, "F32", array.shape, array.nbytes)

    def _entry(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        self.entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self.end, self.end + size]}
        self.end += size


def _lay_out(graph: Graph, mean: np.ndarray | None) -> tuple[_Layout, dict[tuple[int, str], str]]:
    layout, names = _Layout(), {}
    taken = {_MEAN}
    for number, node in enumerate(graph.nodes):
        if not node.params:
            continue
        layout.align(LAYER_ALIGNMENT)
        for param, array in node.params.items():
            name = f"{node.name or node.output}.{param}"
            if name in taken:
                name = f"{name}#{number}"
            taken.add(name)
            names[number, param] = name
            layout.add(name, np.ascontiguousarray(array, "<f4"))
    if mean is not None:
        layout.align(LAYER_ALIGNMENT)
        layout.add(_MEAN, np.ascontiguousarray(mean, "<f4"))
    return layout, names


def _write_blocks(stream: BinaryIO, header: bytes, layout: _Layout) -> None:
    stream.write(len(header).to_bytes(8, "little"))
    stream.write(header)
    position = 0
    for begin, array in layout.blocks:
        stream.write(bytes(begin - position))
        stream.write(array.reshape(-1).view(np.uint8).data)
        position = begin + array.nbytes
    stream.flush()
    os.fsync(stream.fileno())


def write_container(
    path: str | os.PathLike[str],
    graph: Graph,
    *,
    preprocess: Mapping[str, Any] | _HasFields | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a rewritten graph, packed or not yet, as a container; the same graph gives the same bytes.

    preprocess is an images.Preprocess or what its to_dict gives. An existing file is replaced at
    once, by renaming: who has it mapped keeps the old one. Raises ModelFormatError for what the
    container cannot hold, OSError where the folder cannot be written.
    """
    graph = pack_graph(graph)
    check_graph(graph)
    fields = (
        None if preprocess is None else dict(preprocess if isinstance(preprocess, Mapping) else preprocess.to_dict())
    )
    mean = None
    if fields is not None and isinstance(fields.get("mean"), np.ndarray):
        mean, fields["mean"] = fields["mean"], {"tensor": _MEAN}
    layout, names = _lay_out(graph, mean)
    metadata = {
        "format": _FORMAT,
        "format_version": str(FORMAT_VERSION),
        "graph": _json_text(graph_to_json(graph, names)),
    }
    if fields is not None:
        metadata["preprocessing"] = _json_text(fields)
    if labels is not None:
        metadata["labels"] = _json_text(_checked_labels(list(labels)))
    header = _json_text({"__metadata__": metadata, **layout.entries}).encode()
    header += b" " * (-(8 + len(header)) % LAYER_ALIGNMENT)
    if len(header) > MAX_HEADER_BYTES:
        raise ModelFormatError(f"the header would take {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed")
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        with draft.open("xb") as stream:
            _write_blocks(stream, header, layout)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


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


def _read_header(stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the header and where the data begin."""
    head = stream.read(8)
    if len(head) < 8:
        raise ModelFormatError(f"the file has {len(head)} bytes, too few for a header's length")
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFormatError(f"the header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if 8 + length > size:
        raise ModelFormatError(f"the header claims {length} bytes, but the file has only {size}")
    text = stream.read(length)
    if len(text) < length:
        raise ModelFormatError(f"the file ends within its header, after {8 + len(text)} bytes")
    header = _parsed(text, "the header")
    if not isinstance(header, dict):
        raise ModelFormatError("the header is no JSON object")
    return header, 8 + length


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFormatError("the header's __metadata__ is missing or has values that are not texts")
    if metadata.get("format") != _FORMAT:
        raise ModelFormatError("the file is in the safetensors format, but not a convserve container")
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 10 and int(version) > 0):
        raise ModelFormatError(f"the container's format_version is {version!r}; it must be a whole number above 0")
    if int(version) > FORMAT_VERSION:
        raise ModelFormatError(
            f"the container has format version {version}, from a newer convserve; this one reads up to {FORMAT_VERSION}"
        )
    if "graph" not in metadata:
        raise ModelFormatError("the container's metadata lack the graph")
    return metadata


def _are_whole(values: Any, low: int) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= low for value in values
    )


def _tensor(name: str, entry: Any, data_bytes: int) -> _Tensor:
    what = f"the tensor '{name}'"
    if not isinstance(entry, dict):
        raise ModelFormatError(f"{what} is no JSON object in the header")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelFormatError(f"{what} has dtype {dtype!r}; allowed: {', '.join(_DTYPES)}")
    if not _are_whole(shape, 1) or len(shape) > _MOST_DIMENSIONS:
        raise ModelFormatError(f"{what} has shape {shape!r}; it must be at most {_MOST_DIMENSIONS} sizes above 0")
    if not _are_whole(offsets, 0) or len(offsets) != 2:
        raise ModelFormatError(f"{what} has data_offsets {offsets!r}; they must be two whole numbers")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise ModelFormatError(f"{what} lies at bytes {begin} to {end} of the data, which have {data_bytes}")
    size = math.prod(shape) * _DTYPES[dtype]
    if size != end - begin:
        raise ModelFormatError(f"{what} of shape {shape} takes {size} bytes, but has {end - begin}")
    if dtype == "F32" and begin % ALIGNMENT:
        raise ModelFormatError(f"{what} begins at byte {begin}; tensors must begin at multiples of {ALIGNMENT}")
    return _Tensor(name, dtype, tuple(shape), begin, end)


def _tensors(header: dict[str, Any], data_bytes: int) -> list[_Tensor]:
    tensors = [_tensor(name, entry, data_bytes) for name, entry in header.items()]
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


def _checked_labels(labels: Any) -> list[str]:
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
        fields["mean"] = arrays[tensor]
    return fields


def _mapped(stream: BinaryIO) -> Container:
    size = os.fstat(stream.fileno()).st_size
    header, begin = _read_header(stream, size)
    metadata = _metadata(header)
    if begin % LAYER_ALIGNMENT:
        raise ModelFormatError(
            f"the data begin at byte {begin} of the file; it must be a multiple of {LAYER_ALIGNMENT}"
        )
    tensors = _tensors(header, size - begin)
    mapping = np.memmap(stream, np.uint8, "r", shape=(size,))
    data = np.asarray(mapping)[begin:]
    arrays = {
        tensor.name: data[tensor.begin : tensor.end].view("<f4").reshape(tensor.shape)
        for tensor in tensors
        if tensor.dtype == "F32"
    }
    graph = graph_from_json(_parsed(metadata["graph"], "the graph"), arrays)
    _check_layers(graph, data)
    preprocess = _preprocess(metadata["preprocessing"], arrays) if "preprocessing" in metadata else None
    labels = _checked_labels(_parsed(metadata["labels"], "the list of labels")) if "labels" in metadata else None
    return Container(graph, preprocess, labels, mapping)


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
            return _mapped(stream)
    except ModelFormatError as error:
        raise ModelFormatError(f"'{target}': {error}") from error
    except OSError as error:
        raise ModelNotFoundError(f"the model file '{target}' cannot be read: {error.strerror or error}") from error
