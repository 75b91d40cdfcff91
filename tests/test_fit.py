"""Strides that do not fit: what each policy computes, what it says, and that score maps stay consistent."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from builder import Builder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_writer import to_onnx

import convserve
from convserve.cli import arguments
from convserve.cli.main import main
from convserve.errors import InputError, PatternError, ShapeError
from convserve.graph.fit import FITS, fit_graph, unfitted
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import infer_volumes
from convserve.graph.rewrites import rewrite

DIGITS = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


def windows_of(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Return what each whole window of (C, H, W) sees: (C, rows, cols, kernel, kernel)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    return view[:, ::stride, ::stride]


def single(op: str, size: tuple[int, int], kernel: int, stride: int, pad: int) -> Graph:
    build = Builder(Volume(2, *size))
    if op == "Conv":
        return build.graph(build.conv(build.input, 3, kernel, strides=stride, pads=pad))
    return build.graph(build.pool(op, build.input, kernel, strides=stride, pads=pad))


def expected(graph: Graph, x: np.ndarray, fit: str, stride: int, pad: int) -> np.ndarray:
    """Return the layer's answer in float64, from the definition: pixels cut off or added first, then its padding."""
    [node] = graph.nodes
    kernel = node.attrs["kernel_shape"][0]
    rest = [(size + 2 * pad - kernel) % stride for size in x.shape[2:]]
    rows, cols = rest if fit == "crop" else (0, 0)
    x = x[0, :, : x.shape[2] - rows, : x.shape[3] - cols].astype(np.float64)
    more = [stride - over if fit == "pad" and over else 0 for over in rest]
    if node.op != "Conv":
        more = [add if pad + add < kernel else 0 for add in more]
    sides = ((0, 0), (pad, pad + more[0]), (pad, pad + more[1]))
    seen = windows_of(np.pad(x, sides, constant_values=0 if node.op == "Conv" else np.nan), kernel, stride)
    if node.op == "Conv":
        weight, bias = node.params["weight"].astype(np.float64), node.params["bias"].astype(np.float64)
        return np.einsum("crsij,mcij->mrs", seen, weight)[None] + bias[:, None, None]
    return (np.nanmax if node.op == "MaxPool" else np.nanmean)(seen, axis=(3, 4))[None]


@settings(deadline=None, max_examples=60)
@given(
    op=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 5),
    pad=st.integers(0, 2),
    fit=st.sampled_from(["floor", "pad", "crop"]),
)
def test_each_policy_computes_what_it_says(
    op: str, size: tuple[int, int], kernel: int, stride: int, pad: int, fit: str
) -> None:
    rest = max((side + 2 * pad - kernel) % stride for side in size)
    assume(min(size) + 2 * pad >= kernel and min(size) > rest and (op == "Conv" or pad < kernel))
    # a cropped pooling may be left with windows that see no pixel, which no network has
    assume(op == "Conv" or fit != "crop" or min(size) - rest + pad >= kernel)
    graph = single(op, size, kernel, stride, pad)
    x = np.random.default_rng(0).standard_normal((1, 2, *size)).astype(np.float32)
    y = convserve.load(graph, fit=fit, threads=1, cache=False).run(x)
    np.testing.assert_allclose(y, expected(graph, x, fit, stride, pad), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(1, 300), kernel=st.integers(1, 12), stride=st.integers(1, 5), pad=st.integers(0, 5)
)
def test_an_error_names_the_nearest_sizes_and_they_fit(size: int, kernel: int, stride: int, pad: int) -> None:
    assume(size + 2 * pad >= kernel)
    graph = single("Conv", (size, size), kernel, stride, pad)
    over = (size - kernel + 2 * pad) % stride
    if not over:
        assert fit_graph(graph, "error", window=None).nodes == graph.nodes
        return
    with pytest.raises(ShapeError) as refused:
        fit_graph(graph, "error", window=None)
    said = str(refused.value)
    count = (size - kernel + 2 * pad) / stride + 1
    assert f"({size} - {kernel} + {2 * pad})/{stride} + 1 = {count:.6g} is not whole" in said
    below, above = size - over, size - over + stride
    assert f"the nearest that fit are {below} and {above}" in said
    for near in (below, above):
        assert unfitted(graph.nodes[0], Volume(2, near, near)) == (0, 0)
    # between the two lies nothing that fits
    assert not [near for near in range(below + 1, above) if unfitted(graph.nodes[0], Volume(2, near, near)) == (0, 0)]


def test_the_layer_and_images_in_which_every_layer_fits_are_named() -> None:
    build = Builder(Volume(3, 20, 20))
    x = build.conv(build.input, 4, 5, strides=3)
    graph = build.graph(build.pool("MaxPool", x, 2, strides=2))
    assert unfitted(graph.nodes[0], Volume(3, 20, 20)) == (0, 0)
    wide = build.volumes[build.input]
    assert wide == Volume(3, 20, 20)
    with pytest.raises(ShapeError, match=r"Conv 'conv0': the height .*; every layer fits in images of 20x20 and 26x26"):
        fit_graph(graph, "error", window=(22, 22))


def test_ceil_mode_and_automatic_padding_say_themselves_how_they_round() -> None:
    build = Builder(Volume(3, 20, 20))
    x = build.conv(build.input, 4, 3, strides=2, auto_pad="SAME_UPPER")
    graph = build.graph(build.pool("MaxPool", x, 3, strides=2, ceil_mode=True))
    for fit in FITS:
        assert fit_graph(graph, fit, window=None).nodes == graph.nodes


