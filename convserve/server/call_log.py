"""A server's log: one line a call, with a request id that the client may choose; as text or as JSON lines."""

import contextvars
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable

__all__ = ["REQUEST_ID", "REQUEST_ID_KEY", "log_call", "request_id_of", "set_up_logging"]

REQUEST_ID_KEY = "x-request-id"
"""Metadata by which a client names its call, and by which the server tells the name in its trailers."""

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the call in work."""

_ID = re.compile(r"[!-~]{1,128}", re.ASCII)
_CALL_FIELDS = ("method", "status", "seconds", "peer", "client")

_calls = logging.getLogger("convserve.calls")


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the id of a call's metadata where it is one, 1 to 128 ASCII characters without space, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def log_call(*, method: str, status: str, seconds: float, peer: str, client: str) -> None:
    """Write the line of a call that has ended. seconds: from its arrival to its end. client: the token's, or ""."""
    fields = {"method": method, "status": status, "seconds": round(seconds, 6), "peer": peer, "client": client}
    _calls.info("%s %s in %.3f s", method, status, seconds, extra=fields)


def set_up_logging(*, log_format: str, log_calls: bool, worker: int | None = None) -> None:
    """Write this process's log to stderr, as "text" or as "json", an object a line; log_calls: with a line a call.

    worker: the number that every line then has.
    """
    handler = logging.StreamHandler()

    def with_facts(record: logging.LogRecord) -> bool:
        record.request_id, record.worker = REQUEST_ID.get(), worker or ""
        return True

    handler.addFilter(with_facts)
    said = "" if worker is None else f"worker {worker}: "
    handler.setFormatter(
        _JsonLines() if log_format == "json" else _Text(f"%(asctime)s %(levelname)s %(name)s: {said}%(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _calls.setLevel(logging.INFO if log_calls else logging.WARNING)


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        request_id = getattr(record, "request_id", "")
        return f"{text} [{request_id}]" if request_id else text


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("worker", "request_id", *_CALL_FIELDS):
            value = getattr(record, name, "")
            if value != "":
                line[name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
