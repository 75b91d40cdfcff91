"""What a client says, without any transport: requests, and images in pieces that fit messages."""

import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convserve.averaging import Averaging
from convserve.errors import ImageError, InputError, ShapeError
from convserve.reduction import Reduction, checked_reduction
from convserve.scenes import RowSource, is_scene, open_scene
from convserve.settings import parse_budget
from convserve.wire import codec, scene
from convserve.wire import convserve_pb2 as pb
from convserve.wire.reduction import reduction_to_message

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | Image | RowSource

__all__ = [
    "MapOptions",
    "Scene",
    "checked_block",
    "classify_requests",
    "image_message",
    "plan_request",
    "scene_of",
    "seconds_of",
]

GROUP_BYTES = 32 << 20
GROUP_IMAGES = 1024
"""Where a list of images is parted into several Classify requests; servers refuse longer ones."""


def _file_error(path: str | os.PathLike[str], error: OSError) -> ImageError:
    return ImageError(f"the image {os.fspath(path)!r} cannot be read: {error.strerror or error}")


def _is_pillow(source: Any) -> bool:
    # a PIL image exists only where PIL is loaded already
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(source, pillow.Image)


def _no_image(source: Any) -> InputError:
    return InputError(
        f"an image is of type {type(source).__name__}; allowed are a path, bytes, a PIL image and a NumPy array"
    )


# ---- images of a Classify request


def image_message(source: "ImageSource") -> pb.Image:
    """Return the message of an image: a path, encoded bytes, a PIL image, or a uint8 (H, W, C) or float32 (1, C, H, W).

    Files go as they are and are decoded by the server. Raises ImageError, InputError.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(source))
    if isinstance(source, str | os.PathLike):
        try:
            return pb.Image(encoded=Path(source).read_bytes())
        except OSError as error:
            raise _file_error(source, error) from error
    if isinstance(source, np.ndarray):
        return pb.Image(tensor=codec.array_to_tensor(source))
    if _is_pillow(source):
        return pb.Image(encoded=_png(source))
    raise _no_image(source)


def _png(image: Any) -> bytes:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        upright = upright.convert("RGB")
    stream = io.BytesIO()
    upright.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def classify_requests(
    images: "Sequence[ImageSource]", *, model: str, version: str = "", top: int, averaging: Averaging
) -> Iterator[pb.ClassifyRequest]:
    """Yield the requests for the best `top` classes of each image, in order; InputError where top is below 1."""
    if not isinstance(top, int) or not 1 <= top < 1 << 32:
        raise InputError(f"top is {top!r}; it must be a whole number from 1")
    asked = pb.ClassifyRequest(
        model=model,
        version=version,
        top=top,
        scales=averaging.scales,
        flip=averaging.flip,
        average=averaging.average and averaging.average.upper(),
    )
    group: list[pb.Image] = []
    size = 0
    for image in images:
        message = image_message(image)
        if group and (size + message.ByteSize() > GROUP_BYTES or len(group) == GROUP_IMAGES):
            yield _with_images(asked, group)
            group, size = [], 0
        group.append(message)
        size += message.ByteSize()
    if group:
        yield _with_images(asked, group)


def _with_images(asked: pb.ClassifyRequest, images: list[pb.Image]) -> pb.ClassifyRequest:
    request = pb.ClassifyRequest(images=images)
    request.MergeFrom(asked)
    return request


# ---- images of a score map


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions:
    """What is asked of a score map beside its image, as the client's methods take it."""

    model: str = ""
    version: str = ""
    classes: Sequence[int | str] | None = None
    stride: int | tuple[int, int] | None = None
    memory_budget: int | str | None = None
    reduce: Reduction | None = None
    method: str = "auto"
    edge: str = "none"

    def header(self, dtype: str | None, *, width: int = 0, height: int = 0, channels: int = 0) -> pb.ScoreMapRequest:
        """Return the request that opens the map; InputError for options outside their range."""
        steps = None
        if self.stride is not None:
            pair = tuple(self.stride) if isinstance(self.stride, tuple | list) else (self.stride, self.stride)
            if len(pair) != 2 or not all(isinstance(step, int | np.integer) and 0 < step < 1 << 31 for step in pair):
                raise InputError(
                    f"stride is {self.stride!r}; it must be a whole number above 0 or (vertical, horizontal) of such"
                )
            steps = int(pair[0]), int(pair[1])
        if self.classes is not None:
            codec.classes_to_message(self.classes)
        if max(width, height) > scene.LARGEST_SIDE:
            raise ShapeError(f"the image is {height}x{width}; at most {scene.LARGEST_SIDE} pixels a side are allowed")
        return scene.header_to_message(
            scene.SceneHeader(
                dtype,
                self.model,
                width,
                height,
                channels,
                None if self.classes is None else list(self.classes),
                steps,
                _bytes(self.memory_budget),
                checked_reduction(self.reduce),
                self.method,
                self.edge,
                self.version,
            )
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """An image as a stream carries it: the header's fields, and pieces(), which may be asked for again."""

    dtype: str | None
    width: int
    height: int
    channels: int
    pieces: Callable[[], Iterator[pb.ScoreMapRequest]]

    def header(self, options: MapOptions) -> pb.ScoreMapRequest:
        """Return the request that opens its score map."""
        return options.header(self.dtype, width=self.width, height=self.height, channels=self.channels)


def scene_of(source: "ImageSource") -> Scene:
    """Return an image in pieces: files and encoded bytes as they are, everything else as blocks of rows.

    So are files that are read by rows: .npy, .zarr, and a TIFF where a package is there that does. Raises ImageError,
    InputError, ShapeError.
    """
    if is_scene(source):
        return _source_scene(open_scene(source))
    if isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source).cast("B")
        return Scene(None, 0, 0, 0, lambda: scene.pieces_to_messages(view))
    if isinstance(source, str | os.PathLike):
        _opened(source).close()
        return Scene(None, 0, 0, 0, lambda: _file_pieces(source))
    if _is_pillow(source):
        return _rows_scene(_pixels_of(source))
    if not isinstance(source, np.ndarray):
        raise _no_image(source)
    if source.dtype == np.uint8 and source.ndim in (2, 3):
        return _rows_scene(source[:, :, None] if source.ndim == 2 else source)
    if source.dtype == np.float32 and source.ndim == 4 and source.shape[0] == 1:
        return _rows_scene(source[0].transpose(1, 2, 0))
    raise InputError(
        f"an image is an array of {source.dtype} {source.shape}; allowed are uint8 (H, W) or (H, W, C),"
        " and float32 (1, C, H, W) for values that are preprocessed already"
    )


