"""Reads a .caffemodel: the blobs of each layer, by its name, as views of the mapped file; nothing else is parsed.

Such a file is one protobuf message, which parsed as a whole would take several times its bytes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from convserve.errors import ModelFormatError
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.caffe.layer import Layer
from convserve.formats.wire_fields import BYTES, fields

__all__ = ["Blob", "BlobParameters", "read_blobs"]

# Of the network: its layers by their field's number; of each kind of layer its name, its blobs and, in the form of
# 2013, the layer inside it.
_LAYERS = {100: "layer", 2: "older"}
_NAME = {"layer": 1, "older": 4, "oldest": 1}
_BLOBS = {"layer": 7, "older": 6, "oldest": 50}
_INSIDE = {"older": {1: "oldest"}}
_DATA, _DOUBLE_DATA, _UNUSED = 5, 8, (6, 9)
_INDEX = {"weight": 0, "slope": 0, "scale": 0, "mean": 0, "var": 1, "bias": 1}


@dataclass(frozen=True, slots=True)
class Blob:
    """Parameters as the file has them: float32 in the file's order, and the shape that it gives them."""

    values: np.ndarray
    shape: tuple[int, ...]


class _Damaged(Exception):
    """What is wrong with a file, without its name."""


def read_blobs(content: np.ndarray, what: str) -> dict[str, list[Blob]]:
    """Return the blobs of each layer that has some, from a file's bytes, uint8.

    what: the file, for errors. Raises ModelFormatError for what is no .caffemodel, or a damaged one.
    """
    if content[:4].tobytes() == b"\x89HDF":
        raise ModelFormatError(f"{what} is an HDF5 file; supported are Caffe's binary .caffemodel files")
    found: dict[str, list[Blob]] = {}
    try:
        for field in fields(content.data, 0, content.size):
            if field.wire_type == BYTES and field.number in _LAYERS:
                _read_layer(content, field.begin, field.end, _LAYERS[field.number], found)
    except (ValueError, DecodeError):
        raise ModelFormatError(f"{what}: not a .caffemodel, or a truncated one") from None
    except _Damaged as error:
        raise ModelFormatError(f"{what}: {error}") from None
    if not found:
        raise ModelFormatError(f"{what}: not a .caffemodel, it holds no layer with weights")
    return found


def _read_layer(content: np.ndarray, begin: int, end: int, kind: str, found: dict[str, list[Blob]]) -> None:
    name, spans = "", []
    for field in fields(content.data, begin, end):
        if field.wire_type != BYTES:
            continue
        if field.number == _NAME[kind]:
            name = content[field.begin : field.end].tobytes().decode("utf-8", "replace")
        elif field.number == _BLOBS[kind]:
            spans.append((field.begin, field.end))
        elif field.number in _INSIDE.get(kind, {}):
            _read_layer(content, field.begin, field.end, _INSIDE[kind][field.number], found)
    if spans:
        found[name] = [_read_blob(content, *span, f"blob {i} of '{name}'") for i, span in enumerate(spans)]


def _read_blob(content: np.ndarray, begin: int, end: int, what: str) -> Blob:
    packed: dict[int, list[tuple[int, int]]] = {_DATA: [], _DOUBLE_DATA: []}
    described, is_packed = [], True
    for field in fields(content.data, begin, end):
        if field.number in packed:
            is_packed &= field.wire_type == BYTES
            packed[field.number].append((field.begin, field.end))
        elif field.number not in _UNUSED:
            described.append(content[field.start : field.end].tobytes())
    single, double = packed[_DATA], packed[_DOUBLE_DATA]
    message = pb.BlobProto.FromString(b"".join(described))
    if is_packed and len(single) + len(double) == 1:
        (start, stop), dtype = (single or double)[0], "<f4" if single else "<f8"
        if (stop - start) % np.dtype(dtype).itemsize:
            raise ValueError("part of a number")
        values = content[start:stop].view(dtype).astype(np.float32, copy=False)
    else:
        whole = pb.BlobProto.FromString(content[begin:end].tobytes())
        values = np.array(whole.data or whole.double_data, np.float32)
    shape = _shape(message, values.size)
    if any(size < 0 for size in shape) or math.prod(shape) != values.size or not values.size:
        raise _Damaged(f"{what} holds {values.size} values, but its shape is {shape}")
    return Blob(values, shape)


