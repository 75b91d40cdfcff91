"""PyTorch as a peer: a network, its batch normalizations folded, as a frozen graph for oneDNN."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from convserve.formats.onnx import load_onnx
from convserve.graph.ir import Graph, Node
from convserve.graph.rewrites import rewrite

__all__ = ["GraphModule", "open_torch"]


class GraphModule(torch.nn.Module):
    """A rewritten graph, node by node, on volumes (N, C, H, W)."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = torch.nn.ModuleDict()
        for number, node in enumerate(graph.nodes):
            layer = torch.nn.Module()
            for name, array in node.params.items():
                layer.register_buffer(name, torch.from_numpy(np.array(array)))
            self.layers[str(number)] = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the first output in its declared shape."""
        tensors = {self.graph.input_name: x}
        for number, node in enumerate(self.graph.nodes):
            layer = self.layers[str(number)]
            params = {name: getattr(layer, name) for name in node.params}
            y = _apply(node, [tensors[name] for name in node.inputs], params)
            tensors[node.output] = F.relu(y) if node.attrs.get("activation") == "relu" else y
        shown = self.graph.outputs[0]
        y = tensors[shown.tensor]
        return y if shown.shape is None else y.reshape(x.shape[0], *(size or -1 for size in shown.shape))


def _apply(node: Node, ins: list[torch.Tensor], params: dict[str, torch.Tensor]) -> torch.Tensor:
    x, attrs = ins[0], node.attrs
    if node.op == "Conv":
        x, pads = _padded(x, attrs, 0.0)
        window = (attrs["strides"], pads, attrs["dilations"], attrs["group"])
        y = F.conv2d(x, params["weight"], params.get("bias"), *window)
        return y + ins[1] if len(ins) > 1 else y
    if node.op == "MaxPool":
        x, pads = _padded(x, attrs, float("-inf"))
        return F.max_pool2d(x, attrs["kernel_shape"], attrs["strides"], pads, attrs["dilations"], attrs["ceil_mode"])
    if node.op == "AveragePool":
        padded, pads = _padded(x, attrs, 0.0)
        shape = (attrs["kernel_shape"], attrs["strides"], pads, attrs["ceil_mode"])
        if padded is x or attrs["count_include_pad"]:
            return F.avg_pool2d(padded, *shape, attrs["count_include_pad"])
        counted = F.avg_pool2d(_padded(torch.ones_like(x[:1, :1]), attrs, 0.0)[0], *shape)
        return F.avg_pool2d(padded, *shape) / counted
    if node.op == "LRN":
        return F.local_response_norm(x, attrs["size"], attrs["alpha"], attrs["beta"], attrs["bias"])
    if node.op == "Affine":
        return x * params["scale"][:, None, None] + params["shift"][:, None, None]
    if node.op == "ChannelShuffle":
        return F.channel_shuffle(x, attrs["group"])
    if node.op == "Flatten":
        return x.reshape(x.shape[0], -1, 1, 1)
    if node.op in ("Add", "Mul"):
        y = x
        for other in ins[1:]:
            y = y + other if node.op == "Add" else y * other
        return y
    whole: dict[str, Callable[[], torch.Tensor]] = {
        "Relu": lambda: F.relu(x),
        "Concat": lambda: torch.cat(ins, 1),
        "Softmax": lambda: F.softmax(x, 1),
        "GlobalAveragePool": lambda: x.mean((2, 3), keepdim=True),
        "GlobalMaxPool": lambda: x.amax((2, 3), keepdim=True),
        "Identity": lambda: x,
    }
    if node.op not in whole:
        raise NotImplementedError(f"no {node.op} in PyTorch here")
    return whole[node.op]()


def _padded(x: torch.Tensor, attrs: dict[str, Any], value: float) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the input and the pads that PyTorch takes: what differs from side to side is written out."""
    if attrs["auto_pad"] != "NOTSET":
        raise NotImplementedError(f"auto_pad {attrs['auto_pad']}")
    top, left, bottom, right = attrs["pads"]
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def open_torch(path: Path, threads: int, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from x to the network's first output, traced and optimized for the shape of x."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    module = GraphModule(rewrite(load_onnx(str(path)), window=None)).eval()
    # channels last is the order in which oneDNN is fastest here
    module = module.to(memory_format=torch.channels_last)
    example = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(module, example)))

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return traced(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).numpy()

    return run
