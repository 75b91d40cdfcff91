"""Instruction sets: each sums as one chain over k, those with FMA agree in every bit, and the environment chooses."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builder import Builder
from reference import taps
from runs import ISAS, engine_of, run, run_engine, same_bits, settings
from strategies import image

import convserve
from convserve.errors import SettingError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import COMBINATIONS
from convserve.kernels import dispatch

FMA_ISAS = [isa for isa in ISAS if isa != "portable"]
two_with_fma = pytest.mark.skipif(len(FMA_ISAS) < 2, reason=f"this machine has only {', '.join(ISAS)}")


def chain(node: Node, x: np.ndarray, isa: str) -> np.ndarray:
    """Return a convolution of one group as a chain bias, + x*w over (filter row, filter column, channel), in float32.

    With FMA a product enters unrounded: the product of two float32 is exact in float64. Rounding twice, to
    float64 and then to float32, gives another value than once only about once in 2^29.
    """
    seen = taps(node, x.astype(np.float64), 0.0, 0.0)
    weight, bias = node.params["weight"], node.params["bias"]
    y = np.broadcast_to(bias[:, None, None], (len(x), len(bias), *seen.shape[2:4])).astype(np.float32)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            for c in range(weight.shape[1]):
                product = seen[:, c : c + 1, :, :, i, j] * weight[:, c, i, j].astype(np.float64)[None, :, None, None]
                if isa == "portable":
                    y = product.astype(np.float32) + y
                else:
                    y = (product + y.astype(np.float64)).astype(np.float32)
    return np.where(y < 0, np.float32(0), y) if node.attrs["activation"] else y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("volume", "filters", "options"),
    [
        (Volume(3, 9, 9), 17, {"kernel": 3, "pads": 1}),
        (Volume(33, 5, 7), 40, {"kernel": 3, "pads": 1, "activation": "relu"}),
        (Volume(5, 11, 8), 20, {"kernel": (2, 3), "strides": (2, 1), "dilations": (1, 2)}),
        (Volume(150, 4, 4), 65, {"kernel": 1}),
        (Volume(16, 4, 4), 33, {"kernel": 4}),
    ],
)
def test_convolution_is_one_chain_over_k(isa, volume, filters, options):
    build = Builder(volume, seed=filters)
    graph = build.graph(build.conv(build.input, filters, **options))
    x = image(graph, batch=2, seed=1)
    with settings(ISA=isa):
        assert np.array_equal(run(graph, x, threads=2)[0], chain(graph.nodes[0], x, isa))


@pytest.mark.parametrize("isa", ISAS)
def test_depthwise_convolution_is_one_chain_over_its_taps(isa):
    build = Builder(Volume(19, 12, 12), seed=4)
    graph = build.graph(build.conv(build.input, 19, 9, pads=4, group=19, activation="relu"))
    x = image(graph, seed=2)
    node = graph.nodes[0]
    with settings(ISA=isa):
        (got,) = run(graph, x)
    for channel in range(19):
        params = {"weight": node.params["weight"][channel : channel + 1], "bias": node.params["bias"][[channel]]}
        alone = node.changed(attrs=node.attrs | {"group": 1}, params=params)
        assert np.array_equal(got[:, [channel]], chain(alone, x[:, [channel]], isa))


def parameters_of(op: str) -> dict[str, float]:
    return dict.fromkeys(ACTIVATIONS[op].parameters, 0.3)


def everything(channels: int, width: int) -> Graph:
    """Every kind of kernel over some number of channels and pixels."""
    build = Builder(Volume(channels, 5, width), seed=channels * 100 + width)
    x = build.input
    pooled = build.simple("GlobalAveragePool", x)
    shown = [
        build.conv(x, channels + 3, 3, pads=1, activation="relu"),
        build.conv(x, channels, 3, pads=1, group=channels),
        build.pool("MaxPool", x, 3, pads=1),
        build.pool("AveragePool", x, (5, min(width, 13)), pads=(2, 0, 2, 0)),
        build.affine(x, activation="relu"),
        build.lrn(x, 5, alpha=0.3),
        build.lrn(x, 4, alpha=0.3, beta=0.6),
        build.simple("Softmax", x),
        build.locally_connected(x, channels, (3, 1), pads=(1, 0, 1, 0), activation="relu"),
        build.simple("LogSoftmax", x),
        build.normalization("LayerNormalization", x),
        build.normalization("GroupNormalization", x, group=1),
        build.normalization("GroupNormalization", x, group=channels),
        build.simple("LpNormalization", x, p=2, epsilon=1e-12),
        build.pool("LpPool", x, 3, pads=1, p=2),
        build.pool("LpPool", x, (2, min(width, 2)), p=3),
        build.activation("PRelu", x),
        *(build.activation(op, x, **parameters_of(op)) for op in ACTIVATIONS),
        *(build.join(op, x, x, activation="relu") for op in COMBINATIONS),
        pooled,
    ]
    shown.append(build.join("Concat", build.join("Add", x, shown[1]), build.join("Mul", x, pooled), shown[0]))
    return build.graph(*shown)


@two_with_fma
@pytest.mark.parametrize("channels", [1, 2, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 64, 65])
def test_same_bits_for_every_number_of_channels(channels):
    graph = everything(channels, 6)
    x = image(graph, batch=2, seed=channels)
    engine = engine_of(graph)
    results = {}
    for isa in FMA_ISAS:
        with settings(ISA=isa):
            results[isa] = run_engine(engine, x)
    for node, *outputs in zip(graph.outputs, *results.values(), strict=True):
        assert same_bits([outputs[0]] * (len(outputs) - 1), outputs[1:]), node.name


@two_with_fma
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 7, 11, 12, 13, 14, 15, 16, 27, 28, 29])
def test_same_bits_for_every_number_of_pixels(width):
    graph = everything(6, width)
    x = image(graph, seed=width)
    engine = engine_of(graph)
    results = []
    for isa in FMA_ISAS:
        with settings(ISA=isa):
            results.append(run_engine(engine, x, threads=2))
    assert all(same_bits(result, results[0]) for result in results[1:])


def test_one_engine_changes_sets_between_runs():
    graph = everything(9, 6)
    x = image(graph, seed=3)
    fresh = {}
    for isa in ISAS:
        with settings(ISA=isa):
            fresh[isa] = run(graph, x)
    engine = engine_of(graph)
    for isa in (*ISAS, *reversed(ISAS)):
        with settings(ISA=isa):
            assert same_bits(run_engine(engine, x), fresh[isa])


SCRIPT = """
import hashlib, sys
import numpy as np
import convserve
from convserve.kernels import dispatch
model = convserve.load(sys.argv[1])
y = model.run(np.load(sys.argv[2]))
print(dispatch.active(), hashlib.sha256(y.tobytes()).hexdigest())
"""


def in_a_process(isa: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CONVSERVE_ISA": isa}
    root = Path(convserve.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def bundled(tmp_path) -> tuple[str, str, np.ndarray]:
    """The bundled network, a file with three inputs for it, and the inputs."""
    path = Path(convserve.__file__).parent / "bundled/digits.convserve"
    x = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    np.save(tmp_path / "x.npy", x)
    return str(path), str(tmp_path / "x.npy"), x


def test_environment_forces_the_set_of_a_process(bundled):
    path, x_path, x = bundled
    digests = {}
    for isa in ("", *ISAS):
        answer = in_a_process(isa, path, x_path)
        assert answer.returncode == 0, answer.stderr
        used, digests[isa] = answer.stdout.split()
        assert used == (isa or ISAS[-1])
    assert digests[""] == digests[ISAS[-1]]
    assert len({digests[isa] for isa in FMA_ISAS}) <= 1
    with settings(ISA=ISAS[0]):
        assert hashlib.sha256(convserve.load(path).run(x).tobytes()).hexdigest() == digests[ISAS[0]]


def test_impossible_set_is_refused_with_a_list(bundled):
    path, x_path, _ = bundled
    answer = in_a_process("neon", path, x_path)
    assert answer.returncode != 0
    assert f"CONVSERVE_ISA is 'neon'; this machine has {', '.join(ISAS)}" in answer.stderr
    with settings(ISA="neon"), pytest.raises(SettingError, match="neon"):
        dispatch.active()