def test_a_residual_network_keeps_its_shortcuts_under_every_policy() -> None:
    build = Builder(Volume(3, 22, 22))
    x = build.conv(build.input, 4, 3, pads=1, activation="relu")
    left = build.conv(build.conv(x, 4, 3, strides=2, pads=1, activation="relu"), 4, 3, pads=1)
    x = build.join("Add", left, build.conv(x, 4, 1, strides=2), activation="relu")
    graph = build.graph(build.simple("GlobalAveragePool", x))
    x = np.random.default_rng(0).standard_normal((2, 3, 22, 22)).astype(np.float32)
    sides = {}
    for fit in ("floor", "pad", "crop"):
        fitted = fit_graph(graph, fit, window=None)
        sides[fit] = infer_volumes(fitted)[fitted.nodes[-2].output].height
        assert np.isfinite(convserve.load(graph, fit=fit, threads=1).run(x)).all()
    assert sides == {"floor": 11, "pad": 12, "crop": 11}


# ---- score maps


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("fit", ["floor", "pad", "crop"])
def test_score_maps_stay_consistent(fit: str, pad: int) -> None:
    text = f"INPUT[22x22x3] -> CONV3-8 S2 P{pad} -> RELU -> CONV3-8 S2 P{pad} -> RELU -> FC-5"
    model = convserve.build(text, fit=fit, algorithm="gemm", threads=1, cache=False)
    assert model.window == (22, 22)
    image = np.random.default_rng(0).standard_normal((1, 3, 90, 98)).astype(np.float32)
    found = model.score_map(image)
    assert found.scores.shape[:2] == ((90 - 22) // 4 + 1, (98 - 22) // 4 + 1)
    reads_padding = pad or fit == "pad"
    assert (found.exactness == "exact") == (not reads_padding)
    own = model.score_map(image[:, :, :22, :22]).scores
    np.testing.assert_array_equal(own[0, 0], model.run(image[:, :, :22, :22])[0])
    if not reads_padding:
        np.testing.assert_array_equal(found.scores, model.score_map(image, method="crops").scores)
        return
    part = model.score_map(image[:, :, :70, :78])
    top, left, bottom, right = part.ring
    inside = (slice(top, part.scores.shape[0] - bottom), slice(left, part.scores.shape[1] - right))
    np.testing.assert_array_equal(part.scores[inside], found.scores[inside])


def test_without_padding_to_crop_is_to_round_down() -> None:
    text = "INPUT[23x22x3] -> CONV3-8 S2 P0 -> RELU -> POOL3 S2 -> FC-5"
    floor, crop = (convserve.build(text, fit=fit, threads=1, cache=False) for fit in ("floor", "crop"))
    x = np.random.default_rng(0).standard_normal((1, 3, 23, 22)).astype(np.float32)
    np.testing.assert_array_equal(floor.run(x), crop.run(x))


# ---- load and build


def test_the_command_line_offers_every_policy() -> None:
    assert arguments.FITS == FITS


def test_a_cropped_network_travels_in_a_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = single("Conv", (10, 12), 3, 2, 1)
    file = tmp_path / "net.onnx"
    onnx.save_model(to_onnx(graph), str(file))
    x = np.random.default_rng(0).standard_normal((1, 2, 10, 12)).astype(np.float32)
    answers = []
    for fit in ("floor", "pad", "crop"):
        target = tmp_path / f"{fit}.convserve"
        assert main(["import", str(file), "-o", str(target), "--fit", fit]) == 0
        answers.append(convserve.load(target).run(x))
        # the cache keeps the networks of different policies apart
        np.testing.assert_array_equal(convserve.load(file, fit=fit).run(x), answers[-1])
    assert [y.shape[2:] for y in answers] == [(5, 6), (6, 7), (5, 6)]
    assert not np.array_equal(answers[0], answers[2])
    capsys.readouterr()
    assert main(["plan", str(file), "--fit", "error"]) == 1
    assert "(10 - 3 + 2)/2 + 1 = 5.5 is not whole" in capsys.readouterr().err


def test_what_fitting_cannot_do_is_refused() -> None:
    build = Builder(Volume(3, 10, 10))
    x = build.flatten(build.conv(build.input, 4, 3, strides=2))
    graph = build.graph(build.gemm(x, 7))
    graph.outputs = [type(graph.outputs[0])("y", graph.outputs[0].tensor, (7,))]
    with pytest.raises(ShapeError, match=r"fit=\"pad\" makes the output 'y' 2x2x7 instead of 1x1x7"):
        convserve.load(graph, fit="pad")
    open_graph = rewrite(single("Conv", (9, 9), 3, 1, 0), window=None)
    open_graph.input_volume = Volume(2, None, None)
    with pytest.raises(ShapeError, match='fit="error" needs the window'):
        convserve.load(open_graph, fit="error")
    with pytest.raises(InputError, match="fit is 'round'; allowed: floor, error, pad, crop"):
        convserve.load(graph, fit="round")
    with pytest.raises(InputError, match="a container's layers were fitted at import"):
        convserve.load(DIGITS, fit="pad")
    with pytest.raises(PatternError, match=r"= 4\.5 is not whole"):
        convserve.build("INPUT[10x10x3] -> CONV3-12 S2 -> FC-2", fit="error")
