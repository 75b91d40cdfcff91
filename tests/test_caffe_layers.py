"""Caffe's layers, each over random shapes and parameters, against its formula in float64."""

from pathlib import Path

import numpy as np
import pytest
from caffe_files import agree, every_layer, files, image, layer, network, weights
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import convserve
from convserve.errors import ModelFormatError, UnsupportedOpError

SHORT = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDE = st.integers(1, 4)


@st.composite
def shapes(draw: st.DrawFn, channels: int = 4) -> tuple[int, ...]:
    return (draw(st.integers(1, 3)), channels, draw(st.integers(4, 12)), draw(st.integers(4, 12)))


@st.composite
def windows(draw: st.DrawFn, *, dilated: bool = True) -> tuple[str, dict[str, tuple[int, int]]]:
    """The text of kernel, stride and pad in one of the ways that Caffe takes, and their values."""
    kernel, stride = (draw(SIDE), draw(SIDE)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    pad = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
    if draw(st.booleans()):
        kernel, stride, pad = (kernel[0],) * 2, (stride[0],) * 2, (pad[0],) * 2
        text = f"kernel_size: {kernel[0]} stride: {stride[0]} pad: {pad[0]}"
    else:
        text = " ".join(
            f"{name}_h: {pair[0]} {name}_w: {pair[1]}"
            for name, pair in (("kernel", kernel), ("stride", stride), ("pad", pad))
        )
    return text, {"kernel": kernel, "stride": stride, "pad": pad}


@SHORT
@given(data=st.data(), shape=shapes(), window=windows(), type=st.sampled_from(["Convolution", "Deconvolution"]))
def test_convolutions(tmp_path: Path, data: st.DataObject, shape, window, type) -> None:
    text, values = window
    dilation = data.draw(st.integers(1, 2))
    group, bias = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from(["true", "false"]))
    for size, kernel, pad in zip(shape[2:], values["kernel"], values["pad"], strict=True):
        extent = dilation * (kernel - 1) + 1
        assume(size + 2 * pad >= extent if type == "Convolution" else extent > 2 * pad)
    text += f" num_output: {4 * data.draw(st.integers(1, 2))} group: {group} bias_term: {bias} dilation: {dilation}"
    agree(tmp_path, network(layer(type, convolution=text), shape=shape))


