"""Hypothesis strategies of operations that move values, and of transposed convolutions, that are always valid."""

import numpy as np
from builder import Builder
from hypothesis import strategies as st

from convserve.errors import ShapeError
from convserve.graph.moves import COORDINATES, NEAREST_MODES

__all__ = ["MOVES", "draw_move"]

MOVES = ("Slice", "Pad", "Resize", "DepthToSpace", "SpaceToDepth", "ConvTranspose")


def draw_slice(draw, build: Builder, x: str) -> str:
    volume = build.volumes[x]
    starts, ends, steps = [], [], []
    for size in (volume.channels, volume.height, volume.width):
        start = draw(st.integers(0, size - 1))
        starts.append(draw(st.sampled_from((0, start))))
        ends.append(draw(st.sampled_from((0, draw(st.integers(0, size - 1 - starts[-1]))))))
        steps.append(draw(st.sampled_from((1, 1, 2, 3, -1, -2))))
    return build.add_node("Slice", x, {"starts": tuple(starts), "ends": tuple(ends), "steps": tuple(steps)})


def draw_pad(draw, build: Builder, x: str) -> str:
    volume = build.volumes[x]
    mode = draw(st.sampled_from(("constant", "constant", "edge", "reflect", "wrap")))
    before, behind = [], []
    for size in (volume.channels, volume.height, volume.width):
        most = min(3, size - 1 if mode == "reflect" else size)
        begin = draw(st.sampled_from((0, draw(st.integers(-2, most)))))
        end = draw(st.sampled_from((0, draw(st.integers(-2, most)))))
        left = size + min(begin, 0) + min(end, 0)
        if left < 1 or (mode != "constant" and max(begin, end) >= left):
            begin, end = 0, 0
        before.append(begin)
        behind.append(end)
    value = draw(st.sampled_from((0.0, -1.5)))
    return build.add_node("Pad", x, {"pads": (*before, *behind), "mode": mode, "value": value})


def draw_resize(draw, build: Builder, x: str) -> str:
    mode = draw(st.sampled_from(COORDINATES))
    by_scale = draw(st.booleans())
    scale = st.sampled_from((0.5, 0.75, 1.0, 1.5, 2.0, 2.0, 3.0, float(np.float32(0.6)), float(np.float32(1 / 3)), 2.3))
    interpolation = draw(st.sampled_from(("nearest", "linear", "linear", "cubic")))
    attrs = {
        "mode": interpolation,
        "coordinate_transformation_mode": mode,
        "nearest_mode": draw(st.sampled_from(NEAREST_MODES)),
        "antialias": interpolation != "nearest" and draw(st.booleans()),
        "exclude_outside": interpolation == "cubic" and draw(st.booleans()),
        "cubic_coeff_a": draw(st.sampled_from((-0.75, -0.5))),
        "extrapolation_value": 10.0,
        "scales": (draw(scale), draw(scale)) if by_scale else (0.0, 0.0),
        "sizes": (0, 0) if by_scale else (draw(st.integers(1, 20)), draw(st.integers(1, 20))),
        "roi": draw(st.sampled_from(((0.0, 0.0, 1.0, 1.0), (0.25, -0.125, 0.875, 1.125)))) if "crop" in mode else (),
    }
    try:
        return build.add_node("Resize", x, attrs)
    except ShapeError:
        return build.add_node("Resize", x, attrs | {"scales": (2.0, 2.0), "sizes": (0, 0)})


def draw_blocks(draw, build: Builder, x: str, op: str) -> str:
    volume = build.volumes[x]
    if op == "SpaceToDepth":
        blocks = draw(st.integers(1, min(3, volume.height))), draw(st.integers(1, min(3, volume.width)))
    else:
        fitting = [(i, j) for i in (1, 2, 3) for j in (1, 2, 3) if volume.channels % (i * j) == 0]
        blocks = draw(st.sampled_from(fitting))
    return build.add_node(op, x, {"blocksize": blocks, "mode": draw(st.sampled_from(("DCR", "CRD")))})


def draw_conv_transpose(draw, build: Builder, x: str) -> str:
    volume = build.volumes[x]
    group = draw(st.sampled_from([g for g in range(1, volume.channels + 1) if volume.channels % g == 0]))
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    strides = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dilations = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pads = [0, 0, 0, 0]
    padding = []
    for axis, size in enumerate((volume.height, volume.width)):
        padding.append(draw(st.integers(0, max(strides[axis], dilations[axis]) - 1)))
        room = strides[axis] * (size - 1) + dilations[axis] * (kernel[axis] - 1) + padding[axis]
        pads[axis] = draw(st.integers(0, min(3, room)))
        pads[axis + 2] = draw(st.integers(0, min(3, room - pads[axis])))
    attrs = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": tuple(pads),
        "dilations": dilations,
        "output_padding": tuple(padding),
        "group": group,
        "activation": draw(st.sampled_from(("", "relu"))),
    }
    filters = draw(st.integers(1, 6))
    params = {
        "weight": build.draw((volume.channels, filters, *kernel), volume.channels // group * 4),
        "bias": build.draw((filters * group,), 50),
    }
    return build.add_node("ConvTranspose", x, attrs, params)


def draw_move(draw, build: Builder, x: str, op: str) -> str:
    """Add one of MOVES with any attributes."""
    if op in ("DepthToSpace", "SpaceToDepth"):
        return draw_blocks(draw, build, x, op)
    return {"Slice": draw_slice, "Pad": draw_pad, "Resize": draw_resize, "ConvTranspose": draw_conv_transpose}[op](
        draw, build, x
    )