def _shape(message: pb.BlobProto, count: int) -> tuple[int, ...]:
    if message.HasField("shape"):
        return tuple(message.shape.dim)
    sizes = ("num", "channels", "height", "width")
    if any(message.HasField(size) for size in sizes):
        return tuple(int(getattr(message, size)) for size in sizes)
    return (count,)


class BlobParameters:
    """The source of a graph's parameters (graph.assembly.Parameters): the blobs of the layer that a node comes from.

    layers: those of the network by the names of their nodes, which the importer fills in as it adds nodes. blobs: as
    read_blobs gives them. what: their file, for errors.
    """

    def __init__(self, layers: Mapping[str, Layer], blobs: Mapping[str, list[Blob]], what: str) -> None:
        self._layers = layers
        self._blobs = blobs
        self._what = what
        self._used: dict[str, int] = {}
        self._owners: dict[str, Layer] = {}

    def __call__(self, node: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        """Return a parameter of a node, float32; ModelFormatError where the file has none of that shape."""
        layer = self._layers[node]
        read = _READERS.get(layer.type, BlobParameters._plain)
        return read(self, layer, parameter, shape)

    def check_used(self) -> None:
        """Raise ModelFormatError where the file has more blobs for a layer than the network asked for."""
        for layer in self._layers.values():
            there, used = len(self._blobs.get(layer.name, [])), self._used.get(layer.name, 0)
            if there > used:
                raise ModelFormatError(
                    f"{layer} has {used} blob(s) of parameters, but {self._what} has {there} for a layer of that name"
                )

    def _blob(self, layer: Layer, index: int, what: str, shape: tuple[int, ...]) -> np.ndarray:
        blobs = self._blobs.get(layer.name)
        if blobs is None:
            raise ModelFormatError(
                f"{layer}: {self._what} has no weights for a layer of that name; it has weights for"
                f" {_listed(list(self._blobs))}"
            )
        if self._owners.setdefault(layer.name, layer) is not layer:
            raise ModelFormatError(f"two layers with weights have the name '{layer.name}', by which weights are found")
        self._used[layer.name] = max(self._used.get(layer.name, 0), index + 1)
        if index >= len(blobs):
            raise ModelFormatError(f"{layer}: {self._what} has {len(blobs)} blob(s) for it; its {what} is blob {index}")
        blob = blobs[index]
        if not _fits(blob.shape, shape):
            raise ModelFormatError(
                f"{layer}: its {what}, blob {index}, must have the shape {shape}; {self._what} has {blob.shape}"
            )
        return blob.values.reshape(shape)

    def _plain(self, layer: Layer, parameter: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._blob(layer, _INDEX[parameter], parameter, shape)

    def _bias(self, layer: Layer, parameter: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._blob(layer, 0, parameter, shape)

    def _inner_product(self, layer: Layer, parameter: str, shape: tuple[int, ...]) -> np.ndarray:
        if parameter == "weight" and layer.proto.inner_product_param.transpose:
            return self._blob(layer, 0, parameter, shape[::-1]).T
        return self._plain(layer, parameter, shape)

    def _batch_norm(self, layer: Layer, parameter: str, shape: tuple[int, ...]) -> np.ndarray:
        if parameter in ("scale", "bias"):
            return np.full(shape, parameter == "scale", np.float32)
        sums, count = self._plain(layer, parameter, shape), self._blob(layer, 2, "scale factor", (1,))
        return sums / count if count[0] else np.zeros(shape, np.float32)


_Reader = Callable[[BlobParameters, Layer, str, tuple[int, ...]], np.ndarray]
_READERS: dict[str, _Reader] = {
    "BatchNorm": BlobParameters._batch_norm,
    "Bias": BlobParameters._bias,
    "InnerProduct": BlobParameters._inner_product,
}


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether values of one shape are those of the other in the same order.

    Sizes of 1 do not count: older files fill every shape up to four. A matrix fits the filters that have as many
    values in each of its rows, since that is how a fully-connected layer becomes a convolution and back.
    """
    if [size for size in found if size != 1] == [size for size in wanted if size != 1]:
        return True
    is_matrix = len(found) >= 2 and all(size == 1 for size in found[:-2])
    rows = {*found[:1], *(found[-2:-1] if is_matrix else ())}
    return (is_matrix or len(wanted) == 2) and wanted[0] in rows and math.prod(found) == math.prod(wanted)
