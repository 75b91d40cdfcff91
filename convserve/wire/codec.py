"""Arrays, geometries and predictions to and from messages; no tensor becomes a Python list on the way."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from convserve.averaging import Averaging
from convserve.errors import InputError, RemoteError, ShapeError
from convserve.reduction import Reduction
from convserve.results import Geometry, PlanBytes, Prediction, SizedPlan
from convserve.wire import convserve_pb2 as pb
from convserve.wire.reduction import reduction_to_message

__all__ = [
    "ROWS_BYTES",
    "array_to_tensor",
    "averaging_from_message",
    "classes_from_message",
    "classes_to_message",
    "classification_to_message",
    "completed_geometry",
    "completion_to_message",
    "geometry_from_message",
    "geometry_to_message",
    "image_from_message",
    "plan_from_message",
    "plan_to_message",
    "predictions_from_message",
    "rows_from_message",
    "rows_to_messages",
    "tensor_to_array",
]

ROWS_BYTES = 1 << 20
"""Scores that one message carries at most, in bytes, unless a single row is larger."""

_FLOAT32 = np.dtype("<f4")
_LAYOUTS: dict[int, tuple[np.dtype[Any], int, str]] = {
    pb.UINT8_HWC: (np.dtype("u1"), 3, "H, W, C"),
    pb.FP32_NCHW: (_FLOAT32, 4, "1, C, H, W"),
}
_EXACTNESS = {"exact": pb.EXACT, "interior-exact": pb.INTERIOR_EXACT, "padded": pb.PADDED}
_EXACTNESS_NAMES: dict[int, str] = {number: name for name, number in _EXACTNESS.items()}


def array_to_tensor(array: np.ndarray) -> pb.Tensor:
    """Return the message of a uint8 (H, W) or (H, W, C) image or a float32 (1, C, H, W) volume.

    Raises InputError for any other dtype or number of axes.
    """
    if array.dtype == np.uint8 and array.ndim in (2, 3):
        pixels = array[:, :, None] if array.ndim == 2 else array
        return pb.Tensor(layout=pb.UINT8_HWC, shape=pixels.shape, data=pixels.tobytes())
    if array.dtype == np.float32 and array.ndim == 4 and array.shape[0] == 1:
        return pb.Tensor(layout=pb.FP32_NCHW, shape=array.shape, data=array.astype(_FLOAT32, copy=False).tobytes())
    raise InputError(
        f"an image is an array of {array.dtype} {array.shape}; allowed are uint8 (H, W) or (H, W, C),"
        " and float32 (1, C, H, W) for values that are preprocessed already"
    )


def tensor_to_array(tensor: pb.Tensor) -> np.ndarray:
    """Return the array that a message carries, a read-only view of its bytes.

    Raises ShapeError for a wrong number of axes, a size below 1, more than one image, or a byte count that
    is not the shape's; InputError for an unknown layout.
    """
    if tensor.layout not in _LAYOUTS:
        raise InputError(f"the tensor's layout is {tensor.layout}; allowed: UINT8_HWC, FP32_NCHW")
    dtype, axes, names = _LAYOUTS[tensor.layout]
    if len(tensor.shape) != axes:
        raise ShapeError(f"a {pb.Layout.Name(tensor.layout)} tensor has axes ({names}), but {len(tensor.shape)} came")
    shape = tuple(tensor.shape)
    if min(shape) < 1:
        raise ShapeError(f"a tensor's shape is {shape}; every size must be at least 1")
    if tensor.layout == pb.FP32_NCHW and shape[0] != 1:
        raise ShapeError(f"a tensor's shape is {shape}; one image is (1, C, H, W), several are several tensors")
    # Python integers do not wrap, so a shape such as (2**62, 4, 4) cannot pass as a small one.
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(tensor.data):
        raise ShapeError(f"a tensor of shape {shape} takes {expected} bytes, but {len(tensor.data)} came")
    return np.frombuffer(tensor.data, dtype=dtype).reshape(shape)


def image_from_message(image: pb.Image) -> bytes | np.ndarray:
    """Return an image as the file's bytes, or as the array of its tensor; InputError where it is empty."""
    match image.WhichOneof("content"):
        case "encoded" if image.encoded:
            return image.encoded
        case "tensor":
            return tensor_to_array(image.tensor)
    raise InputError("an image of the request is empty; send the bytes of an image file or a tensor")


def averaging_from_message(request: pb.ClassifyRequest) -> Averaging:
    """Return what a request asks to be averaged; InputError where it cannot be meant."""
    names = {pb.AVERAGE_UNSPECIFIED: None, pb.PROBABILITIES: "probabilities", pb.LOGITS: "logits"}
    if request.average not in names:
        raise InputError(f"the request's average is {request.average}; allowed: PROBABILITIES, LOGITS")
    return Averaging(scales=tuple(request.scales) or None, flip=request.flip, average=names[request.average])


def classes_to_message(classes: Sequence[int | str]) -> list[pb.ClassChoice]:
    """Return the messages of class indices and labels; InputError for anything else, or an empty list."""
    if isinstance(classes, str) or not len(classes):
        raise InputError(f"classes is {classes!r}; it must be a list of class indices or labels")
    choices = []
    for wanted in classes:
        if isinstance(wanted, str):
            choices.append(pb.ClassChoice(label=wanted))
        elif isinstance(wanted, int | np.integer) and 0 <= wanted < 1 << 32:
            choices.append(pb.ClassChoice(index=int(wanted)))
        else:
            raise InputError(f"class {wanted!r} does not exist; give indices from 0 or labels")
    return choices


def classes_from_message(choices: Iterable[pb.ClassChoice]) -> list[int | str] | None:
    """Return class indices and labels in the order asked for; None where all classes are meant."""
    return [one.label if one.WhichOneof("choice") == "label" else one.index for one in choices] or None


