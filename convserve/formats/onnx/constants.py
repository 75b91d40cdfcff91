"""Constant folding: what exporters compute from weights and shapes, done once with NumPy while importing.

Shapes may hold Symbols for the batch and for unknown heights and widths; such arrays have dtype object
and can be cut, joined and reordered, but not computed with.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.source import Source
from convserve.formats.views import Size, Symbol

__all__ = ["FOLDS", "fold", "shape_array"]

Constant = np.ndarray
Fold = Callable[[Source, Sequence[Constant]], Constant]

# A fold may make an array larger than its inputs; no weight comes near this many values.
MOST_VALUES = 1 << 31


def shape_array(sizes: Sequence[Size]) -> Constant:
    """Return sizes as an int64 array, or as an object array where one is a Symbol."""
    array = np.empty(len(sizes), object)
    array[:] = sizes
    return _settled(array)


def fold(node: Source, inputs: Sequence[Constant]) -> Constant:
    """Return the node's value from its constant inputs.

    Raises UnsupportedOpError for an operation that is not folded, or that computes with a size which the
    batch or the image decides; ModelFormatError where it cannot be computed.
    """
    if node.op not in FOLDS:
        raise UnsupportedOpError(
            f"{node} reads constants only, and {node.op} is not folded; supported there: {', '.join(sorted(FOLDS))}"
        )
    try:
        with np.errstate(all="ignore"):
            return _settled(np.asarray(FOLDS[node.op](node, inputs)))
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        symbols = [size for array in inputs if array.dtype == object for size in array.flat if isinstance(size, Symbol)]
        if symbols:
            raise UnsupportedOpError(
                f"{node} computes with the {symbols[0]}, which is not fixed; window= fixes height and width"
            ) from error
        raise ModelFormatError(f"{node} cannot be computed: {error}") from error


def _settled(array: Constant) -> Constant:
    if array.dtype == object and not any(isinstance(value, Symbol) for value in array.flat):
        return array.astype(np.int64)
    return array


def _constant(node: Source, inputs: Sequence[Constant]) -> Constant:
    for name in ("value_float", "value_floats"):
        if node.has(name):
            return np.array(node.value(name), np.float32)
    for name in ("value_int", "value_ints"):
        if node.has(name):
            return np.array(node.value(name), np.int64)
    return node.tensor("value")


def _constant_of_shape(node: Source, inputs: Sequence[Constant]) -> Constant:
    value = node.tensor("value") if node.has("value") else np.zeros(1, np.float32)
    shape = [int(size) for size in inputs[0]]
    if value.size != 1 or math.prod(shape) > MOST_VALUES:
        raise ValueError(f"{value.size} values for the shape {shape}")
    # A view of one value: networks without weights of their own would otherwise fill the memory with copies of it.
    return np.broadcast_to(value.reshape(()), shape)


def _cast(node: Source, inputs: Sequence[Constant]) -> Constant:
    dtype = helper.tensor_dtype_to_np_dtype(node.integer("to"))
    return inputs[0] if inputs[0].dtype == object else inputs[0].astype(dtype)


def _expand(node: Source, inputs: Sequence[Constant]) -> Constant:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1]))
    if math.prod(shape) > MOST_VALUES:
        raise ValueError(f"the shape {shape} makes too large a constant")
    return np.broadcast_to(inputs[0], shape)


def _range(node: Source, inputs: Sequence[Constant]) -> Constant:
    begin, end, step = (array.reshape(()).item() for array in inputs)
    if not step or (end - begin) / step > MOST_VALUES:
        raise ValueError(f"a range from {begin} to {end} by {step}")
    return np.arange(begin, end, step).astype(inputs[0].dtype)


def _slice(node: Source, inputs: Sequence[Constant]) -> Constant:
    data = inputs[0]
    if node.opset < 10:
        starts, ends = node.integers("starts"), node.integers("ends")
        axes, steps = node.integers("axes", tuple(range(len(starts)))), (1,) * len(starts)
    else:
        starts, ends = (tuple(map(int, array)) for array in inputs[1:3])
        axes = tuple(map(int, inputs[3])) if len(inputs) > 3 else tuple(range(len(starts)))
        steps = tuple(map(int, inputs[4])) if len(inputs) > 4 else (1,) * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        begin, stop, stride = slice(start, end, step).indices(data.shape[axis])
        cut[axis] = slice(begin, stop if stop >= 0 else None, stride)
    return data[tuple(cut)]


def _squeeze(node: Source, inputs: Sequence[Constant]) -> Constant:
    axes = node.axes(inputs[1:])
    return np.squeeze(inputs[0], axis=axes)


def _unsqueeze(node: Source, inputs: Sequence[Constant]) -> Constant:
    axes = node.axes(inputs[1:])
    if axes is None:
        raise ValueError("no axes")
    return np.expand_dims(inputs[0], axis=axes)


def _reshape(node: Source, inputs: Sequence[Constant]) -> Constant:
    data, target = inputs[0], [int(size) for size in inputs[1]]
    if not node.integer("allowzero", 0):
        target = [data.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return data.reshape(target)


def _flatten(node: Source, inputs: Sequence[Constant]) -> Constant:
    axis = node.integer("axis", 1)
    return inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)


def _divide(node: Source, inputs: Sequence[Constant]) -> Constant:
    dividend, divisor = inputs
    if dividend.dtype.kind not in "iu":
        return dividend / divisor
    if not np.all(divisor):
        raise ValueError("a division by zero")
    quotient = np.abs(dividend) // np.abs(divisor)
    return quotient * (np.sign(dividend) * np.sign(divisor))


def _arithmetic(compute: Callable[[Constant, Constant], Constant]) -> Fold:
    def folded(node: Source, inputs: Sequence[Constant]) -> Constant:
        first, second = inputs
        if math.prod(np.broadcast_shapes(first.shape, second.shape)) > MOST_VALUES:
            raise ValueError(f"shapes {first.shape} and {second.shape} make too large a constant")
        return compute(first, second)

    return folded


FOLDS: dict[str, Fold] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Cast": _cast,
    "CastLike": lambda node, inputs: inputs[0].astype(inputs[1].dtype),
    "Ceil": lambda node, inputs: np.ceil(inputs[0]),
    "Concat": lambda node, inputs: np.concatenate(inputs, axis=node.integer("axis")),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": lambda node, inputs: np.floor(inputs[0]),
    "Gather": lambda node, inputs: np.take(inputs[0], inputs[1].astype(np.int64), axis=node.integer("axis", 0)),
    "Identity": lambda node, inputs: inputs[0],
    "Max": _arithmetic(np.maximum),
    "Min": _arithmetic(np.minimum),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Neg": lambda node, inputs: -inputs[0],
    "Pow": _arithmetic(np.power),
    "Range": _range,
    "Reciprocal": lambda node, inputs: np.reciprocal(inputs[0]),
    "Reshape": _reshape,
    "Shape": lambda node, inputs: shape_array(node.cut_shape(inputs[0].shape)),
    "Size": lambda node, inputs: np.array(inputs[0].size),
    "Slice": _slice,
    "Sqrt": lambda node, inputs: np.sqrt(inputs[0]),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Transpose": lambda node, inputs: np.transpose(inputs[0], node.integers("perm", None)),
    "Unsqueeze": _unsqueeze,
}
