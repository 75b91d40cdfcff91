"""Arrays and results to messages and back, and every way in which a message can lie."""

import contextlib

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convserve import errors
from convserve.reduction import Reduction
from convserve.results import Geometry, PlanBytes, Prediction
from convserve.wire import codec, status
from convserve.wire import convserve_pb2 as pb

GEOMETRY = Geometry(
    rows=5,
    cols=7,
    stride=(32, 16),
    window=(224, 200),
    offset=(-3, 8),
    exactness="interior-exact",
    ring=(1, 2, 3, 4),
    classes=[281, 0],
    labels=["tabby", "tench"],
)

PIXELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)))
VALUES = arrays.arrays(
    np.float32,
    st.tuples(st.just(1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    elements=st.floats(width=32, allow_nan=True),
)


@given(st.one_of(PIXELS, VALUES))
def test_a_tensor_comes_back_bit_for_bit(array: np.ndarray) -> None:
    message = pb.Tensor.FromString(codec.array_to_tensor(array).SerializeToString())
    back = codec.tensor_to_array(message)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_strided_and_gray_images_are_sent_as_their_pixels() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(codec.tensor_to_array(codec.array_to_tensor(image[::2, ::-1])), image[::2, ::-1])
    assert codec.tensor_to_array(codec.array_to_tensor(image[:, :, 0])).shape == (4, 5, 1)


def test_a_decoded_tensor_is_a_view_of_the_message_and_no_copy() -> None:
    data = codec.tensor_to_array(codec.array_to_tensor(np.zeros((4, 4, 3), np.uint8)))
    assert not data.flags.owndata
    assert not data.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((2, 3, 4, 4), np.float32),
        np.zeros((1, 3, 4, 4), np.float64),
        np.zeros(4, np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
    ],
)
def test_other_arrays_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(errors.InputError, match="uint8"):
        codec.array_to_tensor(array)


@pytest.mark.parametrize(
    ("layout", "shape", "size"),
    [
        (pb.UINT8_HWC, (2, 2, 3), 11),
        (pb.UINT8_HWC, (2, 2, 3), 13),
        (pb.UINT8_HWC, (2, 2), 4),
        (pb.UINT8_HWC, (), 0),
        (pb.UINT8_HWC, (0, 2, 3), 0),
        (pb.UINT8_HWC, (-1, -2, 3), 6),
        (pb.UINT8_HWC, (2**62, 4, 4), 0),
        (pb.UINT8_HWC, (2**63 - 1, 2**63 - 1, 1), 1),
        (pb.FP32_NCHW, (1, 2**60, 2, 8), 0),
        (pb.FP32_NCHW, (2, 1, 2, 2), 32),
        (pb.FP32_NCHW, (1, 1, 2, 2), 4),
        (pb.FP32_NCHW, (1, 2, 2), 16),
    ],
)
def test_a_tensor_whose_shape_and_bytes_differ_is_refused(layout: pb.Layout, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(errors.ShapeError):
        codec.tensor_to_array(pb.Tensor(layout=layout, shape=shape, data=bytes(size)))


def test_a_tensor_without_a_layout_is_refused() -> None:
    with pytest.raises(errors.InputError, match="layout"):
        codec.tensor_to_array(pb.Tensor(shape=(1, 1, 1), data=b"x"))


@pytest.mark.parametrize("image", [pb.Image(), pb.Image(encoded=b"")])
def test_an_empty_image_is_refused(image: pb.Image) -> None:
    with pytest.raises(errors.InputError, match="empty"):
        codec.image_from_message(image)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_raise_only_input_errors(data: bytes) -> None:
    try:
        request = pb.ClassifyRequest.FromString(data)
    except DecodeError:
        return
    for image in request.images:
        with contextlib.suppress(errors.InputError):
            codec.image_from_message(image)


@given(
    st.lists(st.integers(-4, 2**63 - 1), max_size=5),
    st.binary(max_size=64),
    st.sampled_from([0, pb.UINT8_HWC, pb.FP32_NCHW, 77]),
)
def test_a_tensor_is_either_whole_or_refused(shape: list[int], data: bytes, layout: int) -> None:
    try:
        array = codec.tensor_to_array(pb.Tensor(layout=layout, shape=shape, data=data))  # type: ignore[arg-type]
    except errors.InputError:
        return
    assert array.nbytes == len(data)


@pytest.mark.parametrize("exactness", ["exact", "interior-exact", "padded"])
def test_a_geometry_comes_back(exactness: str) -> None:
    place = Geometry(**{**vars(GEOMETRY), "exactness": exactness})
    plan = PlanBytes(1, 2, 3 << 40, 4)
    message = codec.geometry_to_message(place, plan, model="vgg16")
    assert vars(codec.geometry_from_message(message)) == vars(place)
    assert codec.plan_from_message(message.plan) == plan
    assert message.model == "vgg16"


def test_a_geometry_of_an_unknown_exactness_is_the_servers_fault() -> None:
    with pytest.raises(errors.RemoteError, match="exactness"):
        codec.geometry_from_message(pb.Geometry(rows=1, cols=1))


@pytest.mark.parametrize("rows", [1, 9])
def test_score_rows_travel_in_parts_of_limited_size(rows: int) -> None:
    cols, classes = 13, 30_000
    scores = np.random.default_rng(7).standard_normal((rows, cols, classes), np.float32)
    scores[0, 0, 0] = np.nan
    place = Geometry(rows=100 + rows, cols=cols, classes=list(range(classes)), stride=(1, 1), window=(1, 1))
    messages = list(codec.rows_to_messages(100, {"scores": scores}))
    assert all(len(message.scores) <= max(codec.ROWS_BYTES, cols * classes * 4) for message in messages)
    assert [message.first_row for message in messages] == list(range(100, 100 + rows))
    parts = [codec.rows_from_message(message, place, Reduction())["scores"] for message in messages]
    assert np.concatenate(parts).tobytes() == scores.tobytes()


@pytest.mark.parametrize(
    "rows",
    [
        pb.ScoreRows(first_row=0, rows=1, scores=bytes(7 * 2 * 4 - 1)),
        pb.ScoreRows(first_row=5, rows=1, scores=bytes(7 * 2 * 4)),
        pb.ScoreRows(first_row=2**64 - 1, rows=1, scores=bytes(7 * 2 * 4)),
        pb.ScoreRows(first_row=0, rows=2**62, scores=b""),
    ],
)
def test_score_rows_that_do_not_fit_their_geometry_are_the_servers_fault(rows: pb.ScoreRows) -> None:
    with pytest.raises(errors.RemoteError):
        codec.rows_from_message(rows, GEOMETRY, Reduction())


def test_predictions_come_back_in_order() -> None:
    predictions = [Prediction("tabby", 281, 0.5), Prediction("", 0, 0.25)]
    assert codec.predictions_from_message(codec.classification_to_message(predictions)) == predictions


def test_classes_are_indices_and_labels_in_order() -> None:
    request = pb.ScoreMapHeader(classes=codec.classes_to_message([3, "3", np.int64(0)]))
    assert codec.classes_from_message(request.classes) == [3, "3", 0]
    assert codec.classes_from_message([]) is None


@pytest.mark.parametrize("classes", ["tabby", [], [-1], [1.5], [2**32]])
def test_other_classes_are_refused(classes: object) -> None:
    with pytest.raises(errors.InputError, match="class"):
        codec.classes_to_message(classes)  # type: ignore[arg-type]


def test_every_exception_has_a_status_and_comes_back_as_itself() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)("a reason")
        back = status.error_of(status.status_of(error), str(error), name)
        assert type(back) is type(error)
        assert str(back) == "a reason"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ImageError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ShapeError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
        (errors.MemoryBudgetError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RunCancelled, grpc.StatusCode.CANCELLED),
        (errors.ModelFormatError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ServerBusy, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.ServerUnavailable, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_statuses(error: type[errors.ConvserveError], code: grpc.StatusCode) -> None:
    assert status.status_of(error("x")) == code


def test_a_run_cancelled_by_its_deadline_says_so() -> None:
    assert status.status_of(errors.RunCancelled("x"), overdue=True) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert status.status_of(errors.InputError("x"), overdue=True) == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", [None, "", "SystemExit", "__all__", "__doc__", "ConvserveError "])
def test_a_status_without_a_known_name_is_read_by_its_code(name: str | None) -> None:
    assert type(status.error_of(grpc.StatusCode.NOT_FOUND, "x", name)) is errors.ModelNotFoundError
    assert type(status.error_of(grpc.StatusCode.UNKNOWN, "x", name)) is errors.RemoteError
