"""What a caller is told of an exception, whatever brought the call: a status, one sentence, and what goes with it."""

import logging
from typing import NamedTuple

import grpc

from convserve.errors import ConvserveError, ServerBusy
from convserve.wire.status import status_of, trailers_of

__all__ = ["Failure", "failure_of"]

# Trailing metadata travel in one HTTP/2 header block, which peers limit to some 8 KiB.
_LONGEST_TEXT = 2000
_MEMORY_WAIT_S = 1.0

_log = logging.getLogger("convserve.server")


class Failure(NamedTuple):
    """A gRPC status, a sentence, and trailing metadata."""

    code: grpc.StatusCode
    text: str
    trailers: tuple[tuple[str, str], ...]


def failure_of(error: Exception, method: str, *, overdue: bool = False) -> Failure:
    """Return what is told of an exception of a call to method; one that is not ours is logged, and not told.

    overdue: whether the call's deadline has passed.
    """
    if isinstance(error, MemoryError) and not isinstance(error, ConvserveError):
        _log.error("%s failed", method, exc_info=error)
        error = ServerBusy("the server has not the memory for this request now", _MEMORY_WAIT_S)
    if isinstance(error, ConvserveError):
        return Failure(status_of(error, overdue=overdue), str(error)[:_LONGEST_TEXT], trailers_of(error))
    _log.error("%s failed", method, exc_info=error)
    return Failure(grpc.StatusCode.INTERNAL, "internal error", ())
