"""An ONNX message without its weights: long raw values are left where they lie, and only pointed to.

Parsing a message copies it. What is parsed here has, in place of each tensor's long raw_data, an entry of external
data whose location is IN_MESSAGE and whose offset and length are those of the values within the whole message.
"""

import secrets

from onnx import ModelProto

from convserve.formats.wire_fields import BYTES, VARINT, fields

__all__ = ["IN_MESSAGE", "parse_model"]

IN_MESSAGE = f"\0{secrets.token_hex(8)}"
"""A location that no file can have, and that no model can name."""

# Shorter messages are parsed as they are.
_LONG = 4096
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
# The fields of each message in which tensors may lie, by number.
_WITHIN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
    "tensor": {},
}


def parse_model(content: memoryview) -> ModelProto:
    """Return the model of a message's bytes, long raw values left out. Raises protobuf's DecodeError."""
    model = ModelProto()
    try:
        short = b"".join(_shortened(content, 0, len(content), "model"))
    except ValueError:
        # protobuf knows best what is wrong with it
        short = bytes(content)
    model.ParseFromString(short)
    return model


def _shortened(content: memoryview, begin: int, end: int, kind: str) -> list[bytes | memoryview]:
    """Return the pieces of the message at [begin, end), long values left out; ValueError where it is damaged."""
    pieces: list[bytes | memoryview] = []
    values: tuple[int, int] | None = None
    is_external = False
    for field in fields(content, begin, end):
        number = field.number
        is_external |= kind == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION)
        if field.wire_type != BYTES or field.end - field.begin < _LONG:
            pieces.append(content[field.start : field.end])
        elif kind == "tensor" and number == _RAW_DATA and values is None:
            values = field.begin, field.end
        elif number in _WITHIN[kind]:
            part = _shortened(content, field.begin, field.end, _WITHIN[kind][number])
            pieces += [_key(number, sum(map(len, part))), *part]
        else:
            pieces.append(content[field.start : field.end])
    if values is None:
        return pieces
    if is_external:
        return [content[begin:end]]
    return [*pieces, *_pointer(*values)]


def _pointer(begin: int, end: int) -> list[bytes]:
    pieces = []
    for key, value in (("location", IN_MESSAGE), ("offset", str(begin)), ("length", str(end - begin))):
        entry = [_key(1, len(key)), key.encode(), _key(2, len(value)), value.encode()]
        pieces += [_key(_EXTERNAL_DATA, sum(map(len, entry))), *entry]
    return [*pieces, bytes((_DATA_LOCATION << 3 | VARINT, 1))]


def _key(number: int, length: int) -> bytes:
    """Return what precedes a field of some length: its number and type, then the length."""
    out = bytearray([number << 3 | BYTES])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes((*out, length))
