"""Protobuf's wire format, field by field, for messages that are too large to be parsed as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Field", "fields"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its number and wire type, where it starts, and where its value begins and ends."""

    number: int
    wire_type: int
    start: int
    begin: int
    end: int


def fields(content: memoryview, begin: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message at [begin, end) in order; ValueError where it is damaged or has groups."""
    at = begin
    while at < end:
        start = at
        tag, at = _varint(content, at, end)
        number, wire_type = tag >> 3, tag & 7
        value = at
        if wire_type == VARINT:
            _, at = _varint(content, at, end)
        elif wire_type in (FIXED64, FIXED32):
            at += 8 if wire_type == FIXED64 else 4
        elif wire_type == BYTES:
            length, value = _varint(content, at, end)
            at = value + length
        else:
            raise ValueError("a group")
        if at > end:
            raise ValueError("a field ends behind its message")
        yield Field(number, wire_type, start, value, at)


def _varint(content: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the number at a place and the place behind it."""
    value = shift = 0
    while at < end and shift < 64:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number without an end")
