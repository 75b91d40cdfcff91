"""ONNX's own suite through convserve.onnx_backend, and the Backend interface itself."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance import EXCLUSIONS, SUITE_VERSION, cases, failure
from onnx import TensorProto, helper, numpy_helper

import convserve
from convserve import onnx_backend

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(onnx.__version__ != SUITE_VERSION, reason=f"the list is that of the suite in onnx {SUITE_VERSION}")
def test_all_cases_pass_but_those_that_are_listed():
    found = {case.name: failure(case) for case in cases()}
    assert {name: why for name, why in found.items() if why and name not in EXCLUSIONS} == {}
    assert [name for name in EXCLUSIONS if not found.get(name, "")] == [], "these pass, or are no longer in the suite"
    stated = re.search(r"(\d+) cases pass, (\d+) are left out", README.read_text(encoding="utf-8"))
    assert stated, "the README does not say how many cases pass"
    assert [int(number) for number in stated.groups()] == [len(found) - len(EXCLUSIONS), len(EXCLUSIONS)]


def test_every_case_that_is_left_out_has_a_reason():
    assert all(len(reason) > 5 for reason in EXCLUSIONS.values())


def relu_and_sum() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "c"], ["s"])]
    sizes = {"x": [2, 3, 4, 4], "c": [3, 1, 1]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()]
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes["x"]) for name in "rs"]
    graph = helper.make_graph(nodes, "net", inputs, shown)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)


def test_a_prepared_model_runs_with_other_constants_each_time():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 4), np.float32)
    prepared = onnx_backend.prepare(relu_and_sum(), "CPU", threads=1)
    for _ in range(2):
        c = rng.standard_normal((3, 1, 1), np.float32)
        for inputs in ([x, c], {"c": c, "x": x}):
            positive, total = prepared.run(inputs)
            np.testing.assert_array_equal(positive, np.maximum(x, 0))
            np.testing.assert_array_equal(total, np.maximum(x, 0) + c)


def test_a_node_and_a_model_run_at_once():
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    weight = np.eye(4, dtype=np.float32)[::-1].copy()
    (y,) = onnx_backend.run_node(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), [x, weight])
    np.testing.assert_array_equal(y, x[:, ::-1])
    (z,) = onnx_backend.run_node(helper.make_node("Relu", ["x"], ["y"]), x[None], opset_version=13)
    np.testing.assert_array_equal(z, np.maximum(x, 0))
    model = relu_and_sum()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 1, 1), np.float32), "c"))
    image = np.full((2, 3, 4, 4), -1, np.float32)
    np.testing.assert_array_equal(onnx_backend.run_model(model, image)[1], np.ones_like(image))


def test_devices_and_models_that_do_not_fit():
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA")
    assert not onnx_backend.supports_device("TPU:x")
    model = relu_and_sum()
    assert onnx_backend.is_compatible(model)
    with pytest.raises(convserve.InputError, match="CUDA"):
        onnx_backend.prepare(model, "CUDA")
    with pytest.raises(convserve.InputError, match=r"there are 1 inputs; the model takes 2: \['x', 'c'\]"):
        onnx_backend.prepare(model).run([np.zeros((2, 3, 4, 4), np.float32)])
    with pytest.raises(convserve.InputError, match=r"there are 2 inputs; the node takes 1: \['x'\]"):
        onnx_backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [np.zeros((1, 3), np.float32)] * 2)
    del model.graph.input[1]
    model.graph.node[0].op_type = "NonMaxSuppression"
    assert not onnx_backend.is_compatible(model)

