"""Every bad stream over a real socket: the right status, one clear sentence, and the next good request answered."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import HUGE, INVALID, LIMITS, PAGE, refused

from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.scene import SceneHeader, header_to_message, pieces_to_messages, pixels_to_messages

ROWS = np.zeros((60, 40, 1), np.uint8)


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    return LIMITS


# ---- headers


def header(**fields: Any) -> pb.ScoreMapRequest:
    return pb.ScoreMapRequest(header=pb.ScoreMapHeader(**{"layout": pb.UINT8_HWC, "width": 40, **fields}))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"layout": 0}, "layout is 0"),
        ({"layout": pb.FP32_NCHW}, "layout is 2"),
        ({"layout": 99}, "layout is 99"),
        ({"layout": pb.ENCODED}, "file has them"),
        ({"layout": pb.ENCODED, "width": 0, "height": 9}, "file has them"),
        ({"width": 0}, "width is 0"),
        ({"width": -40}, "width is -40"),
        ({"width": HUGE}, f"width is {HUGE}"),
        ({"width": (1 << 31) - 1}, "a message holds 2097152"),
        ({"width": 27}, "28x28"),
        ({"height": -1}, "height is -1"),
        ({"height": HUGE}, f"height is {HUGE}"),
        ({"height": 27}, "27x40"),
        ({"channels": 2}, "channels is 2"),
        ({"channels": -1}, "channels is -1"),
        ({"channels": HUGE}, f"channels is {HUGE}"),
        ({"stride": pb.Extent(vertical=0, horizontal=4)}, "stride is (0, 4)"),
        ({"stride": pb.Extent()}, "stride is (0, 0)"),
        ({"stride": pb.Extent(vertical=-4, horizontal=-4)}, "(-4, -4)"),
        ({"stride": pb.Extent(vertical=6, horizontal=4)}, "(6, 4)"),
        ({"stride": pb.Extent(vertical=4, horizontal=3)}, "(4, 3)"),
        ({"stride": pb.Extent(vertical=HUGE, horizontal=HUGE)}, str(HUGE)),
    ],
)
def test_headers_that_cannot_be_meant(
    stub: ConvserveStub, good: Callable[[], None], fields: dict[str, Any], text: str
) -> None:
    refused(lambda: list(stub.ScoreMap(iter([header(**fields), *pixels_to_messages(0, ROWS)]))), INVALID, text)
    good()


# ---- streams

PIECES = list(pieces_to_messages(PAGE))
FILE_HEADER = header_to_message(SceneHeader(None))
BLOCK = list(pixels_to_messages(0, ROWS))


def pixel_rows(first_row: int, rows: int, size: int) -> pb.ScoreMapRequest:
    return pb.ScoreMapRequest(rows=pb.PixelRows(first_row=first_row, rows=rows, pixels=bytes(size)))


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ([], "begins with its header, but nothing came"),
        ([pb.ScoreMapRequest()], "begins with its header, but an empty message came"),
        (PIECES, "begins with its header, but 'piece' came"),
        (BLOCK, "begins with its header, but 'rows' came"),
        ([header(), header()], "a second header"),
        ([header(), *BLOCK, header()], "a second header"),
        ([FILE_HEADER, FILE_HEADER], "a second header"),
        ([FILE_HEADER, *PIECES, FILE_HEADER], "a second header"),
        ([FILE_HEADER], "before any byte"),
        ([FILE_HEADER, pb.ScoreMapRequest(piece=b"")], "before any byte"),
        ([FILE_HEADER, pb.ScoreMapRequest()], "an empty message came"),
        ([FILE_HEADER, *BLOCK], "rows came; by its header the image comes as 'piece'"),
        ([header(), *PIECES], "piece came; by its header the image comes as 'rows'"),
        ([header(), pb.ScoreMapRequest()], "an empty message came"),
        ([header()], "before any row"),
        ([header(height=60)], "before any row"),
        ([header(), pixel_rows(0, 0, 0)], "0 rows"),
        ([header(), pixel_rows(0, -1, 40)], "-1 rows"),
        ([header(), pixel_rows(0, HUGE, 40)], "40 came"),
        ([header(), pixel_rows(0, 30, 1200), pixel_rows(30, 1, 25)], "25 came: 0.625 rows"),
        ([header(), pixel_rows(0, 30, 30 * 41)], "1230 came"),
        ([header(), pixel_rows(0, 30, 0)], "0 came"),
        ([header(layout=pb.FP32_HWC), pixel_rows(0, 30, 1200)], "float32, take 4800 bytes, but 1200 came"),
        ([header(), pixel_rows(1, 30, 1200)], "row 1 came; the next row of the image is 0"),
        ([header(), pixel_rows(0, 30, 1200), pixel_rows(0, 30, 1200)], "row 0 came; the next row of the image is 30"),
        ([header(), pixel_rows(-1, 30, 1200)], "row -1 came"),
        ([header(height=60), pixel_rows(0, 61, 2440)], "the image has 60"),
        ([header(height=60), *BLOCK, pixel_rows(60, 1, 40)], "the image has 60"),
        ([header(height=60), pixel_rows(0, 59, 2360)], "after 59 of the 60 rows"),
        ([header(), pixel_rows(0, 27, 1080)], "27x40"),
    ],
)
def test_streams_that_are_not_whole_or_not_in_order(
    stub: ConvserveStub, good: Callable[[], None], requests: list[pb.ScoreMapRequest], text: str
) -> None:
    refused(lambda: list(stub.ScoreMap(iter(requests))), INVALID, text)
    good()


def test_what_comes_after_an_error_is_not_read(stub: ConvserveStub, good: Callable[[], None]) -> None:
    sent = 0

    def endless() -> Iterator[pb.ScoreMapRequest]:
        nonlocal sent
        yield header()
        while True:
            sent += 1
            yield pixel_rows(9, 1, 1 << 19)

    refused(lambda: list(stub.ScoreMap(endless())), INVALID, "row 9 came")
    assert sent < 1000
    good()


# ---- anything else

NUMBERS = st.sampled_from([0, 1, -1, 27, 28, 40, 60, 1 << 31, HUGE]) | st.integers(-HUGE, HUGE)
REQUESTS = st.lists(
    st.one_of(
        st.builds(
            lambda layout, width, height, channels: pb.ScoreMapRequest(
                header=pb.ScoreMapHeader(layout=layout, width=width, height=height, channels=channels)
            ),
            st.sampled_from([0, 1, 2, 3, 4, 9]),
            NUMBERS,
            NUMBERS,
            st.sampled_from([0, 1, 3, -1]),
        ),
        st.just(header()),
        st.just(FILE_HEADER),
        st.sampled_from([*PIECES, *BLOCK]),
        st.builds(lambda data: pb.ScoreMapRequest(piece=data), st.binary(max_size=50)),
        st.builds(pixel_rows, NUMBERS, NUMBERS, st.integers(0, 4000)),
        st.just(pb.ScoreMapRequest()),
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS)
def test_any_stream_is_answered_or_refused_in_one_sentence(
    stub: ConvserveStub, good: Callable[[], None], requests: list[pb.ScoreMapRequest]
) -> None:
    try:
        responses = list(stub.ScoreMap(iter(requests), timeout=20))
    except grpc.RpcError as error:
        assert error.code() in (INVALID, grpc.StatusCode.FAILED_PRECONDITION), error.details()  # noqa: PT017
        assert error.details()  # noqa: PT017
    else:
        assert responses[-1].WhichOneof("content") == "completion"
    good()
