"""Oracles of what moves values and of transposed convolutions: slow, plain float64 NumPy from the formulas of ONNX."""

import numpy as np

from convserve.graph.ir import Node

__all__ = ["conv_transpose", "depth_to_space", "pad", "resize", "slice_", "space_to_depth"]

Array = np.ndarray


def conv_transpose(node: Node, x: Array) -> Array:
    """Every input value, times its weights, is added to the outputs i*stride + k*dilation - pad; no activation yet."""
    weight, attrs, group = node.params["weight"].astype(np.float64), node.attrs, node.attrs["group"]
    (sh, sw), (dh, dw), (kh, kw) = (attrs[name] for name in ("strides", "dilations", "kernel_shape"))
    top, left, bottom, right = attrs["pads"]
    rows = sh * (x.shape[2] - 1) + dh * (kh - 1) + 1 + attrs["output_padding"][0]
    cols = sw * (x.shape[3] - 1) + dw * (kw - 1) + 1 + attrs["output_padding"][1]
    y = np.zeros((x.shape[0], weight.shape[1] * group, rows, cols))
    channels, filters = x.shape[1] // group, weight.shape[1]
    for g in range(group):
        ins, outs = slice(g * channels, (g + 1) * channels), slice(g * filters, (g + 1) * filters)
        for i in range(kh):
            for j in range(kw):
                spread = np.einsum("nchw,cm->nmhw", x[:, ins], weight[ins, :, i, j])
                last_row, last_col = i * dh + sh * (x.shape[2] - 1), j * dw + sw * (x.shape[3] - 1)
                y[:, outs, i * dh : last_row + 1 : sh, j * dw : last_col + 1 : sw] += spread
    y = y[:, :, top : rows - bottom, left : cols - right]
    return y + node.params["bias"].astype(np.float64)[:, None, None]


def slice_(node: Node, x: Array) -> Array:
    """x[start : size - end : step] along channels, rows, columns; a negative step walks the same part backwards."""
    for axis in range(3):
        start, end, step = (node.attrs[name][axis] for name in ("starts", "ends", "steps"))
        part = np.take(x, range(start, x.shape[axis + 1] - end), axis=axis + 1)
        x = np.take(part, range(part.shape[axis + 1])[::step], axis=axis + 1)
    return x


def pad(node: Node, x: Array) -> Array:
    """Values around x: a constant, the border again, its reflection, or the other end; a negative pad cuts off."""
    before, behind = node.attrs["pads"][:3], node.attrs["pads"][3:]
    constant = node.attrs["mode"] == "constant"
    if constant:
        # all is padded before anything is cut off, so that more may be cut off than there is
        around = [(0, 0), *((max(b, 0), max(e, 0)) for b, e in zip(before, behind, strict=True))]
        x = np.pad(x, around, constant_values=node.attrs["value"])
    cut = [slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(before, behind, x.shape[1:], strict=True)]
    x = x[:, cut[0], cut[1], cut[2]]
    if not constant:
        around = [(0, 0), *((max(b, 0), max(e, 0)) for b, e in zip(before, behind, strict=True))]
        x = np.pad(x, around, mode=node.attrs["mode"])
    return x


