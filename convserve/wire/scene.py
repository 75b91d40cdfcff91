"""A score map's request: its header, and the image that follows it in parts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convserve.errors import InputError, ShapeError
from convserve.reduction import Reduction
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.reduction import reduction_from_message, reduction_to_message

__all__ = [
    "LARGEST_SIDE",
    "PIECE_BYTES",
    "SceneHeader",
    "header_from_message",
    "header_to_message",
    "pieces_to_messages",
    "pixels_from_message",
    "pixels_to_messages",
]

PIECE_BYTES = 1 << 20
"""What one message carries of an image at most, in bytes, unless a single row is larger."""

LARGEST_SIDE = (1 << 31) - 1
"""Most rows, and most pixels of a row, that a request may speak of."""

_DTYPES: dict[int, np.dtype[Any]] = {pb.UINT8_HWC: np.dtype("u1"), pb.FP32_HWC: np.dtype("<f4")}
_MOST_CHANNELS = 1 << 16


@dataclass(frozen=True, slots=True)
class SceneHeader:
    """What a score map is asked of. dtype: "uint8" or "float32" rows, or None for an encoded file.

    width, height, channels: of rows; height 0 where only the end of the request tells it, channels 0 for as many
    as the network reads. classes: indices and labels, None for all. stride: (vertical, horizontal), None for the
    network's. memory_budget: bytes, 0 for the server's. reduction: what is kept of the scores. method, edge: as
    Model.score_map has them. version: of the model, "" for the newest.
    """

    dtype: str | None
    model: str = ""
    width: int = 0
    height: int = 0
    channels: int = 0
    classes: list[int | str] | None = None
    stride: tuple[int, int] | None = None
    memory_budget: int = 0
    reduction: Reduction = field(default_factory=Reduction)
    method: str = "auto"
    edge: str = "none"
    version: str = ""


def header_to_message(header: SceneHeader) -> pb.ScoreMapRequest:
    """Return the request that opens a score map."""
    layouts = {"uint8": pb.UINT8_HWC, "float32": pb.FP32_HWC, None: pb.ENCODED}
    if header.dtype not in layouts:
        raise InputError(f"dtype is {header.dtype!r}; allowed: uint8, float32, or None for an encoded file")
    stride = header.stride and pb.Extent(vertical=header.stride[0], horizontal=header.stride[1])
    message = pb.ScoreMapHeader(
        model=header.model,
        classes=[] if header.classes is None else codec.classes_to_message(header.classes),
        layout=layouts[header.dtype],
        width=header.width,
        height=header.height,
        channels=header.channels,
        stride=stride,
        memory_budget=header.memory_budget,
        reduction=reduction_to_message(header.reduction),
        method=header.method,
        edge=header.edge,
        version=header.version,
    )
    return pb.ScoreMapRequest(header=message)


def header_from_message(message: pb.ScoreMapHeader) -> SceneHeader:
    """Return what a header asks for; InputError or ShapeError where it cannot be meant."""
    classes = codec.classes_from_message(message.classes)
    method, edge = message.method or "auto", message.edge or "none"
    stride = (message.stride.vertical, message.stride.horizontal) if message.HasField("stride") else None
    reduction = reduction_from_message(message.reduction)
    if message.layout == pb.ENCODED:
        if message.width or message.height or message.channels:
            raise InputError("the header of an encoded image gives width, height or channels; its file has them")
        return SceneHeader(
            None,
            message.model,
            classes=classes,
            stride=stride,
            memory_budget=message.memory_budget,
            reduction=reduction,
            method=method,
            edge=edge,
            version=message.version,
        )
    if message.layout not in _DTYPES:
        raise InputError(f"the header's layout is {message.layout}; allowed: ENCODED, UINT8_HWC, FP32_HWC")
    for name, value, least, most in (
        ("width", message.width, 1, LARGEST_SIDE),
        ("height", message.height, 0, LARGEST_SIDE),
        ("channels", message.channels, 0, _MOST_CHANNELS),
    ):
        if not least <= value <= most:
            raise ShapeError(f"the header's {name} is {value}; allowed: {least} to {most}")
    return SceneHeader(
        "uint8" if message.layout == pb.UINT8_HWC else "float32",
        message.model,
        message.width,
        message.height,
        message.channels,
        classes,
        stride,
        message.memory_budget,
        reduction,
        method,
        edge,
        message.version,
    )


def pieces_to_messages(file: bytes | memoryview) -> Iterator[pb.ScoreMapRequest]:
    """Yield the requests that carry the bytes of an image file."""
    for begin in range(0, len(file), PIECE_BYTES):
        yield pb.ScoreMapRequest(piece=bytes(file[begin : begin + PIECE_BYTES]))


def pixels_to_messages(first_row: int, rows: np.ndarray) -> Iterator[pb.ScoreMapRequest]:
    """Yield the requests that carry rows of an image, uint8 or float32 (rows, width, channels).

    Raises InputError for other arrays.
    """
    if rows.ndim != 3 or rows.dtype not in (np.uint8, np.float32):
        raise InputError(f"the rows are {rows.dtype} of shape {rows.shape}; allowed: uint8 or float32 (rows, width, C)")
    dtype = _DTYPES[pb.UINT8_HWC if rows.dtype == np.uint8 else pb.FP32_HWC]
    step = max(1, PIECE_BYTES // max(1, rows.shape[1] * rows.shape[2] * dtype.itemsize))
    for row in range(0, len(rows), step):
        part = rows[row : row + step].astype(dtype, copy=False)
        yield pb.ScoreMapRequest(
            rows=pb.PixelRows(first_row=first_row + row, rows=len(part), pixels=part.tobytes())
        )


def pixels_from_message(message: pb.PixelRows, header: SceneHeader, *, first_row: int) -> np.ndarray:
    """Return the rows of a message, (rows, width, channels) of the header's dtype, a read-only view of its bytes.

    first_row: the rows that came before. Raises ShapeError where the message does not go on there, has more rows
    than the image, or has not the bytes of whole rows.
    """
    if message.first_row != first_row:
        raise ShapeError(f"row {message.first_row} came; the next row of the image is {first_row}")
    if message.rows < 1:
        raise ShapeError(f"a part of the image has {message.rows} rows; it needs at least 1")
    if header.height and first_row + message.rows > header.height:
        raise ShapeError(f"rows {first_row} to {first_row + message.rows} came; the image has {header.height}")
    dtype = np.dtype("u1" if header.dtype == "uint8" else "<f4")
    row_bytes = header.width * header.channels * dtype.itemsize
    if len(message.pixels) != message.rows * row_bytes:
        raise ShapeError(
            f"{message.rows} rows of {header.width} pixels, {header.channels} channel(s) of {dtype.name}, take"
            f" {message.rows * row_bytes} bytes, but {len(message.pixels)} came: {len(message.pixels) / row_bytes:.6g}"
            " rows"
        )
    return np.frombuffer(message.pixels, dtype).reshape(message.rows, header.width, header.channels)
