"""Caffe's weights: in every form and encoding, written by hand too; what does not fit, and damage."""

import contextlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from caffe_files import TEXT, Blobs, drawn, every_layer, files, layer, loaded, network, refused, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convserve.errors import ConvserveError
from convserve.formats.caffe import CaffeFiles
from convserve.graph.assembly import no_parameters
from convserve.graph.rewrites import rewrite


def field(number: int, content: bytes) -> bytes:
    """Return a field of bytes as protobuf writes it, by hand."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def floats(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()


def by_shape(array: np.ndarray) -> bytes:
    return field(7, field(1, b"".join(map(varint, array.shape)))) + field(5, floats(array))


def by_four_sizes(array: np.ndarray) -> bytes:
    sizes = enumerate((1,) * (4 - array.ndim) + array.shape, 1)
    return b"".join(varint(number << 3) + varint(size) for number, size in sizes) + field(5, floats(array))


def one_by_one(array: np.ndarray) -> bytes:
    return by_shape(array)[: -len(field(5, floats(array)))] + b"".join(
        varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.ravel()
    )


def in_two_runs(array: np.ndarray) -> bytes:
    values = floats(array)
    return field(7, field(1, b"".join(map(varint, array.shape)))) + field(5, values[:8]) + field(5, values[8:])


def as_doubles(array: np.ndarray) -> bytes:
    return field(7, field(1, b"".join(map(varint, array.shape)))) + field(8, array.astype("<f8").tobytes())


def with_differences(array: np.ndarray) -> bytes:
    return field(6, floats(array + 1)) + by_shape(array) + field(9, bytes(8))


# where layers lie in the network, and name and blobs in the layer, as Caffe numbers these fields


def in_layer(name: bytes, blobs: list[bytes]) -> bytes:
    return field(100, field(1, name) + field(2, b"Some") + b"".join(field(7, blob) for blob in blobs))


def in_layers(name: bytes, blobs: list[bytes]) -> bytes:
    type = varint(5 << 3) + varint(4)
    return field(2, field(4, name) + b"".join(field(6, blob) for blob in blobs) + type)


def as_in_2013(name: bytes, blobs: list[bytes]) -> bytes:
    return field(2, field(1, field(1, name) + b"".join(field(50, blob) for blob in blobs)))


ENCODINGS = [by_shape, by_four_sizes, one_by_one, in_two_runs, as_doubles, with_differences]


@pytest.mark.parametrize("form", [in_layer, in_layers, as_in_2013])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_weights_written_by_hand_are_read(tmp_path: Path, form, encoding) -> None:
    blobs, x, wanted = drawn()
    parts = [form(name.encode(), [encoding(array) for array in arrays]) for name, arrays in blobs.items()]
    content = field(1, b"name") + b"".join(parts)
    y = loaded(files(tmp_path, TEXT, content)).run(x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", ["", "older", "legacy", "older legacy", "double"])
def test_the_message_writes_what_is_read_by_hand(tmp_path: Path, form: str) -> None:
    blobs, x, wanted = drawn()
    y = loaded(files(tmp_path, TEXT, weights(blobs, **dict.fromkeys(form.split(), True)))).run(x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4)


def changed(**layers: list[np.ndarray] | None) -> bytes:
    blobs: Blobs = {name: arrays for name, arrays in {**drawn()[0], **layers}.items() if arrays is not None}
    return weights(blobs)


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .caffemodel, it holds no layer with weights"),
        (b"no weights", "not a .caffemodel, or a truncated one"),
        (TEXT.encode(), "not a .caffemodel"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (changed(c=None), r"Convolution 'c': .*net.caffemodel' has no weights for a layer of that name"),
        (changed(c=None, conv=[ONES]), "it has weights for 'fc', 'conv'"),
        (
            changed(c=[np.ones((4, 3, 5, 5), np.float32), ONES]),
            r"weight, blob 0, must have the shape \(4, 3, 3, 3\); .* \(4, 3, 5, 5\)",
        ),
        (changed(c=[np.ones((4, 3, 3, 3), np.float32)]), "has 1 blob.* for it; its bias is blob 1"),
        (changed(c=[np.ones((4, 3, 3, 3), np.float32), ONES, ONES]), "has 2 blob.* of parameters, but .* has 3"),
        (changed(relu=[ONES]), "ReLU 'relu' has 0 blob"),
        (in_layer(b"c", [field(7, field(1, b"\5")) + field(5, floats(ONES))]), r"blob 0 of 'c' holds 4 values.*\(5,\)"),
        (in_layer(b"c", [field(5, b"abc")]), "or a truncated one"),
        (in_layer(b"c", [field(7, field(1, b"\4"))]), "blob 0 of 'c' holds 0 values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    refused(files(tmp_path, TEXT, content), message)


def test_two_layers_cannot_take_the_weights_of_one_name(tmp_path: Path) -> None:
    text = network(
        layer("Convolution", "x", "c", convolution="num_output: 3 kernel_size: 1"),
        layer("Convolution", "c", "fc", "c", convolution="num_output: 3 kernel_size: 1"),
    )
    blobs = {"c": [np.ones((3, 3, 1, 1), np.float32), np.ones(3, np.float32)]}
    refused(files(tmp_path, text, weights(blobs)), "two layers with weights have the name 'c'")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_are_refused(tmp_path: Path, part: float) -> None:
    content = weights(drawn()[0])
    refused(files(tmp_path, TEXT, content[: int(part * len(content))]), "truncated|no weights for a layer")


CONTENT = weights(drawn()[0])


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, len(CONTENT) + len(TEXT) - 1), bits=st.integers(1, 255), length=st.integers(0, 4))
def test_damaged_files_raise_only_our_exceptions(tmp_path: Path, place: int, bits: int, length: int) -> None:
    damaged = bytearray(CONTENT + TEXT.encode())
    damaged[place] ^= bits
    path = files(tmp_path, TEXT, bytes(damaged[: len(CONTENT)]))
    del damaged[place + 1 : place + 1 + length]
    if place >= len(CONTENT):
        path.write_bytes(damaged[len(CONTENT) :])
    with contextlib.suppress(ConvserveError):
        loaded(path)


EVERY = every_layer()
NUMBERS = [match.span(1) for match in re.finditer(r": (-?[0-9.]+)", EVERY)]
STRANGE = ["-1", "0", "1", "2", "3", "7", "100", "16777216", "1000000000", "4294967295", "9223372036854775807", "0.5",
           "1e38", "-1e38", "inf", "nan", "true", '"x"', ""]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.sampled_from(NUMBERS), st.sampled_from(STRANGE)), min_size=1, max_size=2))
def test_strange_numbers_raise_only_our_exceptions(tmp_path: Path, changes) -> None:
    text = EVERY
    for (begin, end), number in sorted(changes, reverse=True):
        text = text[:begin] + number + text[end:]
    path = files(tmp_path, text, b"")
    with contextlib.suppress(ConvserveError):
        rewrite(CaffeFiles(path).untrained(no_parameters), window=None).check()
