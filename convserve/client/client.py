"""The two clients: one that blocks, one for an event loop."""

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from convserve.client.core import RETRIES, Core
from convserve.client.streams import ScoreStream
from convserve.client.transport import Blocking, Waiting, drive, driven
from convserve.errors import InputError
from convserve.reduction import Reduction
from convserve.results import PlanBytes, Predictions, ScoreMap
from convserve.scenes import RowSource

if TYPE_CHECKING:
    from convserve.client.core import Images
    from convserve.client.requests import ImageSource

__all__ = ["AsyncClient", "Client"]


class AsyncClient(Core):
    """Calls a convserve server from an event loop; an asynchronous context manager, or close() ends it.

    address: "host:port". token: sent as "authorization: Bearer". tls: None for plain text, True for TLS with
    the system's roots, or root certificates as PEM (path or bytes). certificate: PEM files of the client's own
    certificate and its key, for servers that ask for one. timeout: seconds that each call may take, its retries
    included, None for no limit. retries: how often a call is made again where the server cannot be reached or is busy,
    each time after a longer pause, and never once a part of the answer was seen.
    Every method raises the exceptions of convserve.errors: what the server raised, ServerUnavailable where
    it cannot be reached, ServerBusy where its queue is full, RunCancelled after the timeout.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: bool | str | os.PathLike[str] | bytes | None = None,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        timeout: float | None = 30,
        retries: int = RETRIES,
    ) -> None:
        super().__init__(
            Waiting, address, token=token, tls=tls, certificate=certificate, timeout=timeout, retries=retries
        )

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Client:
    """Calls a convserve server; threads may share one. A context manager, or close() ends it.

    Options and exceptions are those of AsyncClient, and so are the methods, which only lack its await.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: bool | str | os.PathLike[str] | bytes | None = None,
        certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
        timeout: float | None = 30,
        retries: int = RETRIES,
    ) -> None:
        self._core = Core(
            Blocking, address, token=token, tls=tls, certificate=certificate, timeout=timeout, retries=retries
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls under way are cancelled."""
        drive(self._core.close())

    @overload
    def classify(
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
    def classify(
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
    def classify(
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
    ) -> Predictions | list[Predictions]:  # documented below
        return drive(
            self._core.classify(
                images,
                model=model,
                version=version,
                top=top,
                scales=scales,
                flip=flip,
                average=average,
                timeout=timeout,
            )
        )

    def score_map(
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
    ) -> ScoreMap:  # documented below
        return drive(
            self._core.score_map(
                image,
                model=model,
                version=version,
                stride=stride,
                classes=classes,
                reduce=reduce,
                method=method,
                edge=edge,
                output=output,
                resume=resume,
                memory_budget=memory_budget,
                progress=progress,
                timeout=timeout,
            )
        )

    def score_stream(
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
    ) -> ScoreStream:  # documented below
        return ScoreStream(
            drive(
                self._core.score_stream(
                    image,
                    model=model,
                    version=version,
                    stride=stride,
                    classes=classes,
                    reduce=reduce,
                    method=method,
                    edge=edge,
                    memory_budget=memory_budget,
                    timeout=timeout,
                )
            )
        )

    def stream(
        self,
        *,
        rows: Iterable[np.ndarray] | RowSource,
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
    ) -> Iterator[Any]:  # documented below
        if not isinstance(rows, Iterable):
            raise InputError(f"rows is of type {type(rows).__name__}; it must be an iterable of arrays")
        return _closing(
            self._core.stream(
                width=width,
                rows=rows,
                model=model,
                version=version,
                stride=stride,
                classes=classes,
                reduce=reduce,
                method=method,
                edge=edge,
                memory_budget=memory_budget,
                timeout=timeout,
            )
        )

    def list_models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:  # documented below
        return drive(self._core.list_models(timeout=timeout))

    def describe(
        self, *, model: str = "", version: str = "", fingerprint: bool = False, timeout: float | None = None
    ) -> dict[str, Any]:  # documented below
        asked: Any = {"model": model, "version": version, "fingerprint": fingerprint}
        return drive(self._core.describe(timeout=timeout, **asked))

    def plan(
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
    ) -> PlanBytes:  # documented below
        return drive(
            self._core.plan(
                height,
                width,
                model=model,
                version=version,
                batch=batch,
                memory_budget=memory_budget,
                hold_scores=hold_scores,
                classes=classes,
                reduce=reduce,
                timeout=timeout,
            )
        )


for _name in ("classify", "score_map", "score_stream", "stream", "list_models", "describe", "plan"):
    getattr(Client, _name).__doc__ = getattr(Core, _name).__doc__


def _closing(blocks: Any) -> Iterator[Any]:
    try:
        yield from driven(blocks)
    finally:
        drive(blocks.aclose())
