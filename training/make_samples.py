"""Draws the bundled sample images from held-out digits: digit.png, page.png and the page's truth, page.json."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.digits import FIELD, load, split

__all__ = ["main"]

_SEED = 1990
_BUNDLED = Path("convserve/bundled")
_ROWS, _COLUMNS, _PITCH = 5, 8, 40
_JITTER = 5
# Number 279 of the data set, a held-out 3 that people read at first sight.
_SAMPLE = 279


def _page(images: np.ndarray, classes: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Return a page, uint8 (200, 320), of digits in loose rows, and what is where, centres as (y, x)."""
    random = np.random.default_rng(_SEED)
    noise = random.normal(8, 3, (_ROWS * _PITCH, _COLUMNS * _PITCH))
    page = noise.round().clip(0, 255).astype(np.uint8)
    truth: list[dict[str, object]] = []
    chosen = random.choice(indices, _ROWS * _COLUMNS, replace=False)
    for place, index in enumerate(chosen):
        row, column = divmod(place, _COLUMNS)
        y, x = (int(_PITCH * (cell + 0.5) + random.integers(-_JITTER, _JITTER + 1)) for cell in (row, column))
        top, left = y - FIELD // 2, x - FIELD // 2
        field = page[top : top + FIELD, left : left + FIELD]
        np.maximum(field, images[index], out=field)
        truth.append({"label": str(classes[index]), "centre": [y, x], "index": int(index)})
    return page, truth


def main() -> None:
    """Write the three files into convserve/bundled."""
    images, classes = load()
    held_out = split(classes)[1]
    Image.fromarray(images[_SAMPLE]).save(_BUNDLED / "digit.png", optimize=True)
    page, truth = _page(images, classes, held_out[held_out != _SAMPLE])
    Image.fromarray(page).save(_BUNDLED / "page.png", optimize=True)
    lines = ",\n".join("    " + json.dumps(digit) for digit in truth)
    text = f'{{\n  "height": {page.shape[0]},\n  "width": {page.shape[1]},\n  "digits": [\n{lines}\n  ]\n}}\n'
    (_BUNDLED / "page.json").write_text(text)
    print(f"digit.png is a {classes[_SAMPLE]}; page.png has {len(truth)} digits")


if __name__ == "__main__":
    main()
