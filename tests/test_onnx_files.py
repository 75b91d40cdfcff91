"""ONNX files as they come: damaged, of other opsets, with external data inside and outside the model's folder."""

import contextlib
import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_maker import OldestToNewest, drawn, made

from convserve.errors import ConvserveError, ModelFormatError, ModelNotFoundError, UnsupportedOpError
from convserve.formats.onnx import load_onnx

WEIGHT = drawn(4, 3, 3, 3)
CONTENT = made(
    ("Conv", "x w b", "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Reshape", "c s", "f"),
    ("Gemm", "f m", "g", {"transB": 1}),
    ("Softmax", "g", "y"),
    weights={"w": WEIGHT, "b": drawn(4), "s": np.array([0, -1]), "m": drawn(5, 64)},
)


NOT_ONNX = [b"", b"\x00" * 64, b"GIF89a not a network", CONTENT[:-40], CONTENT[: len(CONTENT) // 2]]


@pytest.mark.parametrize("content", NOT_ONNX)
def test_what_is_no_onnx_file_is_refused(content, tmp_path):
    with pytest.raises(ModelFormatError, match="not an ONNX model"):
        load_onnx(content)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"net\.onnx.*not an ONNX model"):
        load_onnx(path)


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"absent\.onnx"):
        load_onnx(tmp_path / "absent.onnx")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        load_onnx(tmp_path)


@pytest.mark.parametrize("opset", [1, 5, OldestToNewest[-1] + 1])
def test_other_opsets_are_refused(opset):
    with pytest.raises(ModelFormatError, match=f"opset {opset}; convserve reads opsets 6 to {OldestToNewest[-1]}"):
        load_onnx(made(("Relu", "x", "y"), opset=opset))


def test_other_domains_are_refused():
    model = onnx.load_model_from_string(CONTENT)
    model.graph.node[0].domain = "com.example"
    with pytest.raises(UnsupportedOpError, match=r"domain 'com\.example'"):
        load_onnx(model.SerializeToString())
    del model.opset_import[:]
    with pytest.raises(ModelFormatError, match="names no ONNX opset"):
        load_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": ("N", "C", 8, 8)}, "leaves its channels open"),
        ({"shape": ("N", 3, 8)}, "has 3 dimensions"),
        ({"element": TensorProto.UINT8}, "no tensor of floats"),
    ],
)
def test_inputs_that_are_no_image_are_refused(options, message):
    with pytest.raises(UnsupportedOpError, match=message):
        load_onnx(made(("Relu", "x", "y"), **options))


def test_two_images_are_refused():
    model = onnx.load_model_from_string(made(("Add", "x z", "y")))
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3, 8, 8]))
    with pytest.raises(UnsupportedOpError, match=r"needs 2 inputs .*'x', 'z'"):
        load_onnx(model.SerializeToString())


def test_a_tensor_that_holds_too_few_values_is_refused():
    model = onnx.load_model_from_string(CONTENT)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelFormatError, match="the initializer 'w'"):
        load_onnx(model.SerializeToString())
    model.graph.initializer[0].dims[0] = -4
    with pytest.raises(ModelFormatError, match="the initializer 'w' has the shape"):
        load_onnx(model.SerializeToString())


@settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, len(CONTENT) - 1), bits=st.integers(1, 255), length=st.integers(0, 4))
def test_a_damaged_file_raises_only_our_exceptions(place, bits, length):
    damaged = bytearray(CONTENT)
    damaged[place] ^= bits
    del damaged[place + 1 : place + 1 + length]
    with contextlib.suppress(ConvserveError):
        load_onnx(bytes(damaged))


def external(location: str, **entries: int) -> bytes:
    """Return the model with its weight "w" in another file."""
    model = onnx.load_model_from_string(CONTENT)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return model.SerializeToString()


@pytest.fixture
def folder(tmp_path):
    """The model's folder, with the weights in data/w.bin behind 64 bytes, and outside.bin beside the folder."""
    (tmp_path / "net" / "data").mkdir(parents=True)
    (tmp_path / "net" / "data" / "w.bin").write_bytes(bytes(64) + WEIGHT.tobytes())
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    return tmp_path / "net"


def load_external(folder, location, **entries):
    path = folder / "net.onnx"
    path.write_bytes(external(location, **entries))
    return load_onnx(path)


@pytest.mark.parametrize("location", ["data/w.bin", "./data/w.bin"])
@pytest.mark.parametrize("entries", [{"offset": 64}, {"offset": 64, "length": WEIGHT.nbytes}])
def test_external_data_inside_the_folder_is_read(folder, location, entries, monkeypatch):
    np.testing.assert_array_equal(load_external(folder, location, **entries).nodes[0].params["weight"], WEIGHT)
    monkeypatch.chdir(folder)
    np.testing.assert_array_equal(load_onnx("net.onnx").nodes[0].params["weight"], WEIGHT)


@pytest.mark.parametrize(
    "location",
    [
        "../outside.bin",
        "data/../../outside.bin",
        "data/../data/w.bin",
        "",
        ".",
        "data",
        "data//w.bin",
        "..\\outside.bin",
    ],
)
def test_external_data_with_a_way_out_is_refused(folder, location):
    with pytest.raises(ModelFormatError, match="must be a regular file inside the model's folder"):
        load_external(folder, location)


def test_external_data_by_absolute_path_is_refused(folder):
    with pytest.raises(ModelFormatError, match="must be a regular file inside the model's folder"):
        load_external(folder, str(folder / "data" / "w.bin"), offset=64)


def test_external_data_through_links_is_refused(folder):
    outside = folder.parent / "outside.bin"
    (folder / "leaf.bin").symlink_to(outside)
    (folder / "parent").symlink_to(folder.parent)
    os.link(outside, folder / "hard.bin")
    os.mkfifo(folder / "pipe.bin")
    for location in ("leaf.bin", "parent/outside.bin", "hard.bin", "pipe.bin"):
        with pytest.raises(ModelFormatError, match="must be a regular file inside the model's folder"):
            load_external(folder, location)


def test_external_data_that_is_missing_or_too_short(folder):
    with pytest.raises(ModelFormatError, match=r"'data/none\.bin' is missing"):
        load_external(folder, "data/none.bin")
    with pytest.raises(ModelFormatError, match="bytes 128 to 560 of"):
        load_external(folder, "data/w.bin", offset=128, length=WEIGHT.nbytes)
    with pytest.raises(ModelFormatError, match="the initializer 'w'"):
        load_external(folder, "data/w.bin", offset=128)
    with pytest.raises(ModelFormatError, match="load the model by its path"):
        load_onnx(external("data/w.bin", offset=64))
