"""Windows: what one output position of an operation reads along one axis of its input."""

from dataclasses import dataclass

__all__ = ["POINT", "Window", "Windows", "whole"]


@dataclass(frozen=True, slots=True)
class Window:
    """What one output position reads along one axis: output o reads o*stride - pad_begin + i*dilation, 0 <= i < kernel.

    A stride of 0 is an input that every output position reads whole. repeat: so many neighbouring outputs read
    the same positions (o // repeat in place of o).
    """

    kernel: int = 1
    stride: int = 1
    pad_begin: int = 0
    pad_end: int = 0
    dilation: int = 1
    repeat: int = 1

    @property
    def extent(self) -> int:
        """Positions from the first that is read to the last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    def reads(self, begin: int, end: int) -> tuple[int, int]:
        """Return the input positions [lo, hi) behind output positions [begin, end), not clipped to the input."""
        first, last = begin // self.repeat, (end - 1) // self.repeat
        return first * self.stride - self.pad_begin, last * self.stride - self.pad_begin + self.extent


POINT = Window()
Windows = tuple[Window, Window]


def whole(size: int) -> Window:
    """Return the window of an operation that reads all of an axis of that size for every output."""
    return Window(kernel=size, stride=0)
