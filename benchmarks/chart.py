"""The chart of a benchmark: each engine's speed beside the fastest peer's, network by network."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.engines import ENGINES
from benchmarks.summary import geometric_means, machine_text

__all__ = ["draw_chart"]

SCALE = 2  # drawn this much larger, then made smaller, for smooth edges
WIDTH, MARGIN, LABELS, NUMBERS = 1200, 44, 150, 150
BAR, GAP, GROUP_GAP, HEAD, FOOT = 15, 3, 18, 128, 70
INK, QUIET, RULE, PAPER = "#1f2933", "#66727f", "#e1e6eb", "#ffffff"
COLOURS = {"convserve": "#e4572e", "onnxruntime": "#5b7db1", "openvino": "#93aed1", "torch": "#c5cdd6"}


def draw_chart(document: dict[str, Any]) -> Image.Image:
    """Return the picture of the results with the most threads and, among those, the smallest batch."""
    results = document["results"]
    threads = max(result["threads"] for result in results)
    batch = min(result["batch"] for result in results if result["threads"] == threads)
    chosen = [result for result in results if (result["threads"], result["batch"]) == (threads, batch)]
    engines = list(document["versions"])
    groups = [(result["title"], {name: _bar(one) for name, one in result["engines"].items()}) for result in chosen]
    if len(chosen) > 1:
        means = geometric_means(chosen)
        groups.append(("geometric mean", {name: (means.get(name, 0.0), "") for name in engines}))
    group_height = len(engines) * (BAR + GAP) - GAP + GROUP_GAP
    height = HEAD + len(groups) * group_height + FOOT
    picture = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    pen = _Pen(ImageDraw.Draw(picture))
    setting = f"{threads} thread{'' if threads == 1 else 's'}, batch {batch}, float32"
    pen.text(MARGIN, 30, "Speed beside the fastest peer", 27, INK)
    pen.text(MARGIN, 67, f"{setting}, best of {chosen[0]['runs']} runs taken in turn; longer is faster", 15, QUIET)
    _legend(pen, engines)
    left, right = MARGIN + LABELS, WIDTH - MARGIN - NUMBERS
    most = max([1.0, *(ratio for _, bars in groups for ratio, _ in bars.values())])
    per_unit = (right - left) / most
    bottom = height - FOOT
    step = 0.5 if most < 5 else 1.0
    for tick in range(1, int(most / step + 1e-9) + 1):
        x, value = left + tick * step * per_unit, tick * step
        pen.line(x, HEAD - 8, x, bottom - GROUP_GAP / 2, INK if value == 1 else RULE, 1)
        pen.text(x, HEAD - 20, f"{value:g}x", 12, QUIET, "mm")
    y: float = HEAD
    for title, bars in groups:
        if title == "geometric mean":
            pen.line(MARGIN, y - GROUP_GAP / 2, WIDTH - MARGIN, y - GROUP_GAP / 2, RULE, 1)
        pen.text(left - 14, y + (group_height - GROUP_GAP) / 2, title, 16, INK, "rm")
        for name in engines:
            ratio, label = bars.get(name, (0.0, "not run"))
            own = name == "convserve"
            pen.bar(left, y, ratio * per_unit, BAR, COLOURS[name])
            if ratio > 1.02:
                pen.line(left + per_unit, y, left + per_unit, y + BAR, PAPER, 1)
            text = f"{ratio:.2f}x  {label}".rstrip() if ratio else label
            size, x = 13 if own else 12, left + ratio * per_unit
            pen.bar(x + 4, y, pen.width(text, size) + 8, BAR, PAPER)
            pen.text(x + 8, y + BAR / 2, text, size, INK if own else QUIET, "lm")
            y += BAR + GAP
        y += GROUP_GAP - GAP
    pen.line(left, HEAD - 8, left, bottom - GROUP_GAP / 2, QUIET, 1)
    pen.wrapped(MARGIN, bottom + 6, WIDTH - 2 * MARGIN, machine_text(document), 13, QUIET)
    return picture.resize((WIDTH * SCALE * 3 // 4, height * SCALE * 3 // 4), Image.Resampling.LANCZOS)


def _bar(one: dict[str, Any]) -> tuple[float, str]:
    if one.get("ratio"):
        return one["ratio"], f"{one['best_ms']:.1f} ms"
    return 0.0, f"{one['best_ms']:.1f} ms, no peer" if "best_ms" in one else "failed"


def _legend(pen: "_Pen", engines: list[str]) -> None:
    x: float = WIDTH - MARGIN
    for name in reversed(engines):
        x -= pen.width(ENGINES[name].title, 15)
        pen.text(x, 42, ENGINES[name].title, 15, INK, "lm")
        x -= 22
        pen.bar(x, 35, 14, 14, COLOURS[name])
        x -= 22


class _Pen:
    """Draws in units of the final page, which the picture is SCALE times as large as."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def _font(self, size: int) -> Any:
        return ImageFont.load_default(size * SCALE)

    def width(self, text: str, size: int) -> float:
        """Return how wide a text is."""
        return float(self.draw.textlength(text, self._font(size))) / SCALE

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str = "la") -> None:
        """Write one line at an anchor."""
        self.draw.text((x * SCALE, y * SCALE), text, colour, self._font(size), anchor)

    def wrapped(self, x: float, y: float, width: float, text: str, size: int, colour: str) -> None:
        """Write lines no longer than width."""
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and self.width(longer, size) > width:
                self.text(x, y, line, size, colour)
                y, line = y + size + 6, word
            else:
                line = longer
        self.text(x, y, line, size, colour)

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle with soft corners at its right end."""
        if width > 0:
            box = [round(side * SCALE) for side in (x, y, x + width, y + height)]
            radius = min(3 * SCALE, (box[2] - box[0]) // 2)
            self.draw.rounded_rectangle(box, radius, colour, corners=(False, True, True, False))

    def line(self, x: float, y: float, x_end: float, y_end: float, colour: str, width: float) -> None:
        """Draw a straight line."""
        self.draw.line([x * SCALE, y * SCALE, x_end * SCALE, y_end * SCALE], colour, round(width * SCALE))