@SHORT
@given(
    shape=shapes(),
    window=windows(),
    pool=st.sampled_from(["MAX", "AVE"]),
    rounding=st.sampled_from(["", "round_mode: CEIL", "round_mode: FLOOR"]),
)
def test_poolings(tmp_path: Path, shape, window, pool, rounding) -> None:
    text, values = window
    for size, kernel, stride in zip(shape[2:], values["kernel"], values["stride"], strict=True):
        assume(values["pad"] != (0, 0) or -(-(size - kernel) // stride) * stride < size)
    agree(tmp_path, network(layer("Pooling", pooling=f"pool: {pool} {text} {rounding}"), shape=shape))


def test_the_mean_divides_by_the_window_as_far_as_it_lies_in_image_and_padding(tmp_path: Path) -> None:
    text = network(layer("Pooling", pooling="pool: AVE kernel_size: 3 stride: 2 pad: 1"), shape=(1, 1, 4, 4))
    path = files(tmp_path, text, weights({"unused": [np.ones(1, np.float32)]}))
    y = convserve.load(path, cache=False).run(np.ones((1, 1, 4, 4), np.float32))
    # 4 of 9 places, 6 of 9, and behind the last row 2 of 6
    wanted = np.array([[4 / 9, 6 / 9, 2 / 6], [6 / 9, 1, 3 / 6], [2 / 6, 3 / 6, 1 / 4]])
    np.testing.assert_allclose(y[0, 0], wanted, rtol=1e-6)  # type: ignore[index, call-overload]


def test_poolings_that_leave_a_window_without_pixels_are_refused(tmp_path: Path) -> None:
    text = network(layer("Pooling", pooling="kernel_size: 1 stride: 4"), shape=(1, 1, 10, 10))
    path = files(tmp_path, text, weights({"unused": [np.ones(1, np.float32)]}))
    with pytest.raises(UnsupportedOpError, match=r"Pooling 'y'.*begins at 12, behind an input of 10"):
        convserve.load(path, cache=False)


@SHORT
@given(
    shape=shapes(channels=7),
    size=st.sampled_from([1, 3, 5]),
    region=st.sampled_from(["ACROSS_CHANNELS", "WITHIN_CHANNEL"]),
    alpha=st.floats(0, 4, width=32),
    beta=st.floats(0.25, 1.5, width=32),
)
def test_local_response_normalisation(tmp_path: Path, shape, size, region, alpha, beta) -> None:
    k = "k: 2" if region == "ACROSS_CHANNELS" else ""
    param = f"local_size: {size} norm_region: {region} alpha: {alpha} beta: {beta} {k}"
    agree(tmp_path, network(layer("LRN", lrn=param), shape=shape))


ELEMENTWISE = [
    ("AbsVal", {}),
    ("BNLL", {}),
    ("Dropout", {"dropout": "dropout_ratio: 0.7"}),
    ("ELU", {"elu": "alpha: 0.7"}),
    ("Exp", {}),
    ("Exp", {"exp": "base: 2 scale: 0.5 shift: 1"}),
    ("Log", {"log": "base: 10 scale: 0.1 shift: 2"}),
    ("Log", {"log": "scale: -0.1 shift: 2"}),
    ("Power", {}),
    ("Power", {"power": "power: 2 scale: 3 shift: -1"}),
    ("Power", {"power": "power: -0.5 scale: 0.1 shift: 2"}),
    ("Power", {"power": "scale: 3"}),
    ("ReLU", {}),
    ("ReLU", {"relu": "negative_slope: 0.1 engine: CAFFE"}),
    ("PReLU", {}),
    ("PReLU", {"prelu": "channel_shared: true"}),
    ("Sigmoid", {}),
    ("TanH", {}),
    ("Swish", {"swish": "beta: 0.5"}),
    ("Clip", {"clip": "min: -0.5 max: 0.25"}),
    ("BatchNorm", {"batch_norm": "use_global_stats: true eps: 0.01"}),
    ("BatchNorm", {}),
    ("Scale", {"scale": "bias_term: true"}),
    ("Scale", {}),
    ("Bias", {}),
    ("Softmax", {}),
    ("Flatten", {}),
]


@pytest.mark.parametrize(("type", "params"), ELEMENTWISE, ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 4, 6), (10, 8, 1, 1)])
def test_layers_of_single_values(tmp_path: Path, type, params, shape) -> None:
    agree(tmp_path, network(layer("Power", "x", "a", power="scale: -1.5"), layer(type, "a", **params), shape=shape))
    # behind a fully-connected layer, and in place
    before = layer("InnerProduct", "x", "y", "fc", inner_product="num_output: 6 bias_term: false")
    if type != "Log":
        agree(tmp_path, network(before, layer(type, "y", "y", "it", **params), shape=shape))


def test_a_batch_norm_without_batches_is_zero_over_epsilon(tmp_path: Path) -> None:
    blobs = {"y": [np.full(3, 5, np.float32), np.full(3, 7, np.float32), np.zeros(1, np.float32)]}
    path = files(tmp_path, network(layer("BatchNorm", batch_norm="eps: 0.25")), weights(blobs))
    x = np.ones((1, 3, 9, 10), np.float32)
    np.testing.assert_allclose(convserve.load(path, cache=False).run(x), 2 * x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params", ["num_output: 7", "num_output: 7 bias_term: false", "num_output: 7 transpose: true", "num_output: 1"]
)
def test_fully_connected_layers(tmp_path: Path, params: str) -> None:
    agree(tmp_path, network(layer("InnerProduct", inner_product=params)))
    agree(tmp_path, network(layer("Flatten", "x", "f"), layer("InnerProduct", "f", "y", inner_product=params)))


COMBINED = [
    layer("Eltwise", "x a"),
    layer("Eltwise", "x a b", eltwise="operation: PROD"),
    layer("Eltwise", "x a b", eltwise="operation: MAX"),
    layer("Eltwise", "x a b", eltwise="operation: SUM coeff: 1 coeff: -1 coeff: 0.5"),
    layer("Concat", "a x b"),
    layer("Concat", "a x", concat="axis: -3"),
    layer("Concat", "a x", concat="concat_dim: 1"),
    layer("Concat", "a"),
]


