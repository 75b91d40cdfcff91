"""Messages parsed without their weights: the same tensors as protobuf's own parser gives, none of them copied."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_maker import drawn, made

from convserve.errors import ConvserveError, ModelFormatError
from convserve.formats.onnx import OnnxFile, load_onnx
from convserve.formats.onnx.message import IN_MESSAGE, parse_model

WEIGHTS = {"w": drawn(40, 3, 7, 7), "b": drawn(40), "m": drawn(5, 40)}
CONTENT = made(
    ("Conv", "x w b", "c", {"pads": [3, 3, 3, 3]}),
    ("GlobalAveragePool", "c", "p"),
    ("Flatten", "p", "f"),
    ("Gemm", "f m", "y", {"transB": 1}),
    weights=WEIGHTS,
)


def tensors_of(content: bytes) -> dict[str, np.ndarray]:
    opened = OnnxFile(content)
    graph = opened.model.graph
    constants = [(node.output[0], part.t) for node in graph.node for part in node.attribute if part.HasField("t")]
    named = [(tensor.name, tensor) for tensor in graph.initializer] + constants
    return {name: opened.array(tensor, name) for name, tensor in named}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8])
def test_long_values_of_every_type_come_back(dtype):
    array = (100 * drawn(3, 5000)).astype(dtype)
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(array[::-1].copy(), "k"))
    graph = helper.make_graph(
        [constant, helper.make_node("Identity", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
        [numpy_helper.from_array(array, "w"), numpy_helper.from_array(array[:, :7].copy(), "short")],
    )
    found = tensors_of(helper.make_model(graph).SerializeToString())
    for name, wanted in {"w": array, "k": array[::-1], "short": array[:, :7]}.items():
        assert found[name].dtype == wanted.dtype
        assert np.array_equal(found[name], wanted)


def test_bfloat16_comes_back():
    values = np.arange(4096, dtype=np.float32)
    tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[4096])
    tensor.raw_data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    model = onnx.load_model_from_string(CONTENT)
    model.graph.initializer.append(tensor)
    found = tensors_of(model.SerializeToString())
    assert np.array_equal(found["w"].astype(np.float32), (values.view(np.uint32) >> 16 << 16).view(np.float32))


def test_only_long_values_are_left_out_and_they_are_views_of_the_bytes():
    model = parse_model(memoryview(CONTENT))
    by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    assert {entry.value for entry in by_name["w"].external_data} >= {IN_MESSAGE}
    assert by_name["b"].raw_data == WEIGHTS["b"].tobytes()
    whole = np.frombuffer(CONTENT, np.uint8)
    params = load_onnx(CONTENT).nodes[0].params
    assert np.shares_memory(params["weight"], whole)
    assert np.array_equal(params["weight"], WEIGHTS["w"])


def test_a_files_values_are_views_of_its_mapping(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(CONTENT)
    opened = OnnxFile(path)
    weight = load_onnx(opened).nodes[0].params["weight"]
    assert np.shares_memory(weight, opened.content)
    assert not weight.flags.writeable
    assert list(opened.files) == [str(path)]


def test_no_model_can_name_the_place_within_its_message():
    model = onnx.load_model_from_string(CONTENT)
    tensor = model.graph.initializer[0]
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "\0"), ("offset", "0"), ("length", str(len(raw)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(ModelFormatError, match="load the model by its path"):
        load_onnx(model.SerializeToString())


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, len(CONTENT) - 1), bits=st.integers(1, 255), length=st.integers(0, 4))
def test_damage_is_seen_as_protobuf_sees_it(place, bits, length):
    damaged = bytearray(CONTENT)
    damaged[place] ^= bits
    del damaged[place + 1 : place + 1 + length]
    try:
        wanted = onnx.load_model_from_string(bytes(damaged))
    except Exception:
        with pytest.raises(ConvserveError):
            load_onnx(bytes(damaged))
        return
    with contextlib.suppress(ConvserveError):
        found = OnnxFile(bytes(damaged))
        assert len(found.model.graph.initializer) == len(wanted.graph.initializer)
        for ours, theirs in zip(found.model.graph.initializer, wanted.graph.initializer, strict=True):
            if ours.data_location != TensorProto.EXTERNAL:
                assert ours == theirs
            elif ours.external_data[-3].value == IN_MESSAGE:
                assert found.array(ours, "").tobytes() == theirs.raw_data
