"""Every operation on every instruction set against the float64 oracle, within a bound that grows with k."""

from collections.abc import Callable

import numpy as np
import pytest
from builder import Builder
from error_bounds import assert_within
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from runs import ISAS, run, settings
from strategies import image, op_graphs, seeds

from convserve.errors import SettingError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import OPS
from convserve.kernels import dispatch

FEW = hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
FEWER = hypothesis_settings(FEW, max_examples=8)


def check_op(op: str, isa: str, data: st.DataObject) -> None:
    graph = data.draw(op_graphs(op))
    x = image(graph, batch=data.draw(st.integers(1, 3)), seed=data.draw(seeds))
    with settings(ISA=isa, POISON=1):
        assert_within(graph, x, run(graph, x, threads=data.draw(st.integers(1, 2))))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(OPS.keys() - ACTIVATIONS))
@FEW
@given(data=st.data())
def test_op_is_within_its_bound(op, isa, data):
    check_op(op, isa, data)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(ACTIVATIONS))
@FEWER
@given(data=st.data())
def test_activation_is_within_its_bound(op, isa, data):
    check_op(op, isa, data)


def drawn_parameters(op: str) -> dict[str, float]:
    usual = {"alpha": 0.3, "beta": 0.45, "gamma": 1.05, "min": -0.3, "max": 6.0, "exponent": 1.7}
    return {name: usual[name] for name in ACTIVATIONS[op].parameters}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(ACTIVATIONS))
