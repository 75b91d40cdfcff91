"""What both clients do, written once: calls with deadline and retries, score maps, questions about models."""

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import grpc
import numpy as np

from convserve.averaging import Averaging
from convserve.client import answers, requests
from convserve.client.streams import AsyncScoreStream, Outgoing
from convserve.client.transport import Call, Channel, credentials
from convserve.client.writing import write_map
from convserve.errors import InputError, RemoteError, ShapeError
from convserve.progress import ProgressBar
from convserve.reduction import Reduction, checked_reduction
from convserve.results import PlanBytes, Predictions, ScoreMap
from convserve.scenes import RowSource
from convserve.wire import codec, description, scene
from convserve.wire import convserve_pb2 as pb

if TYPE_CHECKING:
    from convserve.client.requests import ImageSource

    Images = list[ImageSource] | tuple[ImageSource, ...]

__all__ = ["RETRIES", "Core"]

Result = TypeVar("Result")

RETRIES = 4


class Core:
    """The methods of the asynchronous client over any channel; the synchronous client drives them to their end."""

    def __init__(
        self,
        channel: "Callable[[str, grpc.ChannelCredentials | None, list[tuple[str, str]]], Channel]",
        address: str,
        *,
        token: str | None,
        tls: bool | str | os.PathLike[str] | bytes | None,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None,
        timeout: float | None,
        retries: int,
    ) -> None:
        if not address or not isinstance(address, str):
            raise InputError(f'the address is {address!r}; give "host:port"')
        if not isinstance(retries, int) or not 0 <= retries <= 100:
            raise InputError(f"retries is {retries!r}; allowed: 0 to 100")
        self._address, self._retries = address, retries
        self._timeout = requests.seconds_of(timeout)
        self._closed = False
        metadata = [("authorization", f"Bearer {token}")] if token else []
        self._channel = channel(address, credentials(tls, certificate), metadata)

    async def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        self._closed = True
        await self._channel.close()

    # ---- calls

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else requests.seconds_of(timeout)

    async def _retried(
        self, attempt: Callable[[float | None], Awaitable[Result]], limit_s: float | None
    ) -> Result:
        """Return what attempt(seconds left) gives, again after failures that a retry may mend, within the limit."""
        if self._closed:
            raise InputError("the client is closed")
        end = None if limit_s is None else time.monotonic() + limit_s
        left, number = limit_s, 0
        while True:
            try:
                return await attempt(left)
            except grpc.RpcError as error:
                wait = answers.retry_wait_s(error, number)
                number += 1
                left = None if end is None else end - time.monotonic()
                if wait is None or number > self._retries or (left is not None and wait >= left):
                    raise answers.error_from_call(error, address=self._address, timeout_s=limit_s) from error
            await self._channel.sleep(wait)
            left = None if end is None else max(end - time.monotonic(), 1e-3)

    async def _unary(self, method: str, request: Any, limit_s: float | None) -> Any:
        return await self._retried(lambda left: self._channel.unary(method, request, left), limit_s)

    # ---- classify

    @overload
    async def classify(
        self,
        images: "Images",
        *,
        model: str = "",
        version: str = "",
        top: int = 5,
        scales: Sequence[int] | None = None,
        flip: bool = False,
        average: str | None = None,
        timeout: float | None = None,
    ) -> list[Predictions]: ...
    @overload
    async def classify(
        self,
        images: "ImageSource",
        *,
        model: str = "",
        version: str = "",
        top: int = 5,
        scales: Sequence[int] | None = None,
        flip: bool = False,
        average: str | None = None,
        timeout: float | None = None,
    ) -> Predictions: ...
    async def classify(
        self,
        images: Any,
        *,
        model: str = "",
        version: str = "",
        top: int = 5,
        scales: Sequence[int] | None = None,
        flip: bool = False,
        average: str | None = None,
        timeout: float | None = None,
    ) -> Predictions | list[Predictions]:
        """Return the `top` classes of an image, best first; of a list of images, a list for each.

        An image is a path, encoded bytes, a PIL image, a uint8 array (H, W, C), or float32 (1, C, H, W), taken as
        already preprocessed. model, version: "" are the server's only model and its newest version. scales, flip,
        average: count every position at each of these lengths of the short side, and of the mirror image, as
        Model.classify does. timeout: seconds, instead of the client's.
        A long list is sent in several requests, each with its own timeout. The predictions are a list with a report:
        what the server planned for their request, what it measured.
        """
        several = isinstance(images, list | tuple)
        averaging = Averaging(scales=scales, flip=flip, average=average)
        results: list[Predictions] = []
        limit_s = self._limit(timeout)
        every = images if several else [images]
        for request in requests.classify_requests(every, model=model, version=version, top=top, averaging=averaging):
            response = await self._unary("Classify", request, limit_s)
            results += answers.predictions_of(response, len(request.images), averaging)
        return results if several else results[0]

    # ---- score maps

    async def score_map(
        self,
        image: "ImageSource",
        *,
        model: str = "",
        version: str = "",
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        reduce: Reduction | None = None,
        method: str = "auto",
        edge: str = "none",
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        memory_budget: int | str | None = None,
        progress: bool = False,
        timeout: float | None = None,
    ) -> ScoreMap:
        """Return the scores of the server's network at every window position of an image.

        image: as for classify, never resized or cropped, of any size: it goes in pieces. stride: pixels between
        positions, default the network's, else a divisor or a multiple of it. method, edge: as Model.score_map has
        them. classes: indices or labels to keep, default all. reduce: what is kept, and sent, of a position's
        scores, default all, as they are. output: a file (.npy .npz .zarr .tif) to which rows go as they come: the image
        is then read by rows, and the result is a WrittenMap. resume: go on with what a call with the same arguments
        left. memory_budget: bytes that the run may take, below the server's own. progress: show a bar on stderr if it
        takes longer than a second. timeout: seconds for the whole map, instead of the client's; math.inf for no limit.
        """
        kept = checked_reduction(reduce)
        options: dict[str, Any] = {"stride": stride, "classes": classes, "method": method, "edge": edge}
        where: dict[str, Any] = {"model": model, "version": version, "memory_budget": memory_budget, "timeout": timeout}
        if output is not None:
            return await write_map(
                self, image, output, options=options, where=where, reduction=kept, resume=resume, progress=progress
            )
        if resume:
            raise InputError("resume goes on with a map on disk; give output=, a path that ends in .zarr for one")
        with ProgressBar("rows of scores", enabled=progress) as bar:
            stream = await self.score_stream(image, reduce=kept, **options, **where)
            try:
                collector = answers.MapCollector(stream.geometry, kept)
                bar.total = stream.geometry.rows
                async for first_row, block in stream:
                    collector.add(first_row, block)
                    bar.advance(len(next(iter(block.values()))))
            finally:
                stream.close()
        return collector.result(stream.geometry, stream.report)

    async def score_stream(
        self,
        image: "ImageSource",
        *,
        model: str = "",
        version: str = "",
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        reduce: Reduction | None = None,
        method: str = "auto",
        edge: str = "none",
        memory_budget: int | str | None = None,
        timeout: float | None = None,
    ) -> AsyncScoreStream:
        """Return the stream that score_map collects: its geometry is known, its blocks of rows come as they are final.

        The options are score_map's; with reduce, blocks are dicts of the arrays that it keeps. Leave the iteration only
        with close(), or by a with statement.
        """
        sent = requests.scene_of(image)
        options = requests.MapOptions(
            model=model,
            version=version,
            stride=stride,
            classes=classes,
            reduce=reduce,
            method=method,
            edge=edge,
            memory_budget=memory_budget,
        )
        header = sent.header(options)
        return await self._opened(lambda: Outgoing(header, _each(sent.pieces())), self._limit(timeout), reduce)

    async def stream(
        self,
        *,
        rows: "Iterable[np.ndarray] | AsyncIterable[np.ndarray] | RowSource",
        width: int | None = None,
        model: str = "",
        version: str = "",
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        reduce: Reduction | None = None,
        method: str = "auto",
        edge: str = "none",
        memory_budget: int | str | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Any]:
        """Yield blocks of score rows, float32 (k, cols, classes), of an image that comes as blocks of rows.

        rows: arrays (k, width, channels), uint8 to be preprocessed or float32 taken as they are, from an iterable (or
        what open_scene gives, which knows its width) that is read while scores are yielded (by the synchronous client
        in another thread). Neither side holds the image.
        The other options are score_map's; with reduce, blocks are dicts of the arrays that it keeps. Raises ShapeError
        for rows of another form.
        """
        if isinstance(rows, RowSource):
            width, rows = rows.width, rows.pieces(rows.channels)
        if not isinstance(width, int | np.integer) or width < 1:
            raise InputError(f"width is {width!r}; it must be a whole number from 1")
        blocks = _each(rows)
        first = await anext(blocks, None)
        if first is None:
            raise ShapeError("the image has no rows")
        first = requests.checked_block(first, width=int(width), like=None)
        options = requests.MapOptions(
            model=model,
            version=version,
            stride=stride,
            classes=classes,
            reduce=reduce,
            method=method,
            edge=edge,
            memory_budget=memory_budget,
        )
        header = options.header(first.dtype.name, width=int(width), channels=first.shape[2])
        stream = await self._opened(
            lambda: Outgoing(header, _row_messages(first, blocks), once=True), self._limit(timeout), reduce
        )
        try:
            async for _, scores in stream:
                yield scores
        finally:
            stream.close()

    async def _opened(
        self, outgoing: Callable[[], Outgoing], limit_s: float | None, reduce: Reduction | None
    ) -> AsyncScoreStream:
        kept = checked_reduction(reduce)

        async def attempt(left: float | None) -> AsyncScoreStream:
            sent = outgoing()
            call = self._channel.stream("ScoreMap", sent.messages(), left)
            sent.begun(call)
            try:
                reader = answers.MapReader(await self._first(call, sent, limit_s), kept)
                return AsyncScoreStream(reader, call, sent, self._address, limit_s, plain=reduce is None)
            except BaseException:
                call.cancel()
                raise

        return await self._retried(attempt, limit_s)

    async def _first(self, call: Call, sent: Outgoing, limit_s: float | None) -> pb.ScoreMapResponse:
        try:
            message = await call.read()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            if sent.failure is not None:
                raise sent.failure from None
            if isinstance(error, grpc.RpcError) and not sent.repeatable:
                raise answers.error_from_call(error, address=self._address, timeout_s=limit_s) from error
            raise
        if sent.failure is not None:
            raise sent.failure
        if message is None:
            raise RemoteError(f"the server at {self._address} ended the score map before its geometry")
        return message

    # ---- questions about models

    async def list_models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Return the server's models: dicts of name, version, state, reason, window, channels, classes and labels.

        One for each version, the newest first; state is "READY", "LOADING" or "UNAVAILABLE", and reason why a version,
        or a newer file of it, cannot be served. What is not known is None.
        """
        response = await self._unary("ListModels", pb.ListModelsRequest(), self._limit(timeout))
        return [description.summary_from_message(model) for model in response.models]

    async def describe(
        self, *, model: str = "", version: str = "", fingerprint: bool = False, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return a model's description as plain data: what list_models says of it, its totals, and each layer.

        fingerprint: also digits that are the same for the same network, which the server reads all weights for, once.
        """
        request = pb.DescribeModelRequest(model=model, version=version, fingerprint=fingerprint)
        response = await self._unary("DescribeModel", request, self._limit(timeout))
        return description.description_from_message(response)

    async def plan(
        self,
        height: int,
        width: int,
        *,
        model: str = "",
        version: str = "",
        batch: int = 1,
        memory_budget: int | str | None = None,
        hold_scores: bool = False,
        classes: Sequence[int | str] | None = None,
        reduce: Reduction | None = None,
        timeout: float | None = None,
    ) -> PlanBytes:
        """Return what a run over `batch` images of height x width pixels would take on the server, in bytes.

        hold_scores: count what is held of a score map, with its classes and reduce. Raises MemoryBudgetError, with the
        number that would do.
        """
        request = requests.plan_request(
            height,
            width,
            model=model,
            version=version,
            batch=batch,
            memory_budget=memory_budget,
            hold_scores=hold_scores,
            classes=classes,
            reduce=reduce,
        )
        response = await self._unary("PlanMemory", request, self._limit(timeout))
        return codec.plan_from_message(response.plan)


async def _each(items: Any) -> AsyncIterator[Any]:
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _row_messages(first: np.ndarray, blocks: AsyncIterator[Any]) -> AsyncIterator[pb.ScoreMapRequest]:
    done = len(first)
    for message in scene.pixels_to_messages(0, first):
        yield message
    async for block in blocks:
        rows = requests.checked_block(block, width=first.shape[1], like=first)
        for message in scene.pixels_to_messages(done, rows):
            yield message
        done += len(rows)
