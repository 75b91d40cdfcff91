"""Writes Caffe networks and their weights, and compares what we make of them with the formulas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from reference_caffe import evaluate

import convserve
from convserve.errors import ModelFormatError
from convserve.formats.caffe import net_pb2 as pb
from convserve.model import Model

__all__ = [
    "TEXT",
    "Blobs",
    "agree",
    "drawn",
    "drawn_blobs",
    "drawn_weights",
    "every_layer",
    "files",
    "image",
    "layer",
    "loaded",
    "network",
    "refused",
    "weights",
]

Blobs = Mapping[str, Sequence[np.ndarray]]


def layer(type: str, bottoms: str = "x", tops: str = "y", name: str = "", **params: str) -> str:
    """Return the text of a layer: what it reads and writes as words, parameters as text by the message's name."""
    parts = [f'name: "{name or (tops or bottoms).split()[0]}" type: "{type}"']
    parts += [f'bottom: "{bottom}"' for bottom in bottoms.split()] + [f'top: "{top}"' for top in tops.split()]
    parts += [f"{message}_param {{ {text} }}" for message, text in params.items()]
    return f"layer {{ {' '.join(parts)} }}\n"


def network(*layers: str, shape: Sequence[int] = (1, 3, 9, 10)) -> str:
    """Return the text of a network over the image "x"."""
    dims = " ".join(f"dim: {size}" for size in shape)
    return layer("Input", "", "x", input=f"shape {{ {dims} }}") + "".join(layers)


def every_layer() -> str:
    """Return the text of a network in which layers of nearly every type have parameters."""
    window = "num_output: 4 kernel_size: 3 stride: 2 pad: 1"
    return network(
        layer("Convolution", "x", "c", convolution=f"{window} group: 1 bias_term: false dilation: 1"),
        layer("BatchNorm", "c", "c", "norm", batch_norm="use_global_stats: true eps: 0.001"),
        layer("Scale", "c", "c", "scale", scale="bias_term: true"),
        layer("PReLU", "c", "c", "prelu"),
        layer("LRN", "c", "n", lrn="local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL"),
        layer("LRN", "n", "m", lrn="local_size: 3 alpha: 0.5 beta: 0.7 k: 2"),
        layer("Pooling", "m", "p", pooling="pool: AVE kernel_h: 3 kernel_w: 2 stride: 2 pad_h: 1"),
        layer("Deconvolution", "p", "d", convolution="num_output: 4 kernel_size: 4 stride: 2"),
        layer("Crop", "d c", "e", crop="axis: 2 offset: 1 offset: 0"),
        layer("Eltwise", "e c", "s", eltwise="operation: SUM coeff: 0.5 coeff: -1"),
        layer("Slice", "s", "s1 s2 s3", slice="slice_point: 1 slice_point: 3"),
        layer("Power", "s1", "t1", power="scale: 0.5 shift: 9 power: 0.5"),
        layer("Exp", "s2", "t2", exp="base: 2 scale: 0.5 shift: -1"),
        layer("Log", "t2", "t3", log="base: 10 shift: 1"),
        layer("ReLU", "s3", "t4", relu="negative_slope: 0.25"),
        layer("Concat", "t4 t3 t1", "t", concat="axis: 1"),
        layer("Reshape", "t", "r", reshape="shape { dim: 0 dim: -1 dim: 1 dim: 1 }"),
        layer("InnerProduct", "r", "fc", inner_product="num_output: 6 transpose: true"),
        layer("Softmax", "fc", "prob", softmax="axis: 1"),
        shape=(2, 3, 17, 16),
    )


