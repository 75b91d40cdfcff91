"""Makes small ONNX models from node tuples, and compares an imported one with ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx_writer import runtime_session
from reference import evaluate_outputs

from convserve.formats.onnx import load_onnx
from convserve.graph.ir import Graph
from convserve.graph.ops import infer_volumes

__all__ = ["OldestToNewest", "agree", "drawn", "made", "ops_of"]

OldestToNewest = range(7, onnx.defs.onnx_opset_version() + 1)
NodeTuple = tuple[Any, ...]


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return normal float32 values."""
    return (scale * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def made(
    *nodes: NodeTuple,
    shape: Sequence[int | str | None] = ("N", 3, 8, 8),
    weights: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 13,
    element: int = TensorProto.FLOAT,
    also_inputs: Sequence[str] = (),
) -> bytes:
    """Return a serialized model with the image input "x" from nodes (op, inputs, output(s), attributes={})."""
    protos = []
    for op, inputs, written, *attrs in nodes:
        names = [written] if isinstance(written, str) else list(written)
        protos.append(helper.make_node(op, inputs.split() if inputs else [], names, **(attrs[0] if attrs else {})))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    inputs = [helper.make_tensor_value_info("x", element, list(shape))]
    inputs += [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in initializers
        if tensor.name in also_inputs
    ]
    shown = [helper.make_tensor_value_info(name, element, None) for name in outputs]
    graph = helper.make_graph(protos, "made", inputs, shown, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return model.SerializeToString()


def agree(content: bytes, *, x: np.ndarray | None = None, tolerance: float = 1e-5, **options: Any) -> Graph:
    """Import a model, compare its outputs on x, shapes included, with ONNX Runtime's; return the graph."""
    graph = load_onnx(content, **options)
    infer_volumes(graph)
    if x is None:
        volume = graph.input_volume
        x = drawn(2, volume.channels, volume.height or 8, volume.width or 8)
    session = newest_session(content)
    expected = session.run(None, {graph.input_name: x})
    shown = evaluate_outputs(graph, x)
    assert list(shown) == [output.name for output in session.get_outputs()]
    for name, wanted in zip(shown, expected, strict=True):
        assert shown[name].shape == wanted.shape
        bound = tolerance * max(np.abs(wanted).max(initial=0.0), 1.0)
        np.testing.assert_allclose(shown[name], wanted, rtol=0, atol=bound)
    return graph


def newest_session(content: bytes) -> onnxruntime.InferenceSession:
    """Return a session; a model of an opset that ONNX Runtime does not know yet is stamped with the one before."""
    try:
        return runtime_session(content, optimized=False)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        model = onnx.load_model_from_string(content)
        if f"Opset {model.opset_import[0].version} is under development" not in str(error):
            raise
        model.opset_import[0].version -= 1
        return newest_session(model.SerializeToString())


def ops_of(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]
