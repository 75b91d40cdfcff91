"""JSON that is read without lists of numbers: the values of Python's own reader, for any text and any shape."""

import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from convserve.errors import InputError
from convserve.wire.json_text import Numbers, read_json

SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=20
)
FLOATS = st.floats(width=32)


def plain(value: Any) -> Any:
    """What a value would be if its numbers had been read at once."""
    if isinstance(value, Numbers):
        return json.loads(value.text)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "value", [[[], [], {}], [[1], [2, 3], {"a": [[4]]}], [[[1], []], "x"], [[], [1]], [[1, 2], {}]]
)
def test_arrays_beside_one_another_and_beside_other_values(value: Any) -> None:
    assert plain(read_json(json.dumps(value).encode())) == value


@given(VALUES, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_any_value_is_that_of_pythons_reader(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert plain(read_json(text.encode())) == value


@given(VALUES, st.data())
def test_a_text_that_is_damaged_is_read_as_by_python_or_refused(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    at, end = (data.draw(st.integers(0, len(text))) for _ in range(2))
    damaged = text[:at] + data.draw(st.text("[]{},:\"0-.e \\aN", max_size=3)) + text[end:]
    try:
        expected: Any = json.loads(damaged)
    except ValueError:
        expected = None
    try:
        found = plain(read_json(damaged.encode()))
    except ValueError:
        return
    assert json.dumps(found) == json.dumps(expected)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), st.sampled_from([None, 1]), st.data())
def test_arrays_of_any_shape(shape: list[int], nested: bool, indent: Any, data: st.DataObject) -> None:
    count = int(np.prod(shape))
    values = np.array(data.draw(st.lists(FLOATS, min_size=count, max_size=count)), np.float32).reshape(shape)
    text = json.dumps({"a": values.tolist() if nested else values.ravel().tolist()}, indent=indent)
    found = read_json(text.encode())["a"].array("a", shape, np.dtype(np.float32))
    assert found.dtype == np.float32
    assert np.array_equal(found, values, equal_nan=True)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_arrays_of_other_shapes_are_refused(shape: list[int], other: list[int]) -> None:
    numbers = read_json(json.dumps(np.zeros(other).tolist()).encode())
    if shape == other or other == [int(np.prod(shape))]:
        assert numbers.array("a", shape, np.dtype(np.uint8)).shape == tuple(shape)
    else:
        with pytest.raises(InputError):
            numbers.array("a", shape, np.dtype(np.uint8))


@given(st.text("[]0, .e-", max_size=12))
def test_arrays_that_are_none_are_refused(inner: str) -> None:
    text = f"[1,{inner},2]"
    try:
        found = read_json(text.encode())
    except InputError:
        return
    if isinstance(found, Numbers):
        shape = [found.text.count(b",") + 1]
        try:
            values = found.array("a", shape, np.dtype(np.float32))
        except InputError:
            return
        assert values.tolist() == [float(one) for one in np.ravel(json.loads(text))]


def test_long_arrays_are_read_in_pieces() -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    text = json.dumps(values.tolist()).encode()
    assert np.array_equal(read_json(text).array("a", [50_000], np.dtype(np.float32)), values)
    for wrong in (text[:-1] + b",]", text.replace(b", ", b" ", 1), text.replace(b"0.", b"0.0.", 1)):
        with pytest.raises(InputError):
            read_json(wrong).array("a", [50_000], np.dtype(np.float32))


def test_keys_that_come_twice() -> None:
    with pytest.raises(InputError, match="'a' twice"):
        read_json(b'{"a": 1, "a": 1}')
