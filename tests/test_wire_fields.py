"""Large fields left in place: what is split off an encoded message is what its parser would have read."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from convserve.wire.fields import split_field
from convserve.wire.open_inference import messages as oip

RAW = 7


@given(st.text(max_size=20), st.lists(st.binary(max_size=300), max_size=4), st.integers(-(1 << 63), (1 << 63) - 1))
def test_the_rest_is_the_message_without_the_field(name: str, contents: list[bytes], size: int) -> None:
    message = oip.ModelInferRequest(model_name=name, raw_input_contents=contents)
    message.inputs.add(name="x", datatype="FP32", shape=[size, 2])
    message.parameters["priority"].int64_param = size
    rest, values = split_field(message.SerializeToString(), RAW)
    assert [bytes(value) for value in values] == contents
    message.ClearField("raw_input_contents")
    assert oip.ModelInferRequest.FromString(rest) == message


def test_fields_of_every_kind_and_unknown_ones_stay() -> None:
    data = b"\x08\x01" + b"\x3a\x02ab" + b"\x19" + bytes(8) + b"\xfd\x7f" + bytes(4) + b"\x3a\x00" + b"\x52\x01z"
    rest, values = split_field(data, RAW)
    assert [bytes(value) for value in values] == [b"ab", b""]
    assert rest == b"\x08\x01" + b"\x19" + bytes(8) + b"\xfd\x7f" + bytes(4) + b"\x52\x01z"


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",
        b"\x3a\x05ab",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x80" * 11,
        b"\x19\x00",
        b"\x3b",
        b"\x3c",
        b"\x3e\x00",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        split_field(data, RAW)


@given(st.binary(max_size=60))
def test_whatever_comes_is_split_or_refused(data: bytes) -> None:
    try:
        rest, values = split_field(data, RAW)
    except DecodeError:
        return
    assert len(rest) + sum(map(len, values)) <= len(data)