def test_activation_over_the_range_of_its_argument(op, isa):
    small = 2.0 ** np.arange(-100, 4, 0.37)
    far = np.array([1e4, 1e10, 3e18])
    values = np.concatenate([np.linspace(-110, 110, 1801), small, -small, [0.0], far, -far])
    build = Builder(Volume(33, 1, len(values) // 33 + 1))
    x = np.resize(values, (1, 33, 1, len(values) // 33 + 1)).astype(np.float32)
    graph = build.graph(build.activation(op, build.input, **drawn_parameters(op)))
    with settings(ISA=isa):
        assert_within(graph, x, run(graph, x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("op", "values", "expected"),
    [
        ("Sigmoid", [-np.inf, np.inf, 0.0], [0, 1, 0.5]),
        ("Tanh", [-np.inf, np.inf, 0.0], [-1, 1, 0]),
        ("Erf", [-np.inf, np.inf, 0.0], [-1, 1, 0]),
        ("Softplus", [-np.inf, np.inf], [0, np.inf]),
        ("Exp", [-np.inf, np.inf, 0.0, 89.0], [0, np.inf, 1, np.inf]),
        ("Log", [0.0, np.inf, 1.0], [-np.inf, np.inf, 0]),
        ("Clip", [-np.inf, np.inf], [-0.3, 6]),
        ("Sign", [-np.inf, np.inf, 0.0], [-1, 1, 0]),
        ("Mish", [np.inf, 1e30], [np.inf, 1e30]),
        ("Swish", [np.inf, -1e30], [np.inf, 0]),
    ],
)
def test_activation_of_extreme_values(op, values, expected, isa):
    build = Builder(Volume(len(values), 1, 1))
    graph = build.graph(build.activation(op, build.input, **drawn_parameters(op)))
    with settings(ISA=isa):
        (got,) = run(graph, np.array(values, np.float32)[None, :, None, None])
    assert np.array_equal(got.reshape(-1), np.array(expected, np.float32))


def large_graphs() -> dict[str, Graph]:
    """Sizes of real layers: long sums, many panels, more taps than one call of a kernel takes."""
    made = {}

    def layer(name: str, volume: Volume, add: Callable[[Builder], str]) -> None:
        build = Builder(volume, seed=len(made), name=name)
        made[name] = build.graph(add(build))

    layer("3x3x512", Volume(512, 7, 7), lambda b: b.conv(b.input, 40, 3, pads=1, activation="relu"))
    layer("3x3x64", Volume(64, 9, 40), lambda b: b.conv(b.input, 130, 3, pads=1))
    layer("1x1x1024", Volume(1024, 5, 5), lambda b: b.conv(b.input, 33, 1))
    layer("1x1 stride 2", Volume(96, 14, 14), lambda b: b.conv(b.input, 64, 1, strides=2))
    layer("11x11 stride 4", Volume(3, 43, 43), lambda b: b.conv(b.input, 48, 11, strides=4))
    layer("7x7 stride 2", Volume(3, 30, 30), lambda b: b.conv(b.input, 64, 7, strides=2, pads=3))
    layer("groups", Volume(48, 13, 13), lambda b: b.conv(b.input, 72, 5, pads=2, group=3))
    layer("fully connected", Volume(64, 7, 7), lambda b: b.gemm(b.flatten(b.input), 333))
    layer("depthwise 9x9", Volume(37, 16, 16), lambda b: b.conv(b.input, 37, 9, pads=4, group=37))
    layer("depthwise residual", Volume(20, 9, 9), depthwise_residual)
    layer("two filters a channel", Volume(20, 9, 9), lambda b: b.conv(b.input, 40, 3, pads=1, group=20))
    layer("max 9x9", Volume(21, 20, 20), lambda b: b.pool("MaxPool", b.input, 9, strides=2, pads=4, ceil_mode=True))
    layer("average 9x9", Volume(21, 20, 20), lambda b: b.pool("AveragePool", b.input, 9, strides=2, pads=4))
    layer("LRN over all", Volume(7, 4, 4), lambda b: b.lrn(b.input, 20, alpha=1.0))
    layer("softmax 1000", Volume(1000, 1, 1), lambda b: b.simple("Softmax", b.input))
    layer("wide row", Volume(2, 3, 700), lambda b: b.conv(b.input, 3, 3, dilations=(1, 5), pads=(1, 9, 1, 0)))
    return made


def depthwise_residual(build: Builder) -> str:
    inner = build.conv(build.input, 20, 3, pads=1, group=20, activation="relu")
    return build.conv(inner, 20, (9, 8), pads=(4, 4, 4, 3), group=20, residual=build.input, activation="relu")


LARGE = large_graphs()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LARGE)
def test_real_layer_is_within_its_bound(name, isa):
    graph = LARGE[name]
    x = image(graph, batch=2, seed=7)
    with settings(ISA=isa):
        assert_within(graph, x, run(graph, x, threads=2))


def one_row(op: str, values: list[float], **attrs: float) -> np.ndarray:
    """Run an operation of one pixel whose channels are the values."""
    build = Builder(Volume(len(values), 1, 1))
    y = build.lrn(build.input, **attrs) if op == "LRN" else build.simple(op, build.input)
    return run(build.graph(y), np.array(values, np.float32)[None, :, None, None])[0][0, :, 0, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_of_extreme_values(isa):
    with settings(ISA=isa):
        assert one_row("Softmax", [1e30, 0, -1e30]).tolist() == [1, 0, 0]
        assert one_row("Softmax", [3e38, 3e38]).tolist() == [0.5, 0.5]
        assert one_row("Softmax", [-1e-40, 1e-40]).tolist() == [0.5, 0.5]
        assert one_row("Softmax", [0.0, -np.inf]).tolist() == [1, 0]
        small = one_row("Softmax", [0.0, -80.0, -87.0, -95.0, -103.0])
        oracle = np.exp([0.0, -80.0, -87.0, -95.0, -103.0])
        np.testing.assert_allclose(small, oracle, rtol=1e-5, atol=1.2e-38)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.75, 1.0, 2.5])
def test_lrn_over_the_range_of_squares(isa, beta):
    values = [1e-20, 1e-3, 1.0, 37.0, 1e5, 1e12]
    oracle = [x / (2.0 + 0.5 * x * x) ** beta for x in values]
    with settings(ISA=isa):
        got = one_row("LRN", values, size=1, alpha=0.5, beta=beta, bias=2.0)
    np.testing.assert_allclose(got, oracle, rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("isa", ISAS)
def test_relu_keeps_nan_and_infinity(isa):
    with settings(ISA=isa):
        got = one_row("Relu", [-1.0, -np.inf, np.inf, np.nan, 0.0, 1e-40] + [-2.0] * 20)
    assert np.isnan(got[3])
    assert got[[0, 1, 2, 4]].tolist() == [0, 0, np.inf, 0]
    assert (got[6:] == 0).all()


def test_instruction_set_that_is_not_there():
    with settings(ISA="sse9"), pytest.raises(SettingError, match=r"sse9.*portable"):
        dispatch.active()
    assert dispatch.active() == ISAS[-1]
    assert set(ISAS) <= set(dispatch.INSTRUCTION_SETS)
    assert "portable" in ISAS