def resize_places(node: Node, axis: int, size: int, count: int) -> list[float]:
    """Where each output lies in the input, by ONNX's formula of its coordinate_transformation_mode."""
    scale = node.attrs["scales"][axis] or count / size
    length = node.attrs["scales"][axis] * size or count
    start, end = (node.attrs["roi"][axis], node.attrs["roi"][axis + 2]) if node.attrs["roi"] else (0, 1)
    formula = {
        "half_pixel": lambda o: (o + 0.5) / scale - 0.5,
        "half_pixel_symmetric": lambda o: size / 2 * (1 - count / (scale * size)) + (o + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda o: (o + 0.5) / scale - 0.5 if count > 1 else 0,
        "align_corners": lambda o: o * (size - 1) / (length - 1) if length > 1 else 0,
        "asymmetric": lambda o: o / scale,
        "tf_half_pixel_for_nn": lambda o: (o + 0.5) / scale,
        "tf_crop_and_resize": lambda o: (
            start * (size - 1) + o * (end - start) * (size - 1) / (count - 1)
            if count > 1
            else 0.5 * (start + end) * (size - 1)
        ),
    }[node.attrs["coordinate_transformation_mode"]]
    return [formula(o) for o in range(count)]


def cubic(a: float, s: float) -> float:
    s = abs(s)
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0


def resized_axis(node: Node, x: Array, axis: int) -> tuple[Array, Array]:
    """Return x resized along rows (0) or columns (1), and which outputs lie outside the region."""
    attrs, size, along = node.attrs, x.shape[axis + 2], np.moveaxis(x, axis + 2, -1)
    scale, wanted = attrs["scales"][axis], attrs["sizes"][axis]
    count = wanted or int(np.float32(size) * np.float32(scale))
    shrink = min(scale or count / size, 1) if attrs["antialias"] else 1
    ys, outside = [], []
    for place in resize_places(node, axis, size, count):
        outside.append(attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" and not 0 <= place <= size - 1)
        if outside[-1]:
            ys.append(np.zeros(along.shape[:-1]))
            continue
        if attrs["mode"] == "nearest":
            rounded = {
                "round_prefer_floor": np.ceil(place - 0.5),
                "round_prefer_ceil": np.floor(place + 0.5),
                "floor": np.floor(place),
                "ceil": np.ceil(place),
            }[attrs["nearest_mode"]]
            ys.append(along[..., int(min(max(rounded, 0), size - 1))])
            continue
        reach = int(np.ceil((1 if attrs["mode"] == "linear" else 2) / shrink))
        weights = {}
        for i in range(int(np.floor(place)) - reach, int(np.floor(place)) + reach + 2):
            away = (i - place) * shrink
            weight = max(0, 1 - abs(away)) if attrs["mode"] == "linear" else cubic(attrs["cubic_coeff_a"], away)
            if weight and not (attrs["exclude_outside"] and not 0 <= i < size):
                weights[i] = weight
        total = sum(weights.values()) if attrs["antialias"] or attrs["exclude_outside"] else 1
        ys.append(sum(along[..., min(max(i, 0), size - 1)] * (w / total) for i, w in weights.items()))
    return np.moveaxis(np.stack(ys, axis=-1), -1, axis + 2), np.array(outside)


def resize(node: Node, x: Array) -> Array:
    """Interpolate along columns, then rows, as ONNX's Resize describes; taps of weight 0 do not count."""
    y, left_out = resized_axis(node, x, 1)
    y, above = resized_axis(node, y, 0)
    y[:, :, above] = node.attrs["extrapolation_value"]
    y[:, :, :, left_out] = node.attrs["extrapolation_value"]
    return y


def depth_to_space(node: Node, x: Array) -> Array:
    """Blocks of channels become blocks of pixels: channels are (block, c) for DCR, (c, block) for CRD."""
    (down, across), (n, channels, height, width) = node.attrs["blocksize"], x.shape
    depth = channels // (down * across)
    if node.attrs["mode"] == "DCR":
        y = x.reshape(n, down, across, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, down, across, height, width).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, depth, height * down, width * across)


def space_to_depth(node: Node, x: Array) -> Array:
    """Blocks of pixels become blocks of channels; the inverse of depth_to_space, without what is no whole block."""
    down, across = node.attrs["blocksize"]
    n, channels, rows, cols = *x.shape[:2], x.shape[2] // down, x.shape[3] // across
    blocks = x[:, :, : rows * down, : cols * across].reshape(n, channels, rows, down, cols, across)
    order = (0, 3, 5, 1, 2, 4) if node.attrs["mode"] == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, channels * down * across, rows, cols)