@pytest.mark.parametrize("text", COMBINED)
def test_layers_that_combine_blobs(tmp_path: Path, text: str) -> None:
    before = [layer("Power", "x", "a", power="scale: 2"), layer("AbsVal", "x", "b"), layer("Silence", "a b", "")]
    model = agree(tmp_path, network(*before, text, shape=(1, 4, 5, 6)))
    assert [output.name for output in model.graph.outputs] == ["y"]


def test_a_blob_scales_the_channels_of_another(tmp_path: Path) -> None:
    x = image(network())
    gate = layer("Pooling", "x", "g", pooling="pool: AVE global_pooling: true") + layer("Flatten", "g", "gf")
    path = files(tmp_path, network(gate, layer("Scale", "x gf", "y", scale="axis: 0")), b"")
    path.with_suffix(".caffemodel").write_bytes(weights({"unused": [np.ones(1, np.float32)]}))
    y = convserve.load(path, cache=False).run(x)
    np.testing.assert_allclose(y, x * x.mean(axis=(2, 3), keepdims=True), atol=1e-6)  # type: ignore[arg-type]
    gate = layer("Pooling", "x", "g", pooling="pool: MAX global_pooling: true")
    path.write_text(network(gate, layer("Axpy", "g x x")))
    y = convserve.load(path, cache=False).run(x)
    np.testing.assert_allclose(y, x * x.max(axis=(2, 3), keepdims=True) + x, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tops", "params"),
    [
        ("a b", "slice_point: 1"),
        ("a b", "axis: 1"),
        ("a b c", "slice_point: 1 slice_point: 3"),
        ("a b", "axis: 2 slice_point: 4"),
        ("a b c", "axis: 3 slice_point: 4 slice_point: 5"),
    ],
)
def test_slices(tmp_path: Path, tops: str, params: str) -> None:
    model = agree(tmp_path, network(layer("Slice", "x", tops, slice=params), shape=(1, 4, 8, 7)))
    assert [output.name for output in model.graph.outputs] == tops.split()


@pytest.mark.parametrize("params", ["", "offset: 2", "offset: 2 offset: 1", "axis: 1", "axis: 3 offset: 1"])
def test_crops(tmp_path: Path, params: str) -> None:
    smaller = layer("Pooling", "x", "s", pooling="kernel_h: 3 kernel_w: 4")
    if "axis: 3" in params:
        smaller = layer("Pooling", "x", "s", pooling="kernel_h: 1 kernel_w: 4")
    agree(tmp_path, network(smaller, layer("Crop", "x s", "y", crop=params)))


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("dim: 0 dim: -1", (270,)),
        ("dim: -1 dim: 270", (270,)),
        ("dim: 10 dim: 270", (270,)),
        ("dim: 0 dim: 0 dim: -1", (3, 90)),
        ("dim: 0 dim: 270 dim: 1 dim: 1", (270, 1, 1)),
        ("dim: 0 dim: 0 dim: 0 dim: 0", (3, 9, 10)),
    ],
)
def test_reshapes(tmp_path: Path, dims: str, shape: tuple[int, ...]) -> None:
    reshape = layer("Reshape", "a", reshape=f"shape {{ {dims} }}")
    text = network(layer("AbsVal", "x", "a"), reshape, shape=(10, 3, 9, 10))
    path = files(tmp_path, text, weights({"unused": [np.ones(1, np.float32)]}))
    x = image(text)
    np.testing.assert_array_equal(convserve.load(path, cache=False).run(x), np.abs(x).reshape(2, *shape))  # type: ignore[arg-type]


def test_layers_in_place_and_split_blobs_keep_what_others_read(tmp_path: Path) -> None:
    text = network(
        layer("Convolution", "x", "c", convolution="num_output: 4 kernel_size: 3"),
        layer("Split", "c", "c1 c2", "split"),
        layer("ReLU", "c1", "c1", "relu"),
        layer("TanH", "c2", "c2", "tanh"),
        layer("BatchNorm", "c1", "c1", "norm"),
        layer("Scale", "c1", "c1", "scale", scale="bias_term: true"),
        layer("Eltwise", "c1 c2", "sum"),
    )
    model = agree(tmp_path, text)
    assert [output.name for output in model.graph.outputs] == ["sum"]


