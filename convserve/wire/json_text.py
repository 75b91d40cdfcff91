"""JSON whose arrays of numbers stay text until they become an array: a tensor never becomes a Python list."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from convserve.errors import InputError, ShapeError

__all__ = ["Numbers", "read_json"]

MOST_VALUES = 8192
"""Values that a text may have, where an array of numbers counts as one."""

MOST_DEPTH = 16

_PIECE = 1 << 16
_LONGEST_SHAPE = 1000
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?(?:[eE][-+]?[0-9]{1,9})?(?![-+.0-9eE])")
_NUMBERS = re.compile(r"\[[-+0-9.eEINafinty,\[\] \t\n\r]*")
_WORDS = {"true": True, "false": False, "null": None, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_NO_MARKS = bytes(code for code in range(256) if code not in b"[],")
_NUMBERS_TO_ZEROS = bytes(code if code in b"[]," else ord("0") for code in range(256))
_BRACKETS_TO_SPACES = bytes.maketrans(b"[]", b"  ")


@dataclass(frozen=True, slots=True)
class Numbers:
    """The text of an array, nested or not, that has nothing but numbers; they are checked when they are read."""

    text: bytes

    def sizes(self, what: str) -> list[int]:
        """Return a short flat array of whole numbers; what: named where it is none."""
        try:
            found = json.loads(self.text) if len(self.text) <= _LONGEST_SHAPE else None
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(type(one) is int for one in found):
            raise InputError(f"{what} is {self.text[:100].decode()}; it must be an array of whole numbers")
        return found

    def array(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """Return the values, float32 or uint8, of an input of that name, given flat or nested as its shape.

        Raises ShapeError for other numbers of values or another nesting, InputError for values that dtype has not.
        """
        count, came = math.prod(shape), self.text.count(b",") + 1
        if came != count:
            raise ShapeError(
                f"the input {name[:100]!r} of shape {list(shape)} has {count} elements, but {came} came"
            )
        if not _is_shaped(self.text, shape):
            raise ShapeError(f"the input {name[:100]!r} has data that is neither flat nor of its shape {list(shape)}")
        text = self.text.translate(_BRACKETS_TO_SPACES)
        values, at, filled = np.empty(count, dtype), 0, 0
        while at < len(text):
            end = text.find(b",", at + _PIECE)
            end = len(text) if end < 0 else end
            piece = _floats(name, text[at:end])
            values[filled : filled + len(piece)] = _checked(name, piece, dtype)
            at, filled = end + 1, filled + len(piece)
        if filled != count:
            raise InputError(f"the input {name[:100]!r} has data that is no array of numbers")
        return values.reshape(shape)


def _is_shaped(text: bytes, shape: Sequence[int]) -> bool:
    """Tell whether an array with as many values as shape has is flat, or nested as shape says."""
    marks = text.translate(None, _NO_MARKS)
    if marks not in (b"[" + b"," * (math.prod(shape) - 1) + b"]", _nested(shape)):
        return False
    # a bracket beside a number, with no comma between, leaves the marks as they should be
    zeros = text.translate(_NUMBERS_TO_ZEROS, b" \t\n\r")
    return b"]0" not in zeros and b"0[" not in zeros


def _nested(shape: Sequence[int]) -> bytes:
    part = b""
    for size in reversed(shape):
        part = b"[" + b",".join([part] * size) + b"]"
    return part


def _floats(name: str, text: bytes) -> np.ndarray:
    try:
        return np.array(json.loads(b"[" + text + b"]", parse_int=float), np.float64)
    except ValueError:
        raise InputError(f"the input {name[:100]!r} has data that is no array of numbers") from None


def _checked(name: str, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == np.uint8:
        wrong = values[~((values >= 0) & (values <= 255) & (values == np.floor(values)))]
        allowed = "whole numbers from 0 to 255"
    else:
        wrong = values[np.isfinite(values) & (np.abs(values) > np.finfo(dtype).max)]
        allowed = "numbers that a float32 can be"
    if wrong.size:
        raise InputError(f"the input {name[:100]!r} has the value {wrong[0]:g}; allowed: {allowed}")
    return values.astype(dtype)


def read_json(data: bytes | memoryview) -> Any:
    """Return what a JSON text in UTF-8 says, with Numbers for its arrays of numbers.

    Raises InputError for what is no JSON, has a key twice, is nested deeper than MOST_DEPTH, or has more than
    MOST_VALUES values. NaN and Infinity are taken, as Python's own json writes them.
    """
    try:
        return _Reader(str(data, "utf-8")).whole()
    except UnicodeDecodeError as error:
        raise InputError(f"the JSON is no UTF-8: {error.reason} at byte {error.start}") from None


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at, self._left = text, 0, MOST_VALUES

    def whole(self) -> Any:
        found = self._value(0)
        if self._next():
            raise self._wrong("something behind its end")
        return found

    def _next(self) -> str:
        found = _SPACE.match(self._text, self._at)
        assert found
        self._at = found.end()
        return self._text[self._at : self._at + 1]

    def _wrong(self, what: str) -> InputError:
        return InputError(f"the request is no JSON: {what} at character {self._at}")

    def _value(self, depth: int) -> Any:
        first = self._next()
        self._left -= 1
        if self._left < 0:
            raise InputError(f"the JSON has more than {MOST_VALUES} values beside its arrays of numbers")
        if depth > MOST_DEPTH:
            raise InputError(f"the JSON is nested more than {MOST_DEPTH} deep")
        if first == "{":
            return self._object(depth)
        if first == "[":
            return self._numbers() or self._array(depth)
        if first == '"':
            return self._string()
        if number := _NUMBER.match(self._text, self._at):
            self._at = number.end()
            return float(number[0]) if set(number[0]) & set(".eE") else int(number[0])
        for word, value in _WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return value
        raise self._wrong(f"{first!r}" if first else "it ends")

    def _string(self) -> str:
        try:
            found, self._at = scanstring(self._text, self._at + 1, True)
            found.isascii() or found.encode()
        except ValueError:
            # an end that is missing, or half of a surrogate pair
            raise self._wrong("a text that is none") from None
        return found

    def _numbers(self) -> Numbers | None:
        found = _NUMBERS.match(self._text, self._at)
        assert found
        # the run may reach into arrays behind this one
        data = found[0].encode()
        marks = np.frombuffer(data, np.uint8)
        at = np.flatnonzero((marks == ord("[")) | (marks == ord("]")))
        ends = at[np.cumsum(np.where(marks[at] == ord("["), 1, -1)) == 0]
        if not len(ends) or data[: ends[0] + 1] == b"[]":
            return None
        self._at += int(ends[0]) + 1
        return Numbers(data[: ends[0] + 1])

    def _array(self, depth: int) -> list[Any]:
        self._at += 1
        found: list[Any] = []
        while self._next() != "]" or found:
            found.append(self._value(depth + 1))
            if not self._goes_on("]"):
                return found
        self._at += 1
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        self._at += 1
        found: dict[str, Any] = {}
        while self._next() != "}" or found:
            if self._next() != '"':
                raise self._wrong("no name of a value")
            name = self._string()
            if name in found:
                raise InputError(f"the JSON has {name[:100]!r} twice in one object")
            if self._next() != ":":
                raise self._wrong("no colon behind a name")
            self._at += 1
            found[name] = self._value(depth + 1)
            if not self._goes_on("}"):
                return found
        self._at += 1
        return found

    def _goes_on(self, end: str) -> bool:
        mark = self._next()
        if mark not in (",", end) or not mark:
            raise self._wrong(f"neither a comma nor {end!r}")
        self._at += 1
        return mark == ","
