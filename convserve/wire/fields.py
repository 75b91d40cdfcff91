"""The fields of an encoded protobuf message, as far as is needed to leave the large ones where they are."""

from google.protobuf.message import DecodeError

__all__ = ["split_field"]

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 10


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise DecodeError("a number does not end")


def split_field(data: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """Return a message without one of its fields of bytes, encoded, and that field's values as views of data.

    Only the message's own fields are looked at, not those of messages within. Raises DecodeError where they do not end
    with the data, or are of a kind that proto3 does not have.
    """
    view, at, kept, values = memoryview(data), 0, [], []
    while at < len(data):
        begin = at
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _LENGTH:
            size, start = _varint(data, at)
            at = start + size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise DecodeError(f"a field of kind {kind}")
        if at > len(data):
            raise DecodeError("a field is longer than its message")
        if kind == _LENGTH and key >> 3 == number:
            values.append(view[start:at])
        else:
            kept.append(view[begin:at])
    return b"".join(kept), values
