"""The strip below a picture: a colour scale with its numbers, or the names of colours; and text that fits."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convserve.images.colours import colour_scale

__all__ = ["BACKGROUND", "FAINT", "TEXT", "Font", "font_of", "shortened", "text_size", "with_names", "with_scale"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND = (17, 19, 28)
TEXT = (232, 233, 238)
FAINT = (150, 154, 168)
MOST_LINES = 4


def font_of(size: int) -> Font:
    """Return Pillow's own font."""
    return ImageFont.load_default(size=size)


def text_size(width: int) -> int:
    """Return the height of text in pixels for a picture of that width: to be read where the whole picture is seen."""
    return max(10, min(width // 28, max(22, width // 60)))


def shortened(label: str, font: Font, width: float) -> str:
    """Return what of a label fits in that many pixels: all of it, its first name, or its beginning."""
    if font.getlength(label) > width:
        label = label.split(",")[0]
    while len(label) > 2 and font.getlength(label) > width:
        label = label[:-2] + "…"
    return label


def _with_strip(picture: np.ndarray, height: int) -> Image.Image:
    """Return the picture, float32 (H, W, 3) in 0..255, with an empty strip of that height below."""
    framed = Image.new("RGB", (picture.shape[1], picture.shape[0] + height), BACKGROUND)
    framed.paste(Image.fromarray(np.round(picture).clip(0, 255).astype(np.uint8)), (0, 0))
    return framed


def _ticks(low: float, high: float) -> list[float]:
    """Return the round numbers between two, three to six of them, at distances of 1, 2 or 5 times a power of 10."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def with_scale(picture: np.ndarray, label: str, low: float, high: float) -> Image.Image:
    """Return the picture, float32 (H, W, 3) in 0..255, with a label and the colour scale from low to high below."""
    width = picture.shape[1]
    text = text_size(width)
    framed = _with_strip(picture, text * 4)
    draw, font = ImageDraw.Draw(framed), font_of(text)
    top = picture.shape[0] + text * 3 // 4
    bar_right = width - text * 2
    bar_left = bar_right - max(width * 2 // 5, min(60, bar_right - text))
    bar = np.repeat(colour_scale(max(bar_right - bar_left, 1))[None], text, axis=0)
    framed.paste(Image.fromarray(bar), (bar_left, top))
    small = font_of(max(9, text * 4 // 5))
    free = 0.0
    for tick in _ticks(low, high):
        x = bar_left + (tick - low) / (high - low) * (bar_right - bar_left)
        shown = f"{tick:.6g}"
        half = small.getlength(shown) / 2
        if x - half >= free:
            draw.line([(x, top + text), (x, top + text * 5 // 4)], FAINT, max(1, text // 12))
            draw.text((x, top + text * 3 // 2), shown, TEXT, small, anchor="mt")
            free = x + half + text
    label = shortened(label, font, bar_left - text * 2)
    if font.getlength(label) <= bar_left - text * 2:
        draw.text((text, top + text // 2), label, TEXT, font, anchor="lm")
    return framed


def with_names(picture: np.ndarray, names: list[str], colours: list[tuple[int, int, int]]) -> Image.Image:
    """Return the picture, float32 (H, W, 3) in 0..255, with the name of each colour below, as far as there is room."""
    width = picture.shape[1]
    text = text_size(width)
    font = font_of(text)
    places: list[tuple[str, int, int]] = []
    x, line = text, 0
    for name in names:
        short = shortened(name, font, width - text * 4)
        needed = int(text * 2.6 + font.getlength(short))
        if x + needed > width and x > text:
            x, line = text, line + 1
        if line == MOST_LINES:
            break
        places.append((short, x, line))
        x += needed
    framed = _with_strip(picture, text * (2 * min(line, MOST_LINES - 1) + 3))
    draw = ImageDraw.Draw(framed)
    for (name, x, line), colour in zip(places, colours, strict=False):
        middle = picture.shape[0] + text * 3 // 2 + line * text * 2
        draw.rounded_rectangle((x, middle - text // 2, x + text, middle + text // 2), text // 4, fill=colour)
        draw.text((x + text * 1.4, middle), name, TEXT, font, anchor="lm")
    return framed
