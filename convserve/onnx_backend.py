"""ONNX's Backend interface: an ONNX model or node in, its outputs out; runs the suite that the onnx package ships."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import IR_VERSION, ModelProto, NodeProto, TypeProto, defs, helper, numpy_helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from convserve.errors import ConvserveError, InputError
from convserve.loading import load
from convserve.model import Model

__all__ = ["ConvserveBackend", "PreparedModel", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class PreparedModel(BackendRep):
    """A model that waits for its inputs: the first is the image, all others are bound as constants by run."""

    def __init__(self, model: ModelProto, options: dict[str, Any]) -> None:
        initialized = {tensor.name for tensor in model.graph.initializer}
        self._proto = model
        self._options = options
        self._inputs = [value.name for value in model.graph.input if value.name not in initialized]
        self._model: Model | None = None
        if len(self._inputs) == 1:
            self._model = self._bound([])

    def _bound(self, constants: Sequence[np.ndarray]) -> Model:
        proto = self._proto
        if constants:
            proto = ModelProto()
            proto.CopyFrom(self._proto)
            tensors = map(numpy_helper.from_array, constants, self._inputs[1:])
            proto.graph.initializer.extend(tensors)
        return load(proto.SerializeToString(), cache=False, **self._options)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """Return the outputs in the graph's order; inputs: arrays in the graph's order, or by name.

        The first is float32 (N, C, H, W) or (N, C). Raises InputError for a wrong number of inputs, and what
        convserve.load and Model.run raise.
        """
        if isinstance(inputs, dict):
            inputs = [inputs[name] for name in self._inputs if name in inputs]
        elif isinstance(inputs, np.ndarray):
            inputs = [inputs]
        arrays = [np.asarray(value) for value in inputs]
        if not arrays or len(arrays) != len(self._inputs):
            raise InputError(f"there are {len(arrays)} inputs; the model takes {len(self._inputs)}: {self._inputs}")
        model = self._model or self._bound(arrays[1:])
        found = model.run(arrays[0])
        return tuple(found.values()) if isinstance(found, dict) else (found,)


class ConvserveBackend(Backend):
    """The interface as a class, as onnx.backend.test.BackendTest takes it."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Tell whether convserve can load the model as it stands, its inputs besides the first as constants."""
        try:
            cls.prepare(model, device, **kwargs)
        except ConvserveError:
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """Return the model ready to run; kwargs: options of convserve.load, such as threads or algorithm.

        Raises InputError for a device other than the CPU, and what convserve.load raises where the model has
        one input; with more it is loaded by the first run, which knows the constants.
        """
        if not cls.supports_device(device):
            raise InputError(f"device is {device!r}; convserve runs on CPU")
        return PreparedModel(model, kwargs)

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[np.ndarray, ...]:
        """Prepare a model and return its outputs."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs of one node, for inputs in the node's order; opset_version: default the newest."""
        opset = kwargs.pop("opset_version", defs.onnx_opset_version())
        arrays = [np.asarray(value) for value in inputs]
        names = [name for name in node.input if name]
        if len(arrays) != len(names):
            raise InputError(f"there are {len(arrays)} inputs; the node takes {len(names)}: {names}")
        declared = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        shown = [helper.make_value_info(name, TypeProto()) for name in node.output if name]
        graph = helper.make_graph([node], node.name or node.op_type, declared, shown)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)], ir_version=IR_VERSION)
        return cls.run_model(model, arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Tell whether convserve runs on a device: "CPU" or "CPU:0"."""
        try:
            return bool(Device(device).type == DeviceType.CPU)
        except (AttributeError, ValueError):
            return False


is_compatible = ConvserveBackend.is_compatible
prepare = ConvserveBackend.prepare
run_model = ConvserveBackend.run_model
run_node = ConvserveBackend.run_node
supports_device = ConvserveBackend.supports_device
