"""How a client reads answers, without any transport: predictions, score rows in their order, failures, waits."""

import random
from typing import Any

import grpc
import numpy as np

from convserve.averaging import Averaging
from convserve.errors import ConvserveError, MemoryBudgetError, RemoteError
from convserve.reduction import Reduction
from convserve.results import Geometry, Predictions, RunReport, ScoreMap
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.reduction import reduction_to_message
from convserve.wire.status import ERROR_KEY, PUSHBACK_KEY, error_of

__all__ = ["MapCollector", "MapReader", "error_from_call", "predictions_of", "retry_wait_s"]

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0


def predictions_of(response: pb.ClassifyResponse, count: int, averaging: Averaging) -> list[Predictions]:
    """Return each image's predictions with the server's report; RemoteError where it answered for another number.

    averaging: what was asked for; a server that does not know it tells of no passes.
    """
    if len(response.classifications) != count:
        raise RemoteError(f"the server answered for {len(response.classifications)} images; {count} were sent")
    if averaging.asked and response.passes != averaging.passes:
        raise RemoteError("the server does not average as asked; it may be older than this client")
    report = RunReport(codec.plan_from_message(response.plan), response.measured_bytes, response.seconds)
    return [Predictions(codec.predictions_from_message(one), report=report) for one in response.classifications]


class MapReader:
    """Reads the messages of a score map one by one; refuses a stream that is not whole or not in order."""

    def __init__(self, first: pb.ScoreMapResponse, reduction: Reduction) -> None:
        """first: the message that opens the stream; RemoteError where it is no geometry, or of another reduction."""
        if first.WhichOneof("content") != "geometry":
            raise RemoteError(f"the server's stream begins with {first.WhichOneof('content')}, not with its geometry")
        if first.geometry.reduction != (reduction_to_message(reduction) or pb.Reduction()):
            raise RemoteError("the server does not reduce the score map as asked; it may be older than this client")
        self.reduction = reduction
        self.geometry = codec.geometry_from_message(first.geometry)
        """rows is 0 until the completion where the image's height was not known."""
        self.plan = codec.plan_from_message(first.geometry.plan)
        self.seconds = 0.0
        self.measured_bytes = 0
        self.done_rows = 0
        """Rows that have come."""
        self._complete = False

    def read(self, response: pb.ScoreMapResponse) -> tuple[int, dict[str, np.ndarray]] | None:
        """Return (first_row, arrays by name) of the next message, None for the completion.

        Raises RemoteError where it does not continue the ones before.
        """
        kind = response.WhichOneof("content")
        if kind == "rows" and not self._complete and response.rows.first_row == self.done_rows:
            first, arrays = self.done_rows, codec.rows_from_message(response.rows, self.geometry, self.reduction)
            self.done_rows += response.rows.rows
            return first, arrays
        if kind == "completion" and not self._complete:
            self._end(response.completion)
            return None
        raise RemoteError(f"the server's stream is out of order: {kind} came after {self.done_rows} rows")

    def _end(self, completion: pb.Completion) -> None:
        if completion.rows != self.done_rows or (self.geometry.rows and self.geometry.rows != self.done_rows):
            raise RemoteError(
                f"the server's stream ended after {self.done_rows} of {self.geometry.rows or completion.rows} rows"
            )
        self.geometry = codec.completed_geometry(self.geometry, completion)
        if completion.HasField("plan"):
            self.plan = codec.plan_from_message(completion.plan)
        self.seconds, self.measured_bytes = completion.seconds, completion.measured_bytes
        self._complete = True

    @property
    def report(self) -> RunReport:
        """What the server planned, and what it measured: 0 bytes and seconds before the completion."""
        return RunReport(self.plan, self.measured_bytes, self.seconds)

    def end(self) -> None:
        """Raise RemoteError where the stream ended before its completion."""
        if not self._complete:
            raise RemoteError(f"the server's stream ended after {self.done_rows} rows, before its completion")


class MapCollector:
    """Puts the blocks of a stream together to a ScoreMap."""

    def __init__(self, geometry: Geometry, reduction: Reduction) -> None:
        self._reduction = reduction
        self._arrays: dict[str, np.ndarray] = {}
        for name, dtype, position in reduction.arrays(len(geometry.classes)):
            shape = geometry.rows, geometry.cols, *position
            try:
                self._arrays[name] = np.empty(shape, dtype)
            except (MemoryError, ValueError) as error:
                raise MemoryBudgetError(f"a score map of {shape} {dtype} values does not fit into memory") from error

    def add(self, first_row: int, block: dict[str, np.ndarray]) -> None:
        """Take the next block."""
        for name, rows in block.items():
            self._arrays[name][first_row : first_row + len(rows)] = rows

    def result(self, geometry: Geometry, report: RunReport) -> ScoreMap:
        """Return the map, with the server's report."""
        return ScoreMap.over(geometry, self._arrays, report=report, reduction=self._reduction)


def _trailers(error: grpc.RpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())  # type: ignore[arg-type]


def error_from_call(error: grpc.RpcError, *, address: str, timeout_s: float | None) -> ConvserveError:
    """Return the exception of errors.py for a failed call: the class that the server named, else the status's own."""
    code, text, trailers = error.code(), error.details() or "", _trailers(error)
    name = trailers.get(ERROR_KEY)
    if name is None and code == grpc.StatusCode.DEADLINE_EXCEEDED:
        text = f"the server at {address} did not finish within the timeout of {timeout_s} s"
    elif name is None and code == grpc.StatusCode.UNAVAILABLE:
        text = f"the server at {address} cannot be reached: {text}"
    elif name is None:
        text = f"the server at {address} answered {code.name}: {text}"
    return error_of(code, text, name, pushback_ms=trailers.get(PUSHBACK_KEY))


def retry_wait_s(error: grpc.RpcError, attempt: int) -> float | None:
    """Return how long to wait before a failed call is made again, in seconds; None where it must not be.

    attempt: 0 for the first. UNAVAILABLE waits twice as long each time, RESOURCE_EXHAUSTED only if the server says
    how long; a server may also say that it wants no retry (a number below 0).
    """
    pushback = _trailers(error).get(PUSHBACK_KEY)
    if error.code() == grpc.StatusCode.UNAVAILABLE and pushback is None:
        longest = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S)
        return random.uniform(longest / 2, longest)
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED) or pushback is None:
        return None
    return int(pushback) / 1000 * random.uniform(1, 1.25) if str(pushback).isdigit() else None
