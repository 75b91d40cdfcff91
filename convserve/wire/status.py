"""The one table between convserve's exceptions and gRPC's status codes, read by the server and by the client."""

import grpc

from convserve import errors

__all__ = ["ERROR_KEY", "error_of", "status_of"]

ERROR_KEY = "convserve-error"
"""Trailing metadata that names the exception's class, so that a client raises the same one."""

_TABLE: tuple[tuple[type[errors.ConvserveError], grpc.StatusCode], ...] = (
    (errors.InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.MemoryBudgetError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.RunCancelled, grpc.StatusCode.CANCELLED),
    (errors.RunCancelled, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.ServerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.RemoteError, grpc.StatusCode.INTERNAL),
    (errors.ConvserveError, grpc.StatusCode.INTERNAL),
)


def status_of(error: errors.ConvserveError, *, overdue: bool = False) -> grpc.StatusCode:
    """Return the code of an exception; overdue tells a run that its deadline ended from one that was cancelled."""
    if overdue and isinstance(error, errors.RunCancelled):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return next(code for kind, code in _TABLE if isinstance(error, kind))


def error_of(code: grpc.StatusCode, text: str, name: str | None = None) -> errors.ConvserveError:
    """Return the exception of a status: of the class the server named, or the code's own in the table."""
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if kind is None:
        kind = next((kind for kind, known in _TABLE if known == code), errors.RemoteError)
    return kind(text or f"the server answered {code.name}")
