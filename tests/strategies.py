"""Hypothesis strategies: volumes, attributes and single operations, and whole random networks that are always valid."""

import numpy as np
from builder import Builder
from hypothesis import strategies as st
from strategies_moves import MOVES, draw_move

from convserve.errors import ShapeError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import COMBINATIONS, Window, positions

__all__ = ["draw_window", "graphs", "image", "op_graphs", "seeds", "volumes"]

seeds = st.integers(0, 2**32 - 1)


def image(graph: Graph, *, batch: int = 1, seed: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a normal float32 (batch, C, H, W) input, of the graph's own size unless another is given."""
    volume = graph.input_volume
    height, width = size or (volume.height, volume.width)
    shape = (batch, volume.channels, height, width)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def volumes(draw, *, max_channels: int = 40, max_size: int = 18, min_size: int = 1) -> Volume:
    """Sizes around the kernels' own (4, 8, 16, 32 lanes and their neighbours) as well as any others."""
    around_lanes = [c for c in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33) if c <= max_channels]
    channels = draw(st.one_of(st.sampled_from(around_lanes), st.integers(1, max_channels)))
    size = st.integers(min_size, max_size)
    return Volume(channels, draw(size), draw(size))


def every_window_sees(size: int, window: Window, count: int) -> bool:
    """Whether each of count windows has a tap inside the input."""
    return all(
        any(0 <= o * window.stride - window.pad_begin + i * window.dilation < size for i in range(window.kernel))
        for o in range(count)
    )


