"""A score map's request, descriptions and completions: there and back, and every way in which a message can lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convserve import errors
from convserve.images import Preprocess
from convserve.reduction import Reduction
from convserve.results import Geometry, PlanBytes
from convserve.wire import codec, scene
from convserve.wire import convserve_pb2 as pb
from convserve.wire.description import (
    description_from_message,
    description_to_message,
    summary_from_message,
    summary_to_message,
)

HEADERS = st.builds(
    scene.SceneHeader,
    dtype=st.sampled_from(["uint8", "float32"]),
    model=st.text(max_size=5),
    width=st.integers(1, scene.LARGEST_SIDE),
    height=st.integers(0, scene.LARGEST_SIDE),
    channels=st.integers(0, 1 << 16),
    classes=st.none() | st.lists(st.integers(0, (1 << 32) - 1) | st.text(), min_size=1, max_size=4),
    stride=st.none() | st.tuples(st.integers(-5, 1 << 40), st.integers(-5, 1 << 40)),
    memory_budget=st.integers(0, (1 << 64) - 1),
)
ROWS = arrays.arrays(
    st.sampled_from([np.uint8, np.float32]), st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 4))
)


@given(HEADERS)
def test_a_header_comes_back(header: scene.SceneHeader) -> None:
    message = pb.ScoreMapRequest.FromString(scene.header_to_message(header).SerializeToString())
    assert scene.header_from_message(message.header) == header


def test_a_header_of_an_encoded_file_has_no_size() -> None:
    kept = Reduction(top=2, scores="softmax", dtype="uint8", value_range=(0.25, 0.5))
    header = scene.SceneHeader(
        None, model="m", classes=["a", 3], stride=(4, 8), memory_budget=9, reduction=kept
    )
    assert scene.header_from_message(scene.header_to_message(header).header) == header


@pytest.mark.parametrize("dtype", ["float64", "", "encoded"])
def test_a_header_of_another_dtype(dtype: str) -> None:
    with pytest.raises(errors.InputError, match=repr(dtype)):
        scene.header_to_message(scene.SceneHeader(dtype))


@given(ROWS, st.integers(0, 1 << 40))
def test_rows_come_back_bit_for_bit(rows: np.ndarray, first_row: int) -> None:
    header = scene.SceneHeader(rows.dtype.name, width=rows.shape[1], channels=rows.shape[2])
    back = []
    for message in scene.pixels_to_messages(first_row, rows):
        part = pb.ScoreMapRequest.FromString(message.SerializeToString()).rows
        back.append(scene.pixels_from_message(part, header, first_row=first_row + sum(len(one) for one in back)))
    assert np.concatenate(back).tobytes() == rows.tobytes()
    assert all(one.dtype == rows.dtype and not one.flags.owndata for one in back)


def test_rows_go_in_messages_of_a_mebibyte() -> None:
    rows = np.zeros((50, 100_000, 1), np.uint8)
    sizes = [message.rows.rows for message in scene.pixels_to_messages(0, rows)]
    assert sizes == [10] * 5
    one_large = list(scene.pixels_to_messages(7, np.zeros((2, 1 << 20, 3), np.uint8)))
    assert [(message.rows.first_row, message.rows.rows) for message in one_large] == [(7, 1), (8, 1)]


def test_strided_rows_are_sent_as_their_pixels() -> None:
    rows = np.arange(120, dtype=np.uint8).reshape(10, 6, 2)[::2, ::-1]
    (message,) = scene.pixels_to_messages(0, rows)
    assert message.rows.pixels == rows.tobytes()


@pytest.mark.parametrize("rows", [np.zeros((2, 3), np.uint8), np.zeros((2, 3, 1), np.float64), np.zeros(4, np.uint8)])
def test_other_arrays_are_no_rows(rows: np.ndarray) -> None:
    with pytest.raises(errors.InputError, match="uint8 or float32"):
        list(scene.pixels_to_messages(0, rows))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 7])
def test_a_file_goes_in_pieces(size: int) -> None:
    file = np.random.default_rng(size).bytes(size)
    pieces = [message.piece for message in scene.pieces_to_messages(file)]
    assert b"".join(pieces) == file
    assert all(0 < len(piece) <= scene.PIECE_BYTES for piece in pieces)


def test_a_completion_tells_what_was_not_known() -> None:
    opened = Geometry(rows=0, cols=7, stride=(4, 4), window=(28, 28), ring=(1, 1, 1, 1), exactness="interior-exact")
    ended = Geometry(rows=2, cols=7, stride=(4, 4), window=(28, 28), ring=(1, 1, 2, 1), exactness="padded")
    message = codec.completion_to_message(ended, PlanBytes(5, 6, 7), seconds=0.5, measured_bytes=99)
    assert vars(codec.completed_geometry(opened, message)) == vars(ended)
    assert codec.plan_from_message(message.plan) == PlanBytes(5, 6, 7)
    assert (message.seconds, message.measured_bytes) == (0.5, 99)
    with pytest.raises(errors.RemoteError, match="exactness 0"):
        codec.completed_geometry(opened, pb.Completion())


def test_rows_of_a_map_whose_height_is_not_known() -> None:
    opened = Geometry(rows=0, cols=2, stride=(4, 4), window=(28, 28), classes=[0])
    message = pb.ScoreRows(first_row=10**6, rows=1, scores=bytes(8))
    assert codec.rows_from_message(message, opened, Reduction())["scores"].shape == (1, 2, 1)


# ---- descriptions

LAYER = {
    "name": "conv1",
    "op": "Conv F3 P1",
    "volume": [24, 20, 16],
    "values": 7680,
    "weights": 144,
    "parameters": 160,
    "flops": 1 << 40,
    "receptive_field": [3, 3],
    "stride": [1, 2],
    "offset": [-1, -1],
    "padded": [1, 1, 0, 1],
    "slides": True,
    "cells": 480,
    "clean_cells": 414,
    "exactness": "padded",
}
DESCRIPTION = {
    "output": "scores",
    "output_stride": [4, 8],
    "receptive_field": [28, 30],
    "exactness": "padded",
    "padded_by": "conv1",
    "stuck_at": "",
    "values": 1 << 33,
    "activation_bytes": 1 << 35,
    "weight_type": "bf16",
    "weight_bytes": 1 << 33,
    "weights": 5,
    "parameters": 6,
    "flops": 1 << 50,
    "layers": [LAYER, LAYER],
}


def test_summaries_come_back() -> None:
    message = summary_to_message("net", version="7", window=(28, 30), channels=3, classes=2, labels=["a", "b"])
    assert summary_from_message(message) == {
        "name": "net", "version": "7", "state": None, "reason": None,
        "window": [28, 30], "channels": 3, "classes": 2, "labels": ["a", "b"],
    }  # fmt: skip
    message = summary_to_message("net", window=None, channels=3, classes=0, labels=None)
    assert summary_from_message(message) == {
        "name": "net", "version": None, "state": None, "reason": None,
        "window": None, "channels": 3, "classes": None, "labels": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "preprocess",
    [
        None,
        Preprocess(),
        Preprocess(resize=256, crop=(224, 200), channels="bgr", scale=1 / 255, mean=(0.5, 0.25, 0.125), std=0.1),
        Preprocess(channels="gray", mean=7.0),
    ],
)
def test_descriptions_come_back(preprocess: Preprocess | None) -> None:
    fields = None if preprocess is None else preprocess.to_dict()
    summary = summary_to_message("net", window=(28, 30), channels=3, classes=2, labels=None)
    sent = description_to_message(summary, DESCRIPTION, fields)
    back = description_from_message(pb.DescribeModelResponse.FromString(sent.SerializeToString()))
    assert {key: back[key] for key in DESCRIPTION} == DESCRIPTION
    assert back["network"] == back["name"] == "net"
    expected = fields and {key: list(one) if isinstance(one, tuple) else one for key, one in fields.items()}
    assert back["preprocess"] == expected


def test_a_mean_for_each_pixel_is_told_and_not_sent() -> None:
    fields = Preprocess(mean=np.zeros((28, 30, 3), np.float32)).to_dict()
    summary = summary_to_message("net", window=(28, 30), channels=3, classes=2, labels=None)
    back = description_from_message(description_to_message(summary, DESCRIPTION, fields))
    assert back["preprocess"]["mean_image"] is True
    assert back["preprocess"]["mean"] is None
