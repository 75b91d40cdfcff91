"""The one table between convserve's exceptions and gRPC's status codes, read by the server and by the client.

Beside it the HTTP status of each code.
"""

import grpc

from convserve import errors

__all__ = ["ERROR_KEY", "HTTP_STATUS", "PUSHBACK_KEY", "error_of", "status_of", "trailers_of"]

ERROR_KEY = "convserve-error"
"""Trailing metadata that names the exception's class, so that a client raises the same one."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata by which a busy server says how long to wait; gRPC's own retries heed it too."""

_TABLE: tuple[tuple[type[errors.ConvserveError], grpc.StatusCode], ...] = (
    (errors.InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.ServerUnavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.ModelChangedError, grpc.StatusCode.UNAVAILABLE),
    (errors.MemoryBudgetError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ModelError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.AuthenticationError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.ServerBusy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.RunCancelled, grpc.StatusCode.CANCELLED),
    (errors.RunCancelled, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.RemoteError, grpc.StatusCode.INTERNAL),
    (errors.ConvserveError, grpc.StatusCode.INTERNAL),
)

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""The HTTP status of each code, as Google's APIs map them."""


def status_of(error: errors.ConvserveError, *, overdue: bool = False) -> grpc.StatusCode:
    """Return the code of an exception; overdue tells a run that its deadline ended from one that was cancelled."""
    if isinstance(error, errors.RunCancelled) and (overdue or error.overdue):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return next(code for kind, code in _TABLE if isinstance(error, kind))


def trailers_of(error: errors.ConvserveError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata that tell a client more of an exception than the code does."""
    named = ((ERROR_KEY, type(error).__name__),)
    if isinstance(error, errors.ServerBusy) and error.wait_s is not None:
        return (*named, (PUSHBACK_KEY, str(round(error.wait_s * 1000))))
    return named


def error_of(
    code: grpc.StatusCode, text: str, name: str | None = None, *, pushback_ms: str | None = None
) -> errors.ConvserveError:
    """Return the exception of a status: of the class the server named, or the code's own in the table.

    pushback_ms: what the server sent under PUSHBACK_KEY; a number below 0, or none at all, is no time to wait.
    """
    text = text or f"the server answered {code.name}"
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if kind is None and (code != grpc.StatusCode.RESOURCE_EXHAUSTED or pushback_ms is not None):
        kind = next((kind for kind, known in _TABLE if known == code), None)
    if kind is errors.ServerBusy:
        wait = pushback_ms or ""
        return errors.ServerBusy(text, int(wait) / 1000 if wait.isdigit() else None)
    return (kind or errors.RemoteError)(text)
