"""The arena of a run as a picture: segments and their steps across, bytes up, each ring a block with its name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from convserve.images.colours import class_colours

if TYPE_CHECKING:
    from convserve.plan.timeline import RingLife, Timeline

__all__ = ["arena_map"]

_WIDTH, _PLOT_HEIGHT = 1280, 460
_LEFT, _RIGHT, _TOP = 76, 28, 96
_BARS, _LEGEND = 132, 46
_PAPER, _INK, _QUIET, _RULE = (255, 255, 255), (31, 41, 51), (102, 114, 127), (225, 230, 235)
_MIB = 1 << 20


def arena_map(line: "Timeline") -> Image.Image:
    """Return the picture of a plan over time.

    A block is pale where its ring's place is only reserved, and full from the first row written to the last one
    read. Below it the plan's bytes are drawn to one scale with what executors take that run layer by layer.
    """
    picture = Image.new("RGB", (_WIDTH, _TOP + _PLOT_HEIGHT + _BARS + _LEGEND), _PAPER)
    canvas = _Canvas(ImageDraw.Draw(picture), line)
    canvas.head()
    canvas.axes()
    for ring in sorted(line.rings, key=lambda ring: -ring.size_bytes):
        canvas.ring(ring)
    canvas.total()
    canvas.cuts()
    canvas.bars(_TOP + _PLOT_HEIGHT + 44)
    canvas.legend(picture.height - 24)
    return picture


class _Canvas:
    """Places columns and bytes on the picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, line: "Timeline") -> None:
        self.draw, self.line = draw, line
        self.across = (_WIDTH - _LEFT - _RIGHT) / line.segments[-1].end
        self.up = (_PLOT_HEIGHT - 12) / line.arena_bytes
        self.bottom = _TOP + _PLOT_HEIGHT
        hues = class_colours(len(line.kinds)).tolist()
        self.colours = {kind: _lighter(hue, 0.25) for kind, hue in zip(line.kinds, hues, strict=True)}

    def x(self, column: float) -> float:
        """Return where a column begins."""
        return _LEFT + column * self.across

    def y(self, offset: float) -> float:
        """Return where a byte of the arena lies."""
        return self.bottom - offset * self.up

    def text(
        self, x: float, y: float, text: str, size: int, colour: tuple[int, ...] = _QUIET, anchor: str = "la"
    ) -> None:
        """Write one line at an anchor."""
        self.draw.text((x, y), text, colour, ImageFont.load_default(size), anchor)

    def box(self, left: float, top: float, right: float, bottom: float, **paint: tuple[int, ...]) -> None:
        """Draw a rectangle, right and bottom excluded, however thin."""
        self.draw.rectangle([left, top, max(right - 1, left), max(bottom - 1, top)], **paint)  # type: ignore[arg-type]

    def head(self) -> None:
        """Write what is shown, and the total."""
        line = self.line
        self.text(_LEFT, 22, f"The arena of {line.title}", 24, _INK)
        segments = "segment" if len(line.segments) == 1 else "segments"
        steps = sum(segment.steps for segment in line.segments)
        self.text(
            _LEFT, 58, f"{steps:,} steps in {len(line.segments)} {segments} from left to right; bytes upwards", 14
        )
        self.text(_WIDTH - _RIGHT, 26, f"{_size(line.arena_bytes)} in all", 20, _INK, "ra")

    def axes(self) -> None:
        """Draw a rule every so many bytes."""
        step = next(1 << power for power in range(10, 63) if self.line.arena_bytes >> power <= 8)
        for offset in range(0, self.line.arena_bytes, step):
            self.draw.line([(_LEFT, self.y(offset)), (_WIDTH - _RIGHT, self.y(offset))], _RULE)
            self.text(_LEFT - 10, self.y(offset), _size(offset, step) if offset else "0", 12, anchor="rm")

    def total(self) -> None:
        """Draw where the arena ends."""
        top = self.y(self.line.arena_bytes)
        self.draw.line([(_LEFT, top), (_WIDTH - _RIGHT, top)], _INK, 2)

    def ring(self, ring: "RingLife") -> None:
        """Draw one ring's block, with its name where there is room."""
        colour = self.colours[ring.kind]
        pale = _lighter(colour, 0.65)
        low, high = self.y(ring.offset), self.y(ring.offset + ring.size_bytes)
        begin, end = (self.x(column) for column in ring.reserved)
        inner = [self.x(column) for column in ring.held]
        self.box(begin, high, end, low, fill=pale)
        self.box(inner[0], high, inner[1], low, fill=colour)
        if low - high >= 3 and end - begin >= 3:
            self.box(begin, high, end, low, outline=_PAPER)
        rows = f"{ring.rows} of {ring.height} rows" if ring.rows < ring.height else "whole"
        texts = (f"{ring.name}   {rows}, {_size(ring.size_bytes)}", f"{ring.name}, {rows}", ring.name)
        for size in (13, 10):
            font = ImageFont.load_default(size)
            fitting = [text for text in texts if font.getlength(text) <= end - begin - 4]
            if fitting and low - high >= size + 1:
                self.text((begin + end) / 2, (low + high) / 2, fitting[0], size, _INK, "mm")
                break

    def cuts(self) -> None:
        """Write below each segment what runs in it, where there is room, and mark where it ends."""
        for segment in self.line.segments:
            begin, end = self.x(segment.begin), self.x(segment.end)
            self.draw.line([(end, self.bottom), (end, self.bottom + 7)], _QUIET)
            between = segment.first if segment.first == segment.last else f"{segment.first} to {segment.last}"
            texts = [between, segment.last]
            if segment.steps > segment.end - segment.begin:
                texts.insert(0, f"{between}, in bands: {segment.steps:,} steps")
            font = ImageFont.load_default(11)
            fitting = [text for text in texts if font.getlength(text) <= end - begin - 4]
            if fitting:
                self.text((begin + end) / 2, self.bottom + 14, fitting[0], 11, anchor="mm")
        self.draw.line([(_LEFT, self.bottom), (_WIDTH - _RIGHT, self.bottom)], _INK)

    def bars(self, y: float) -> None:
        """Draw the plan's bytes and those of other ways to run the network, to one scale."""
        line, own = self.line, self.line.arena_bytes + self.line.scratch_bytes
        ways = (
            (f"this plan: arena + scratch {_size(own)}", own, True),
            (f"layer by layer: the widest layer's input and output {_size(line.pair_bytes)}", line.pair_bytes, False),
            (f"all activations at once {_size(line.activation_bytes)}", line.activation_bytes, False),
        )
        longest = max(size for _, size, _ in ways)
        for number, (text, size, ours) in enumerate(ways):
            top, width = y + number * 28, (_WIDTH - _LEFT - _RIGHT) * size / longest
            self.draw.rectangle([_LEFT, top, _LEFT + width, top + 20], self.colours["convolution"] if ours else _RULE)
            inside = ImageFont.load_default(13).getlength(text) + 16 <= width
            self.text(_LEFT + (8 if inside else width + 8), top + 10, text, 13, _INK, "lm")

    def legend(self, y: float) -> None:
        """Name the colours that were used."""
        used = {ring.kind for ring in self.line.rings}
        x: float = _LEFT
        for kind in (kind for kind in self.line.kinds if kind in used):
            self.draw.rectangle([x, y - 7, x + 14, y + 7], self.colours[kind])
            self.text(x + 21, y, kind, 13, _INK, "lm")
            x += 21 + ImageFont.load_default(13).getlength(kind) + 24
        self.text(_WIDTH - _RIGHT, y, "pale: reserved, nothing in it yet or any more", 12, anchor="rm")


def _lighter(colour: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(round(value + (255 - value) * share) for value in colour)


def _size(size_bytes: int, step: int = 1) -> str:
    if size_bytes < _MIB:
        return f"{size_bytes / 1024:.{0 if step >= 1024 else 1}f} KiB"
    return f"{size_bytes / _MIB:.{0 if step % _MIB == 0 else 2}f} MiB"