def weights(blobs: Blobs, *, older: bool = False, legacy: bool = False, double: bool = False) -> bytes:
    """Return a .caffemodel; older: in the form of V1 layers, legacy: with four sizes in place of a shape."""
    net = pb.NetParameter()
    for name, arrays in blobs.items():
        made = net.layers.add(name=name) if older else net.layer.add(name=name)
        for array in arrays:
            proto = made.blobs.add()
            if legacy:
                sizes = (1,) * (4 - array.ndim) + array.shape
                proto.num, proto.channels, proto.height, proto.width = sizes
            else:
                proto.shape.dim.extend(array.shape)
            (proto.double_data if double else proto.data).extend(array.ravel().tolist())
    return net.SerializeToString()


def files(folder: Path, text: str | bytes, content: bytes, name: str = "net") -> Path:
    """Write NAME.prototxt and NAME.caffemodel; return the first."""
    path = folder / f"{name}.prototxt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.with_suffix(".caffemodel").write_bytes(content)
    return path


def image(text: str, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Return a batch for the network's input, values about 1 large."""
    net = text_format.Parse(text, pb.NetParameter())
    shape = net.layer[0].input_param.shape[0].dim[1:]
    return np.random.default_rng(seed).standard_normal((batch, *shape), np.float32)


def drawn_blobs(seed: int = 0) -> tuple[dict[str, list[np.ndarray]], Any]:
    """Return a dict of blobs, and the function for reference_caffe.evaluate that fills it with what is asked for."""
    blobs: dict[str, list[np.ndarray]] = {}
    rng = np.random.default_rng(seed)

    def blob(name: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
        drawn = blobs.setdefault(name, [])
        while len(drawn) <= index:
            drawn.append(np.empty(0, np.float32))
        if not drawn[index].size:
            # positive, as variances and scale factors have to be
            drawn[index] = rng.uniform(0.1, 1.0, shape).astype(np.float32)
            if len(shape) > 1:
                drawn[index] *= rng.choice([-1, 1], shape).astype(np.float32)
        assert drawn[index].shape == shape
        return drawn[index].astype(np.float64)

    return blobs, blob


def drawn_weights(text: str) -> bytes:
    """Return a .caffemodel with random weights for a network."""
    blobs, blob = drawn_blobs()
    evaluate(text_format.Parse(text, pb.NetParameter()), {"x": image(text)}, blob)
    return weights(blobs)


def agree(folder: Path, text: str, *, x: np.ndarray | None = None, tolerance: float = 2e-5, **form: bool) -> Model:
    """Load a network with drawn weights, compare all of its outputs with the formulas, and return the model."""
    x = image(text) if x is None else x
    blobs, blob = drawn_blobs()
    wanted = evaluate(text_format.Parse(text, pb.NetParameter()), {"x": x}, blob)
    content = weights(blobs or {"unused": [np.ones(1, np.float32)]}, **form)
    model = convserve.load(files(folder, text, content), cache=False, threads=1)
    found = model.run(x)
    shown = found if isinstance(found, dict) else {model.graph.outputs[0].name: found}
    for name, y in shown.items():
        assert y.shape == wanted[name].shape, name
        scale = max(1.0, float(np.abs(wanted[name]).max()))
        np.testing.assert_allclose(y / scale, wanted[name] / scale, rtol=0, atol=tolerance, err_msg=name)
    return model


TEXT = network(
    layer("Convolution", "x", "c", convolution="num_output: 4 kernel_size: 3"),
    layer("ReLU", "c", "c", "relu"),
    layer("InnerProduct", "c", "fc", inner_product="num_output: 5"),
)


def drawn(text: str = TEXT) -> tuple[dict[str, list[np.ndarray]], np.ndarray, np.ndarray]:
    """Return blobs for a network with the output "fc", an image, and what the network gives."""
    blobs, blob = drawn_blobs()
    x = image(text)
    return blobs, x, evaluate(text_format.Parse(text, pb.NetParameter()), {"x": x}, blob)["fc"]


def loaded(path: Path, **options: object) -> convserve.Model:
    return convserve.load(path, cache=False, threads=1, **options)  # type: ignore[arg-type]


def refused(path: Path, message: str, error: type[Exception] = ModelFormatError) -> None:
    with pytest.raises(error, match=message):
        loaded(path)
