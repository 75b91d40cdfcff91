"""The synchronous client."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import grpc

from convserve.client import exchange
from convserve.errors import InputError
from convserve.results import Prediction, ScoreMap
from convserve.wire.convserve_pb2_grpc import ConvserveStub

if TYPE_CHECKING:
    from convserve.client.exchange import ImageSource

    Images = list[ImageSource] | tuple[ImageSource, ...]

__all__ = ["Client"]


class Client:
    """Calls a convserve server; threads may share one. A context manager; close() ends it otherwise.

    address: "host:port". token: sent as "authorization: Bearer". tls: None for plain text, True for TLS with
    the system's roots, or root certificates as PEM (path or bytes). timeout: seconds that each call may take.
    Every method raises the exceptions of convserve.errors: what the server raised, ServerUnavailable where
    it cannot be reached, RunCancelled after the timeout.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: bool | str | os.PathLike[str] | bytes | None = None,
        timeout: float | None = 30,
    ) -> None:
        if not address or not isinstance(address, str):
            raise InputError(f'the address is {address!r}; give "host:port"')
        self._address, self._timeout = address, None if timeout is None else _seconds(timeout)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if tls is None or tls is False:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(_roots(tls)), options=options)
        self._stub = ConvserveStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls in work are cancelled."""
        self._channel.close()

    @overload
    def classify(
        self, images: "Images", *, model: str = "", top: int = 5, timeout: float | None = None
    ) -> list[list[Prediction]]: ...
    @overload
    def classify(
        self, images: "ImageSource", *, model: str = "", top: int = 5, timeout: float | None = None
    ) -> list[Prediction]: ...
    def classify(
        self, images: Any, *, model: str = "", top: int = 5, timeout: float | None = None
    ) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` classes of an image, best first; of a list of images, a list for each.

        An image is a path, encoded bytes, a PIL image, a uint8 array (H, W, C), or float32 (1, C, H, W), taken as
        already preprocessed. model: "" is the server's only one. timeout: seconds, instead of the client's.
        """
        several = isinstance(images, list | tuple)
        sent = images if several else [images]
        if not sent:
            return []
        request = exchange.classify_request(sent, model=model, top=top)
        limit = self._timeout if timeout is None else _seconds(timeout)
        try:
            response = self._stub.Classify(request, timeout=limit, metadata=self._metadata)
        except grpc.RpcError as error:
            raise exchange.error_from_call(error, address=self._address, timeout_s=limit) from error
        results = exchange.predictions_of(response, len(sent))
        return results if several else results[0]

    def score_map(
        self,
        image: "ImageSource",
        *,
        model: str = "",
        classes: Sequence[int | str] | None = None,
        progress: bool = False,
        timeout: float | None = None,
    ) -> ScoreMap:
        """Return the scores of the server's network at every window position of an image.

        image: as for classify, never resized or cropped. classes: indices or labels to keep, default all.
        progress: show a bar on stderr. timeout: seconds for the whole map, instead of the client's.
        """
        request = exchange.score_map_request(image, model=model, classes=classes)
        limit = self._timeout if timeout is None else _seconds(timeout)
        collector = exchange.MapCollector()
        call = self._stub.ScoreMap(request, timeout=limit, metadata=self._metadata)
        try:
            if progress:
                _collect_with_bar(call, collector)
            else:
                for response in call:
                    collector.add(response)
        except grpc.RpcError as error:
            raise exchange.error_from_call(error, address=self._address, timeout_s=limit) from error
        finally:
            call.cancel()
        return collector.result()


def _collect_with_bar(call: Any, collector: exchange.MapCollector) -> None:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows of scores", total=None)
        for response in call:
            collector.add(response)
            bar.update(task, total=collector.rows or None, completed=collector.done_rows)


def _seconds(timeout: float) -> float:
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise InputError(f"timeout is {timeout!r}; it must be a number of seconds above 0, or None")
    return timeout


def _roots(tls: bool | str | os.PathLike[str] | bytes) -> bytes | None:
    if isinstance(tls, bool):
        return None
    if isinstance(tls, bytes):
        return tls
    try:
        return Path(tls).read_bytes()
    except OSError as error:
        raise InputError(f"the root certificates {os.fspath(tls)!r} cannot be read: {error.strerror}") from error