def _opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise _file_error(path, error) from error


def _file_pieces(path: str | os.PathLike[str]) -> Iterator[pb.ScoreMapRequest]:
    with _opened(path) as file:
        while piece := file.read(scene.PIECE_BYTES):
            yield from scene.pieces_to_messages(piece)


def _pixels_of(image: Any) -> np.ndarray:
    # decoded here by the rules by which a server decodes files; gray ones stay gray
    from convserve.images.decode import decode

    return decode(image, channels="gray" if image.mode in ("1", "L", "I", "I;16") else "rgb")


def _rows_scene(rows: np.ndarray) -> Scene:
    if 0 in rows.shape:
        raise ShapeError(f"the image has shape {rows.shape} (H, W, C); every size must be at least 1")
    height, width, channels = rows.shape
    return Scene(rows.dtype.name, width, height, channels, lambda: scene.pixels_to_messages(0, rows))


def _source_scene(source: RowSource) -> Scene:
    def pieces() -> Iterator[pb.ScoreMapRequest]:
        done = 0
        for rows in source.pieces(source.channels):
            yield from scene.pixels_to_messages(done, rows)
            done += len(rows)

    return Scene(source.dtype.name, source.width, source.height, source.channels, pieces)


def checked_block(block: Any, *, width: int, like: np.ndarray | None) -> np.ndarray:
    """Return a block of rows; ShapeError where it is not (k, width, channels), or not like the block before."""
    if not isinstance(block, np.ndarray) or block.dtype not in (np.uint8, np.float32) or block.ndim != 3:
        found = f"{block.dtype} {block.shape}" if isinstance(block, np.ndarray) else type(block).__name__
        raise ShapeError(f"the rows are {found}; they must be an array (rows, {width}, channels) of uint8 or float32")
    if block.shape[1] != width or not block.shape[2]:
        raise ShapeError(f"the rows have shape {block.shape}; they must be (rows, {width}, channels)")
    if like is not None and (block.dtype != like.dtype or block.shape[2] != like.shape[2]):
        raise ShapeError(
            f"the rows are {block.dtype} of {block.shape[2]} channel(s);"
            f" those before were {like.dtype} of {like.shape[2]}"
        )
    return block


# ---- plans, options


def plan_request(
    height: int,
    width: int,
    *,
    model: str,
    version: str,
    batch: int,
    memory_budget: int | str | None,
    hold_scores: bool,
    classes: Sequence[int | str] | None,
    reduce: Reduction | None,
) -> pb.PlanMemoryRequest:
    """Return the request for what a run would take; InputError for sizes that are no whole numbers from 1."""
    for name, value in (("height", height), ("width", width), ("batch", batch)):
        if not isinstance(value, int | np.integer) or not 1 <= value < 1 << 62:
            raise InputError(f"{name} is {value!r}; it must be a whole number from 1")
    return pb.PlanMemoryRequest(
        model=model,
        version=version,
        height=int(height),
        width=int(width),
        batch=int(batch),
        hold_scores=hold_scores,
        memory_budget=_bytes(memory_budget),
        classes=[] if classes is None else codec.classes_to_message(classes),
        reduction=reduction_to_message(checked_reduction(reduce)),
    )


def _bytes(memory_budget: int | str | None) -> int:
    return min(parse_budget(memory_budget) or 0, (1 << 64) - 1)


def seconds_of(timeout: float | None) -> float | None:
    """Return a timeout in seconds, None for no limit (None or infinity); InputError where it is no number above 0."""
    if timeout is None:
        return None
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise InputError(f"timeout is {timeout!r}; it must be a number of seconds above 0")
    return None if math.isinf(timeout) else timeout
