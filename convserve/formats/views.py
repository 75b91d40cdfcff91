"""Views: tensors of a file as shapes laid over a volume, with sizes that the batch or the image decides as symbols."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.graph.ir import Volume

__all__ = ["BATCH", "LARGEST", "Size", "Symbol", "View", "reshaped"]

LARGEST = 1 << 24
"""The largest size that a file may ask for: far above any network, far below where products would leave 64 bits."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size that the file does not fix: the batch, or a height or width that the image decides."""

    name: str

    def __str__(self) -> str:
        return self.name


BATCH = Symbol("batch")
UNKNOWN = Symbol("unknown")
Size = int | Symbol


@dataclass(frozen=True, slots=True)
class View:
    """One tensor of a file: the values of a volume, in C, H, W order, under a shape (without the batch).

    dims are the volume's sizes with symbols in place of None. channels_last: the values are in H, W, C order instead,
    and the shape is (H, W, C). rows: as in graph.ir.Output, for what is only shown.
    """

    tensor: str
    volume: Volume
    dims: tuple[Size, Size, Size]
    shape: tuple[Size, ...]
    channels_last: bool = False
    rows: int = 1

    def __str__(self) -> str:
        first = BATCH if self.rows == 1 else f"{self.rows} * batch" if self.rows else "all images"
        return f"({', '.join(map(str, (first, *self.shape)))})"

    def shaped(self, shape: Iterable[Size]) -> "View":
        """Return the same values under another shape."""
        return replace(self, shape=tuple(shape))

    def like(self, view: "View") -> "View":
        """Return the same values under another view's shape and in its order."""
        return replace(self, shape=view.shape, channels_last=view.channels_last)


Product = tuple[int, Counter[Symbol]]


def _product(sizes: Iterable[Size]) -> Product:
    factors = list(sizes)
    return (
        math.prod(size for size in factors if isinstance(size, int)),
        Counter(size for size in factors if isinstance(size, Symbol)),
    )


def _quotient(total: Product, part: Product) -> Size | None:
    if part[0] == 0 or total[0] % part[0] or part[1] - total[1]:
        return None
    number, symbols = total[0] // part[0], total[1] - part[1]
    if not symbols:
        return number
    return next(iter(symbols)) if number == 1 and symbols.total() == 1 else UNKNOWN


def reshaped(view: View, target: Sequence[Size], *, declared_batch: Size, allowzero: bool, what: str) -> View:
    """Return a view under a target shape, batch first, as ONNX and Caffe: 0 copies a size, -1 stands for the rest.

    The batch stays free: a first size of 1, of the batch that the file declares, or of -1 is the batch.
    Raises UnsupportedOpError where values of several images would mix, ModelFormatError for a wrong shape.
    """
    before = (BATCH, *view.shape)
    sizes = list(target)
    if not allowzero:
        for axis, size in enumerate(sizes):
            if size == 0 and axis >= len(before):
                raise ModelFormatError(f"{what}: size {axis} of {_text(target)} has nothing to copy in {view}")
            sizes[axis] = before[axis] if size == 0 else size
    if any(isinstance(size, int) and size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise ModelFormatError(f"{what}: {_text(target)} is no shape")
    total, rest = _product(view.dims), sizes[1:]
    mixed = UnsupportedOpError(
        f"{what}: a reshape of {view} to {_text(target)} does not keep the batch as the first size"
    )
    batches = (-1, BATCH, declared_batch, 1 if declared_batch == BATCH else -1)
    if not sizes or sizes[0] not in batches:
        raise mixed
    if -1 in rest:
        missing = _quotient(total, _product(size for size in rest if size != -1))
        if missing is None:
            raise mixed
        rest[rest.index(-1)] = missing
    elif _product(rest) != total:
        raise mixed
    return view.shaped(rest)


def _text(sizes: Iterable[Size]) -> str:
    return f"({', '.join(map(str, sizes))})"
