"""The digits behind the bundled network: the held-out split and how one digit is drawn in its 28x28 field.

Needs scikit-learn and Pillow, not PyTorch, so that tests measure held-out accuracy on the same split.
"""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["FIELD", "INK", "LABELS", "NO_DIGIT", "draw", "load", "split"]

FIELD = 28
INK = 20
LABELS = [str(digit) for digit in range(10)] + ["no digit"]
NO_DIGIT = 10

_HELD_OUT_SHARE = 0.2
_SPLIT_SEED = 231


def load() -> tuple[np.ndarray, np.ndarray]:
    """Return all digits as fields, uint8 (1797, 28, 28), and their classes, int64 (1797,)."""
    digits = load_digits()
    return np.stack([draw(image) for image in digits.images]), digits.target.astype(np.int64)


def split(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of the training digits and of the held-out digits, a fifth of each class."""
    random = np.random.default_rng(_SPLIT_SEED)
    held_out = []
    for digit in range(10):
        members = random.permutation(np.flatnonzero(classes == digit))
        held_out.append(members[: round(_HELD_OUT_SHARE * members.size)])
    chosen = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(classes.size), chosen), chosen


def draw(image: np.ndarray) -> np.ndarray:
    """Return the field, uint8 (28, 28), ink 255 on 0, of an 8x8 digit with values 0..16: 20x20 in the middle."""
    ink = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    field = np.zeros((FIELD, FIELD), np.uint8)
    margin = (FIELD - INK) // 2
    field[margin : margin + INK, margin : margin + INK] = ink.resize((INK, INK), Image.Resampling.BICUBIC)
    return field
