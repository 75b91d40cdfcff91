"""What comes of a score map's request: the header, then the image in parts, each read only when it is wanted."""

import asyncio
import time
from dataclasses import replace

import grpc
import numpy as np

from convserve.errors import InputError, RunCancelled, ShapeError
from convserve.server.ledger import Reservation
from convserve.server.unread import COPIES
from convserve.wire import convserve_pb2 as pb
from convserve.wire.scene import SceneHeader, header_from_message, pixels_from_message

__all__ = ["Incoming", "with_channels"]

_SLOWEST_BYTES_PER_S = 16 << 10


class Incoming:
    """Reads one call's requests in their order. Every method raises RunCancelled where nothing comes for stall_s."""

    def __init__(self, context: grpc.aio.ServicerContext, *, stall_s: float) -> None:
        self._context = context
        self._stall_s = stall_s
        self._rows = 0

    async def _next(self) -> pb.ScoreMapRequest | None:
        try:
            async with asyncio.timeout(self._stall_s):
                request = await self._context.read()
        except TimeoutError:
            raise RunCancelled(f"no part of the image came for {self._stall_s:g} s") from None
        if request is None:
            raise InputError("the bytes that came are no request of ScoreMap")
        return None if request is grpc.aio.EOF else request

    async def header(self) -> SceneHeader:
        """Return the header; InputError where something else came first."""
        request = await self._next()
        kind = request and request.WhichOneof("content")
        if kind != "header":
            came = "nothing" if request is None else f"'{kind}'" if kind else "an empty message"
            raise InputError(f"a score map's request begins with its header, but {came} came")
        assert request is not None
        return header_from_message(request.header)

    async def _part(self, wanted: str) -> pb.ScoreMapRequest | None:
        request = await self._next()
        if request is None:
            return None
        kind = request.WhichOneof("content")
        if kind == "header":
            raise InputError("a second header came; a request has one header, and one image")
        if kind != wanted:
            raise InputError(f"{kind or 'an empty message'} came; by its header the image comes as '{wanted}'")
        return request

    async def file(self, limit_bytes: int, held: Reservation) -> bytes:
        """Return all bytes of an encoded image; InputError where there are none, or more than limit_bytes.

        held: grows to what they take, piece by piece. RunCancelled where they come so slowly that the place of the
        call is not worth it.
        """
        # one block, since tiny pieces would take many times their length each for themselves
        found = bytearray()
        start_s = time.monotonic()
        while (request := await self._part("piece")) is not None:
            found += request.piece
            await held.resize(max(held.bytes, COPIES * len(found)))
            if len(found) > limit_bytes:
                raise InputError(f"the image file has more than the {limit_bytes} bytes that are allowed")
            if time.monotonic() - start_s > self._stall_s + len(found) / _SLOWEST_BYTES_PER_S:
                raise RunCancelled(f"the image came more slowly than {_SLOWEST_BYTES_PER_S} bytes a second")
        if not found:
            raise InputError("the request ended before any byte of the image came")
        return bytes(found)

    async def rows(self, header: SceneHeader) -> np.ndarray | None:
        """Return the next rows of the image, (rows, width, channels); None behind the last.

        Raises ShapeError where they do not go on with the image, or where it ends before its height.
        """
        request = await self._part("rows")
        if request is not None:
            rows = pixels_from_message(request.rows, header, first_row=self._rows)
            self._rows += len(rows)
            return rows
        if not self._rows:
            raise ShapeError("the request ended before any row of the image came")
        if header.height and self._rows != header.height:
            raise ShapeError(f"the request ended after {self._rows} of the {header.height} rows of its image")
        return None


def with_channels(header: SceneHeader, channels: int, *, longest_bytes: int) -> SceneHeader:
    """Return the header with its rows' channels, the network's where it names none.

    Pixels may have those of any image (1, 3 or 4) where the network reads images. Raises ShapeError for others, and
    for rows that no message holds.
    """
    images = header.dtype == "uint8" and channels in (1, 3) and header.channels in (1, 3, 4)
    if header.channels not in (0, channels) and not images:
        raise ShapeError(f"the header's channels is {header.channels}; the network reads {channels}")
    channels = header.channels or channels
    row_bytes = header.width * channels * (1 if header.dtype == "uint8" else 4)
    if row_bytes > longest_bytes:
        raise ShapeError(
            f"the header's width is {header.width}, {row_bytes} bytes a row; a message holds {longest_bytes} at most"
        )
    return replace(header, channels=channels)