def draw_window(draw, volume: Volume, *, pooling: bool, padded: bool) -> dict:
    """Return kernel, strides, pads, dilations and auto_pad of which at least one position fits the volume."""
    auto_pad = draw(st.sampled_from(("NOTSET",) * 4 + ("SAME_UPPER", "SAME_LOWER"))) if padded else "NOTSET"
    kernel, strides, dilations, begins, ends = [], [], [], [], []
    for size in (volume.height, volume.width):
        taps = draw(st.integers(1, 5))
        most = taps - 1 if pooling else 4
        begin, end = (draw(st.integers(0, most)), draw(st.integers(0, most))) if padded else (0, 0)
        room = size if auto_pad != "NOTSET" else size + begin + end
        taps = min(taps, room)
        if pooling:
            begin, end = min(begin, taps - 1), min(end, taps - 1)
            room = size + begin + end
        largest = max((room - 1) // (taps - 1), 1) if taps > 1 else 3
        dilation = draw(st.integers(1, min(largest, 3)))
        stride = draw(st.integers(1, 3))
        window = Window(taps, stride, begin, end, dilation)
        try:
            count = positions(size, window, ceil_mode=True)
        except ShapeError:
            count = 0
        if not count or (pooling and not every_window_sees(size, window, count)):
            taps, dilation, begin, end = 1, 1, 0, 0
        kernel.append(taps)
        # SAME with gaps between the windows would pad by less than nothing, where ONNX Runtime has no answer
        strides.append(stride if auto_pad == "NOTSET" else min(stride, taps))
        dilations.append(1 if auto_pad != "NOTSET" else dilation)
        begins.append(begin)
        ends.append(end)
    return {
        "kernel": tuple(kernel),
        "strides": tuple(strides),
        "dilations": tuple(dilations),
        "pads": (0, 0, 0, 0) if auto_pad != "NOTSET" else (*begins, *ends),
        "auto_pad": auto_pad,
    }


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def draw_conv(draw, build: Builder, x: str, *, padded: bool = True, max_filters: int = 40) -> str:
    """Add a convolution: plain, in groups or depthwise, with or without ReLU."""
    volume = build.volumes[x]
    group = draw(st.sampled_from(divisors(volume.channels)))
    per_group = draw(st.integers(1, max(max_filters // group, 1)))
    window = draw_window(draw, volume, pooling=False, padded=padded)
    return build.conv(x, group * per_group, group=group, activation=draw(st.sampled_from(("", "relu"))), **window)


def draw_locally_connected(draw, build: Builder, x: str) -> str:
    volume = build.volumes[x]
    group = draw(st.sampled_from(divisors(volume.channels)))
    window = draw_window(draw, volume, pooling=False, padded=True)
    activation = draw(st.sampled_from(("", "relu")))
    return build.locally_connected(x, group * draw(st.integers(1, 5)), group=group, activation=activation, **window)


def draw_pool(draw, build: Builder, x: str, op: str, *, padded: bool = True) -> str:
    """Add a pooling; without padding it is not clipped at the end either, so that windows stay whole."""
    window = draw_window(draw, build.volumes[x], pooling=True, padded=padded)
    ceil_mode = padded and draw(st.booleans())
    include = op == "AveragePool" and draw(st.booleans())
    more = {"p": draw(st.integers(1, 4))} if op == "LpPool" else {}
    return build.pool(op, x, **window, ceil_mode=ceil_mode, count_include_pad=include, **more)


def draw_lrn(draw, build: Builder, x: str) -> str:
    return build.lrn(
        x,
        draw(st.integers(1, 6)),
        alpha=draw(st.sampled_from((1e-4, 0.1, 1.0))),
        beta=draw(st.sampled_from((0.75, 0.5, 1.0, 0.6))),
        bias=draw(st.sampled_from((1.0, 2.0))),
    )


def draw_gate(draw, build: Builder, x: str) -> str:
    """Add a squeeze-and-excite branch, whose 1x1 volume is multiplied over x."""
    squeezed = build.simple(draw(st.sampled_from(("GlobalAveragePool", "GlobalMaxPool"))), x)
    return build.join("Mul", x, build.conv(squeezed, build.volumes[x].channels, 1))


def draw_same_size_conv(draw, build: Builder, x: str, filters: int, **options) -> str:
    """Add an odd convolution with the padding that keeps height and width."""
    half = [draw(st.integers(0, 2)) for _ in range(2)]
    return build.conv(x, filters, (2 * half[0] + 1, 2 * half[1] + 1), pads=(*half, *half), **options)


def draw_residual(draw, build: Builder, x: str, *, padded: bool = True) -> str:
    """Add x and a branch from x, as an Add of two or three or as a convolution with a second input."""
    channels = build.volumes[x].channels
    activation = draw(st.sampled_from(("", "relu")))
    form = draw(st.sampled_from(("add", "add3", "conv")))
    if padded:
        branch = draw_same_size_conv(draw, build, x, draw(st.integers(1, 20)), activation="relu")
    else:
        branch = build.conv(x, draw(st.integers(1, 20)), 1, activation="relu")
    if form == "conv":
        return build.conv(branch, channels, 1, residual=x, activation=activation)
    branch = build.conv(branch, channels, 1)
    others = (build.affine(x),) if form == "add3" else ()
    return build.join("Add", x, branch, *others, activation=activation)


PARAMETERS = {
    "alpha": st.sampled_from((0.01, 0.2, 1.0, 1.702)),
    "beta": st.sampled_from((0.5, 0.4)),
    "gamma": st.sampled_from((1.0, 1.0507)),
    "min": st.sampled_from((0.0, -1.0, -0.25)),
    "max": st.sampled_from((6.0, 0.5, 1.0)),
    "exponent": st.sampled_from((2.0, 0.5, -1.0, 0.75, 3.0, 1.7, 0.0, -0.3, 10.0)),
}


def draw_activation(draw, build: Builder, x: str, op: str) -> str:
    """Add an activation under any parameters; some that may be left out are."""
    if op == "PRelu":
        return build.activation(op, x)
    given = [name for name, default in ACTIVATIONS[op].parameters.items() if default is None or draw(st.booleans())]
    return build.activation(op, x, **{name: draw(PARAMETERS[name]) for name in given})


def draw_concat(draw, build: Builder, x: str, tensors: list[str], *, padded: bool = True) -> str:
    """Join x with tensors of its height and width, dense-block style or any, possibly the same one twice."""
    volume = build.volumes[x]
    beside = [
        name
        for name in tensors
        if (build.volumes[name].height, build.volumes[name].width) == (volume.height, volume.width)
    ]
    if draw(st.booleans()):
        filters = draw(st.integers(1, 9))
        grown = draw_same_size_conv(draw, build, x, filters) if padded else build.conv(x, filters, 1)
        parts = [x, grown]
    else:
        parts = [x, *draw(st.lists(st.sampled_from(beside), min_size=1, max_size=3))]
    return build.join("Concat", *draw(st.permutations(parts)))


def draw_one_input(draw, build: Builder, x: str, op: str) -> str:
    """Add an operation without a window that reads one tensor."""
    volume = build.volumes[x]
    if op in ACTIVATIONS or op == "PRelu":
        return draw_activation(draw, build, x, op)
    if op == "Affine":
        return build.affine(x, activation=draw(st.sampled_from(("", "relu"))))
    if op == "BatchNormalization":
        return build.batch_normalization(x)
    if op == "GroupNormalization":
        return build.normalization(op, x, group=draw(st.sampled_from(divisors(volume.channels))))
    if op == "LayerNormalization":
        return build.normalization(op, x, epsilon=draw(st.sampled_from((1e-5, 1e-3))))
    if op == "LpNormalization":
        return build.simple(op, x, p=draw(st.integers(1, 2)), epsilon=draw(st.sampled_from((1e-12, 0.5))))
    if op == "GlobalLpPool":
        return build.simple(op, x, p=draw(st.integers(1, 3)))
    if op == "LRN":
        return draw_lrn(draw, build, x)
    if op == "Gemm":
        return build.gemm(x, draw(st.integers(1, 40)))
    if op == "Flatten":
        kernel = (draw(st.integers(1, min(volume.height, 4))), draw(st.integers(1, min(volume.width, 4))))
        return build.simple("Flatten", x, kernel_shape=kernel)
    if op == "ChannelShuffle":
        return build.simple(op, x, group=draw(st.sampled_from(divisors(volume.channels))))
    return build.simple(op, x)


@st.composite
def op_graphs(draw, op: str, *, max_channels: int = 40, max_size: int = 18) -> Graph:
    """A Graph of one operation under any attributes; a second input comes from an Affine or a pooling before it."""
    build = Builder(draw(volumes(max_channels=max_channels, max_size=max_size)), seed=draw(seeds), name=op)
    x = build.input
    volume = build.volumes[x]
    if op == "Conv":
        y = draw_conv(draw, build, x)
        if draw(st.booleans()):
            attrs, shape = build.nodes[-1].attrs, build.nodes[-1].params["weight"].shape
            params = {"weight": build.draw(shape, int(np.prod(shape[1:]))), "bias": build.draw(shape[:1], 50)}
            y = build.add_node("Conv", (x, build.affine(y)), dict(attrs), params)
    elif op in ("MaxPool", "AveragePool", "LpPool"):
        y = draw_pool(draw, build, x, op)
    elif op == "LocallyConnected":
        y = draw_locally_connected(draw, build, x)
    elif op in COMBINATIONS:
        others = [draw(st.sampled_from(("same", "itself", "1x1", "row"))) for _ in range(draw(st.integers(1, 2)))]
        made = {
            "same": lambda: build.affine(x),
            "itself": lambda: x,
            "1x1": lambda: build.simple("GlobalAveragePool", x),
            "row": lambda: build.pool("MaxPool", x, (volume.height, 1)),
        }
        tensors = draw(st.permutations([x, *(made[other]() for other in others)]))
        y = build.join(op, *tensors, activation=draw(st.sampled_from(("", "relu"))))
    elif op == "Concat":
        others = [build.affine(x), build.conv(x, draw(st.integers(1, 20)), 1), x]
        y = build.join(op, *draw(st.lists(st.sampled_from(others), min_size=2, max_size=4)))
    elif op in MOVES:
        y = draw_move(draw, build, x, op)
    else:
        y = draw_one_input(draw, build, x, op)
    return build.graph(y)


LAYERS = ("Conv", "Conv", "MaxPool", "AveragePool", "LpPool", "residual", "concat", "concat")
LAYERS += ("whole", "move", "one input")
SMOOTH = ("LeakyRelu", "PRelu", "Clip", "Swish", "HardSwish", "Gelu", "Tanh", "Mish")
LINEAR = ("Affine", "BatchNormalization", "ChannelShuffle", "Identity")
ONE_INPUT = ("Relu", "Relu", *SMOOTH, *LINEAR, "LayerNormalization", "LRN", "Softmax")


@st.composite
def graphs(
    draw,
    *,
    max_layers: int = 10,
    max_channels: int = 20,
    max_size: int = 20,
    min_size: int = 1,
    padded: bool = True,
    slides: bool = False,
    classes: int | None = None,
) -> Graph:
    """Random networks: chains, branches, residual sums, nested concatenations, gates, ends of every kind.

    padded=False leaves out zero padding and clipped pools; slides=True leaves out what looks at the whole
    image except an end that can be converted (Flatten + Gemm or a global pooling), and shows one output of
    1x1 at the graph's own size; classes fixes its channels.
    """
    volume = draw(volumes(max_channels=6, max_size=max_size, min_size=min_size))
    build = Builder(volume, seed=draw(seeds), name="random")
    tensors = [build.input]
    layers = tuple(layer for layer in LAYERS if not (slides and layer in ("whole", "move")))
    for layer in draw(st.lists(st.sampled_from(layers), min_size=1, max_size=max_layers)):
        back = draw(st.sampled_from((0, 0, 0, 1, 2, 5)))
        x = tensors[max(len(tensors) - 1 - back, 0)]
        if slides:
            x = tensors[-1]
        if layer == "concat" and build.volumes[x].channels > 4 * max_channels:
            layer = "Conv"
        if layer == "Conv":
            y = draw_conv(draw, build, x, padded=padded, max_filters=max_channels)
        elif layer in ("MaxPool", "AveragePool", "LpPool"):
            y = draw_pool(draw, build, x, layer, padded=padded)
        elif layer == "residual":
            y = draw_residual(draw, build, x, padded=padded)
        elif layer == "concat":
            y = draw_concat(draw, build, x, [x, build.affine(x)] if slides else tensors, padded=padded)
        elif layer == "whole" and draw(st.booleans()):
            y = draw_gate(draw, build, x)
        elif layer == "whole":
            y = draw_one_input(draw, build, x, "GroupNormalization")
        elif layer == "move":
            small = build.volumes[x].values < 8000
            y = draw_move(draw, build, x, draw(st.sampled_from(MOVES if small else ("Slice", "SpaceToDepth"))))
        else:
            y = draw_one_input(draw, build, x, draw(st.sampled_from(ONE_INPUT)))
        tensors.append(y)
    x = tensors[-1]
    if not slides:
        end = draw(st.sampled_from(("as it is", "flatten", "global", "Softmax")))
        y = x
        if end == "flatten":
            y = build.gemm(build.flatten(x), draw(st.integers(1, 12)))
        elif end == "global":
            y = build.gemm(build.simple(draw(st.sampled_from(("GlobalAveragePool", "GlobalMaxPool"))), x), 5)
        elif end == "Softmax":
            y = build.simple("Softmax", x)
        also = draw(st.lists(st.sampled_from([node.output for node in build.nodes]), max_size=2, unique=True))
        return build.graph(y, *(tensor for tensor in also if tensor != y))
    count = classes or draw(st.integers(1, 12))
    if draw(st.booleans()):
        y = build.gemm(build.simple("GlobalAveragePool", x), count)
    else:
        y = build.gemm(build.simple("Relu", build.gemm(build.flatten(x), 9)), count)
    if draw(st.booleans()):
        y = build.simple("Softmax", y)
    return build.graph(y)