def test_all_of_them_in_one_network(tmp_path: Path) -> None:
    agree(tmp_path, every_layer())


REFUSED = [
    (layer("Permute"), "Permute 'y' is not supported; supported are: AbsVal, "),
    (layer("Pooling", pooling="pool: STOCHASTIC kernel_size: 2"), "pools by STOCHASTIC"),
    (layer("Pooling", pooling="pool: MAX"), "kernel_size is missing"),
    (layer("Pooling", pooling="kernel_size: 2 pad: 2"), r"pad \(2, 2\) must be less than the window \(2, 2\)"),
    (layer("Pooling", pooling="kernel_size: 2 kernel_h: 2"), "gives both kernel_size and kernel_h"),
    (layer("Pooling", pooling="global_pooling: true pad: 1"), "pools globally with pad"),
    (layer("Convolution", convolution="kernel_size: 3"), "num_output is missing"),
    (layer("Convolution", convolution="num_output: 1000000000 kernel_size: 1"), "num_output is 1000000000; it must"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 3 axis: 2"), "has axis 2; supported is 1"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 3 axis: 7"), r"axis is 7, but it reads \(batch, 3"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3"), "two dimensions"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 3 stride_h: 0"), "stride is 0x1"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 3 dilation: 0"), r"dilation is \[0\]"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 30"), "covers 30 positions, but its input has 9"),
    (layer("Convolution", convolution="num_output: 4 kernel_size: 3 group: 2"), "2 groups divide 3 channels"),
    (layer("LRN", lrn="local_size: 4"), "local_size is 4; it must be odd"),
    (layer("LRN", lrn="alpha: inf"), r"lrn_param\.alpha is inf"),
    (layer("Exp", exp="base: -2"), "base is -2"),
    (layer("Log", log="base: 1"), "base is 1"),
    (layer("Clip", clip="min: 0"), "must give min and max"),
    (layer("BatchNorm", batch_norm="use_global_stats: false"), "normalizes by the batch"),
    (layer("BatchNorm", batch_norm="eps: -1"), "eps is -1"),
    (layer("Scale", scale="axis: 2"), "has axis 2 and num_axes 1"),
    (layer("Scale", scale="num_axes: -1"), "has axis 1 and num_axes -1"),
    (layer("Eltwise"), "reads 1 blob"),
    (layer("Eltwise", "x x", eltwise="coeff: 1"), "has 1 coefficients for 2 blobs"),
    (layer("Eltwise", "x x", eltwise="operation: MAX coeff: 1 coeff: 1"), "has coefficients for MAX"),
    (layer("Concat", "x x", concat="axis: 2"), "joins along axis 2"),
    (layer("Slice", "x", "a b"), "cuts 3 positions into 2 equal parts"),
    (layer("Slice", "x", "a b", slice="slice_point: 3"), r"cuts 3 positions at \[3\]"),
    (layer("Slice", "x", "a b", slice="axis: 0"), "cuts the batch"),
    (layer("Crop", "x x", crop="offset: 1"), "which is too small"),
    (layer("Crop", "x x", crop="offset: 1 offset: 1 offset: 1"), "has 3 offsets for 2 axes"),
    (layer("Flatten", flatten="axis: 0"), "flattens the axes 0 to 3"),
    (layer("Reshape", reshape="shape { dim: 0 dim: 7 }"), "Reshape 'y'"),
    (layer("Reshape", reshape="shape { dim: 0 dim: -1 } num_axes: 1"), "num_axes 1"),
    (layer("Softmax", softmax="axis: 2"), "has axis 2"),
    (layer("ReLU", "x x"), "reads 2 blob"),
    (layer("ReLU", "x", "a b"), "must write 1 blob"),
    (layer("Reshape", "x", "r", reshape="shape { dim: 0 dim: 9 dim: 30 }") + layer("Softmax", "r"), "was reshaped"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_does_not_run_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(network(text))
    with pytest.raises((ModelFormatError, UnsupportedOpError), match=message):
        convserve.build(str(path), cache=False)
