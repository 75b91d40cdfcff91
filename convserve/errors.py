"""Every exception that convserve raises on purpose.

ConvserveError
├── ModelError              a network cannot be used
│   ├── ModelFormatError      the file is not what it claims to be
│   ├── UnsupportedOpError    the graph has an operation or a form of it that convserve does not run
│   ├── ModelNotFoundError    no model of that name
│   └── ModelChangedError     its file was written to or cut off after it was loaded
├── InputError              an argument is wrong (also a ValueError)
│   ├── ImageError            an image cannot be decoded or is too large
│   ├── PatternError          the text of a network does not follow the pattern language, or its layers do not fit
│   ├── ShapeError            an array or image has a size that the network cannot take
│   └── SettingError          a CONVSERVE_* variable has a value outside its range
├── OutputError             a result cannot be written, or not be gone on with
├── MemoryBudgetError       no plan fits the budget, or the operating system refused memory
├── RunCancelled            the caller cancelled a run, or its deadline passed
└── RemoteError             the server answered with an error that is none of the above
    ├── AuthenticationError   the server wants a token, or another one
    ├── PermissionDeniedError   the token's client may not do this
    ├── ServerBusy            the server's queue is full
    └── ServerUnavailable     the server cannot be reached or is draining
"""

__all__ = [
    "AuthenticationError",
    "ConvserveError",
    "ImageError",
    "InputError",
    "MemoryBudgetError",
    "ModelChangedError",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "OutputError",
    "PatternError",
    "PermissionDeniedError",
    "RemoteError",
    "RunCancelled",
    "ServerBusy",
    "ServerUnavailable",
    "SettingError",
    "ShapeError",
    "UnsupportedOpError",
]


class ConvserveError(Exception):
    """The root of convserve's exceptions."""


class ModelError(ConvserveError):
    """A network cannot be used."""


class ModelFormatError(ModelError):
    """A model file is not what it claims to be: not ONNX, truncated, a header that lies."""


class UnsupportedOpError(ModelError):
    """The graph has an operation, or a form of one, that convserve does not run."""


class ModelNotFoundError(ModelError):
    """No model of that name or path."""


class ModelChangedError(ModelError):
    """The file that a model's weights are mapped from was written to or cut off since it was loaded."""


class InputError(ConvserveError, ValueError):
    """An argument is wrong; the message names it, its value and the allowed range."""


class ImageError(InputError):
    """An image cannot be decoded, or claims more pixels than allowed."""


class PatternError(InputError):
    """The text of a network is wrong at a place, to which the message's last line points.

    what: the first line, without the place. text, position: the whole text and how many characters lie before the
    place in it; None where only the message is known.
    """

    def __init__(self, what: str, text: str | None = None, position: int = 0) -> None:
        self.what = what
        self.position = position
        if text is None:
            super().__init__(what)
            return
        first = text.rfind("\n", 0, position) + 1
        line = text[first:].split("\n", 1)[0].replace("\t", " ")
        super().__init__(f"{what}\n  {line}\n  {' ' * (position - first)}^")


class ShapeError(InputError):
    """An array or image has a size that the network cannot take."""


class SettingError(InputError):
    """A CONVSERVE_* variable has a value outside its range."""


class OutputError(ConvserveError):
    """A result cannot be written: the disk is full, or does not allow it. What was finished before stays."""


class MemoryBudgetError(ConvserveError, MemoryError):
    """No plan fits the memory budget, or the operating system refused the planned bytes."""


class RunCancelled(ConvserveError):
    """The caller cancelled the run, or its deadline passed (overdue, where that is known), before the last band."""

    def __init__(self, text: str, *, overdue: bool = False) -> None:
        super().__init__(text)
        self.overdue = overdue


class RemoteError(ConvserveError):
    """The server answered with an error that is none of the others."""


class AuthenticationError(RemoteError):
    """The server wants a token, or another one than was sent."""


class PermissionDeniedError(RemoteError):
    """The client of this token may not call that method."""


class ServerBusy(RemoteError):
    """The server's queue is full; a retry after wait_s seconds may succeed (None: the server did not say)."""

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class ServerUnavailable(RemoteError):
    """The server cannot be reached, is starting or is draining; a retry may succeed."""
