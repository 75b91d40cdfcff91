"""What a score map keeps of its scores, to and from messages."""

from convserve.errors import InputError
from convserve.reduction import Reduction
from convserve.wire import convserve_pb2 as pb

__all__ = ["reduction_from_message", "reduction_to_message"]

_NUMBERS = {"float32": pb.FLOAT32, "float16": pb.FLOAT16, "uint8": pb.UINT8}
_NUMBER_NAMES: dict[int, str] = {number: name for name, number in _NUMBERS.items()}


def reduction_to_message(reduction: Reduction) -> pb.Reduction | None:
    """Return the message of a reduction; None, no message, for one that keeps everything as it is."""
    if reduction == Reduction():
        return None
    low, high = reduction.value_range or (0.0, 0.0)
    return pb.Reduction(
        top=min(reduction.top or 0, (1 << 32) - 1),
        argmax=reduction.argmax,
        softmax=reduction.scores == "softmax",
        number=_NUMBERS[reduction.dtype],
        low=low,
        high=high,
    )


def reduction_from_message(message: pb.Reduction) -> Reduction:
    """Return what a message asks for, of an empty one that everything is kept; InputError where it cannot be meant."""
    if message.number not in _NUMBER_NAMES:
        raise InputError(f"the reduction's number is {message.number}; allowed: FLOAT32, FLOAT16, UINT8")
    ranged = message.low or message.high
    return Reduction(
        top=message.top or None,
        argmax=message.argmax,
        scores="softmax" if message.softmax else "raw",
        dtype=_NUMBER_NAMES[message.number],
        value_range=(message.low, message.high) if ranged else None,
    )