def plan_to_message(plan: SizedPlan) -> pb.PlanBytes:
    """Return the message of what a plan takes."""
    return pb.PlanBytes(
        arena=plan.arena_bytes, scratch=plan.scratch_bytes, weights=plan.weight_bytes, scores=plan.score_bytes
    )


def plan_from_message(message: pb.PlanBytes) -> PlanBytes:
    """Return what a plan on the server takes."""
    return PlanBytes(message.arena, message.scratch, message.weights, message.scores)


def classification_to_message(predictions: list[Prediction]) -> pb.Classification:
    """Return the message of one image's predictions, best first."""
    return pb.Classification(
        predictions=[pb.Prediction(label=one.label, index=one.index, score=one.score) for one in predictions]
    )


def predictions_from_message(message: pb.Classification) -> list[Prediction]:
    """Return one image's predictions, best first."""
    return [Prediction(one.label, one.index, one.score) for one in message.predictions]


def geometry_to_message(
    geometry: Geometry, plan: SizedPlan, *, model: str, version: str = "", reduction: Reduction | None = None
) -> pb.Geometry:
    """Return the message that opens a score map's stream; rows 0 says that the height is not known."""
    return pb.Geometry(
        model=model,
        version=version,
        rows=geometry.rows,
        cols=geometry.cols,
        classes=geometry.classes,
        labels=geometry.labels or [],
        stride=_extent(geometry.stride),
        window=_extent(geometry.window),
        offset=_extent(geometry.offset),
        exactness=_EXACTNESS[geometry.exactness],
        ring=_ring(geometry),
        plan=plan_to_message(plan),
        edge=geometry.edge,
        method=geometry.method,
        height=geometry.image[0],
        width=geometry.image[1],
        reduction=None if reduction is None else reduction_to_message(reduction),
    )


def completion_to_message(
    geometry: Geometry, plan: SizedPlan, *, seconds: float, measured_bytes: int
) -> pb.Completion:
    """Return the message that ends a score map's stream, with the geometry of the image as it came."""
    return pb.Completion(
        seconds=seconds,
        rows=geometry.rows,
        exactness=_EXACTNESS[geometry.exactness],
        ring=_ring(geometry),
        plan=plan_to_message(plan),
        measured_bytes=measured_bytes,
        height=geometry.image[0],
    )


def completed_geometry(geometry: Geometry, message: pb.Completion) -> Geometry:
    """Return a geometry whose rows, exactness, ring and image height are those that a completion tells."""
    return replace(
        geometry,
        rows=message.rows,
        exactness=_exactness_name(message.exactness),
        ring=_ring_sides(message.ring),
        image=(message.height, geometry.image[1]),
    )


def geometry_from_message(message: pb.Geometry) -> Geometry:
    """Return a score map's geometry; RemoteError where the server sent an exactness that nobody knows."""
    return Geometry(
        rows=message.rows,
        cols=message.cols,
        classes=list(message.classes),
        labels=list(message.labels) or None,
        stride=(message.stride.vertical, message.stride.horizontal),
        window=(message.window.vertical, message.window.horizontal),
        offset=(message.offset.vertical, message.offset.horizontal),
        exactness=_exactness_name(message.exactness),
        ring=_ring_sides(message.ring),
        image=(message.height, message.width),
        edge=message.edge or "none",
        method=message.method or "dense",
    )


def rows_to_messages(first_row: int, arrays: dict[str, np.ndarray]) -> Iterator[pb.ScoreRows]:
    """Yield messages of at most ROWS_BYTES that together carry rows of a map: what Reduction.apply gives of a block."""
    rows = len(next(iter(arrays.values())))
    row_bytes = sum(array.nbytes for array in arrays.values()) // max(1, rows)
    step = max(1, ROWS_BYTES // max(1, row_bytes))
    for row in range(0, rows, step):
        parts = {name: array[row : row + step] for name, array in arrays.items()}
        raw = {name: part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes() for name, part in parts.items()}
        yield pb.ScoreRows(first_row=first_row + row, rows=min(step, rows - row), **raw)


def rows_from_message(message: pb.ScoreRows, geometry: Geometry, reduction: Reduction) -> dict[str, np.ndarray]:
    """Return the arrays of a message by name, (rows, cols, shape of a position), read-only views of its bytes.

    geometry.rows 0 stands for any number. Raises RemoteError where rows or byte count do not fit the geometry.
    """
    if geometry.rows and message.first_row + message.rows > geometry.rows:
        raise RemoteError(
            f"the server sent score rows {message.first_row} to {message.first_row + message.rows} of {geometry.rows}"
        )
    arrays = {}
    for name, dtype, position in reduction.arrays(len(geometry.classes)):
        shape = (message.rows, geometry.cols, *position)
        raw: bytes = getattr(message, name)
        expected = math.prod(shape) * dtype.itemsize
        if expected != len(raw):
            raise RemoteError(f"score rows of shape {shape} take {expected} bytes, but {len(raw)} came")
        arrays[name] = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)
    return arrays


def _extent(pair: tuple[int, int]) -> pb.Extent:
    return pb.Extent(vertical=pair[0], horizontal=pair[1])


def _ring(geometry: Geometry) -> pb.Ring:
    top, left, bottom, right = geometry.ring
    return pb.Ring(top=top, left=left, bottom=bottom, right=right)


def _ring_sides(ring: pb.Ring) -> tuple[int, int, int, int]:
    return ring.top, ring.left, ring.bottom, ring.right


def _exactness_name(number: int) -> str:
    if number not in _EXACTNESS_NAMES:
        raise RemoteError(f"the server sent the exactness {number}, which this client does not know")
    return _EXACTNESS_NAMES[number]
