"""What a client says and how it reads the answers, without any transport: requests, results, errors."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from convserve.errors import ConvserveError, ImageError, InputError, MemoryBudgetError, RemoteError
from convserve.results import Geometry, PlanBytes, Prediction, ScoreMap
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.status import ERROR_KEY, error_of

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | Image

__all__ = [
    "MapCollector",
    "classify_request",
    "error_from_call",
    "image_to_message",
    "predictions_of",
    "score_map_request",
]

def image_to_message(source: "ImageSource") -> pb.Image:
    """Return the message of an image: a path, encoded bytes, a PIL image, or a uint8 (H, W, C) or float32 (1, C, H, W).

    Files go as they are and are decoded by the server. Raises ImageError, InputError.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(source))
    if isinstance(source, str | os.PathLike):
        try:
            return pb.Image(encoded=Path(source).read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise ImageError(f"the image {os.fspath(source)!r} cannot be read: {reason}") from error
    if isinstance(source, np.ndarray):
        return pb.Image(tensor=codec.array_to_tensor(source))
    # a PIL image exists only where PIL is loaded already
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(source, pillow.Image):
        return pb.Image(encoded=_png(source))
    raise InputError(
        f"an image is of type {type(source).__name__}; allowed are a path, bytes, a PIL image and a NumPy array"
    )


def _png(image: "Image") -> bytes:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        upright = upright.convert("RGB")
    stream = io.BytesIO()
    upright.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def classify_request(images: "Sequence[ImageSource]", *, model: str, top: int) -> pb.ClassifyRequest:
    """Return the request for the best `top` classes of each image; InputError where top is below 1."""
    if not isinstance(top, int) or not 1 <= top < 1 << 32:
        raise InputError(f"top is {top!r}; it must be a whole number from 1")
    return pb.ClassifyRequest(model=model, images=[image_to_message(image) for image in images], top=top)


def predictions_of(response: pb.ClassifyResponse, count: int) -> list[list[Prediction]]:
    """Return each image's predictions; RemoteError where the server answered for another number of images."""
    if len(response.classifications) != count:
        raise RemoteError(f"the server answered for {len(response.classifications)} images; {count} were sent")
    return [codec.predictions_from_message(one) for one in response.classifications]


def score_map_request(image: "ImageSource", *, model: str, classes: Sequence[int | str] | None) -> pb.ScoreMapRequest:
    """Return the request for an image's score map, of some classes (indices or labels) or of all."""
    choices = None if classes is None else codec.classes_to_message(classes)
    return pb.ScoreMapRequest(
        header=pb.ScoreMapHeader(model=model, classes=choices), image=image_to_message(image)
    )


class MapCollector:
    """Builds a ScoreMap from the messages of a stream, and refuses a stream that is not whole or not in order."""

    def __init__(self) -> None:
        self._geometry: Geometry | None = None
        self._scores = np.empty((0, 0, 0), np.float32)
        self._plan = PlanBytes()
        self._seconds = 0.0
        self._complete = False
        self.done_rows = 0
        """Rows that have come."""

    @property
    def rows(self) -> int:
        """Rows of the whole map; 0 before its geometry came."""
        return self._geometry.rows if self._geometry else 0

    def add(self, response: pb.ScoreMapResponse) -> None:
        """Take the stream's next message; RemoteError where it does not continue the ones before."""
        kind = response.WhichOneof("content")
        if kind == "geometry" and self._geometry is None:
            self._begin(response.geometry)
        elif kind == "rows" and self._geometry is not None and response.rows.first_row == self.done_rows:
            block = codec.rows_from_message(response.rows, self._geometry)
            self._scores[self.done_rows : self.done_rows + len(block)] = block
            self.done_rows += len(block)
        elif kind == "completion":
            self._seconds, self._complete = response.completion.seconds, True
        else:
            raise RemoteError(f"the server's stream is out of order: {kind} came after {self.done_rows} rows")

    def _begin(self, message: pb.Geometry) -> None:
        self._geometry, self._plan = codec.geometry_from_message(message), codec.plan_from_message(message.plan)
        shape = self._geometry.rows, self._geometry.cols, len(self._geometry.classes)
        try:
            self._scores = np.empty(shape, np.float32)
        except (MemoryError, ValueError) as error:
            raise MemoryBudgetError(f"a score map of {shape} float32 values does not fit into memory") from error

    def result(self) -> ScoreMap:
        """Return the map; RemoteError where the stream ended too early."""
        if self._geometry is None or not self._complete or self.done_rows != self._geometry.rows:
            raise RemoteError(f"the server's stream ended after {self.done_rows} of {self.rows} rows")
        return ScoreMap.over(self._geometry, self._scores, plan=self._plan, seconds=self._seconds)


def error_from_call(error: grpc.RpcError, *, address: str, timeout_s: float | None) -> ConvserveError:
    """Return the exception of errors.py for a failed call: the class that the server named, else the status's own."""
    code, text = error.code(), error.details() or ""
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    name = trailing.get(ERROR_KEY)
    if name is None and code == grpc.StatusCode.DEADLINE_EXCEEDED:
        text = f"the server at {address} did not finish within the timeout of {timeout_s} s"
    elif name is None and code == grpc.StatusCode.UNAVAILABLE:
        text = f"the server at {address} cannot be reached: {text}"
    elif name is None:
        text = f"the server at {address} answered {code.name}: {text}"
    return error_of(code, text, name)
