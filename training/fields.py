"""Random training windows: a lattice of distorted digits seen through a 28x28 field, on or off a digit's centre."""

import math

import torch
import torch.nn.functional as F

from training.digits import FIELD, NO_DIGIT

__all__ = ["random_windows"]

# A score map looks every 4 pixels, so some window lies within 2 pixels of each digit's centre.
_ON_CENTRE = 3.0
# Between the two distances a window has no right answer and is never shown.
_OFF_CENTRE = 8.0


def _uniform(random: torch.Generator, count: int, low: float, high: float) -> torch.Tensor:
    return torch.rand(count, generator=random) * (high - low) + low


def _distort(
    fields: torch.Tensor, shift_x: torch.Tensor, shift_y: torch.Tensor, random: torch.Generator
) -> torch.Tensor:
    """Return fields (n, 1, 28, 28) turned, scaled, sheared a little and moved by the shifts (pixels)."""
    count = fields.shape[0]
    angle = _uniform(random, count, -12, 12) * math.pi / 180
    scale_x = 1 / _uniform(random, count, 0.88, 1.15)
    scale_y = 1 / _uniform(random, count, 0.88, 1.15)
    shear = _uniform(random, count, -0.12, 0.12)
    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b = cos * scale_x, (shear - sin) * scale_x
    c, d = sin * scale_y, cos * scale_y
    # grid_sample maps output to input: the shift is undone first, then turned with the rest.
    x, y = -2 * shift_x / FIELD, -2 * shift_y / FIELD
    matrix = torch.stack([a, b, a * x + b * y, c, d, c * x + d * y], 1).view(count, 2, 3)
    grid = F.affine_grid(matrix, [count, 1, FIELD, FIELD], align_corners=False)
    return F.grid_sample(fields, grid, padding_mode="zeros", align_corners=False)


def _nearest(random: torch.Generator, pitch: torch.Tensor, on_centre: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return (x, y) from the window's centre to the nearest lattice digit, within or well outside the centre."""
    count = pitch.shape[1]
    x, y = (_uniform(random, count, -0.5, 0.5) * pitch[axis] for axis in range(2))
    # Pushing the larger offset out to the limit keeps every direction as likely as before.
    larger = torch.maximum(x.abs(), y.abs()).clamp(min=1e-3)
    stretch = torch.clamp(_OFF_CENTRE / larger, min=1.0)
    on_x, on_y = (_uniform(random, count, -_ON_CENTRE, _ON_CENTRE) for _ in range(2))
    return torch.where(on_centre, on_x, x * stretch), torch.where(on_centre, on_y, y * stretch)


def _blur(windows: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Return windows mixed with their 3x3 binomial blur; amount (n,) runs from 0 (sharp) to 1."""
    line = torch.tensor([0.25, 0.5, 0.25])
    blurred = F.conv2d(windows, torch.outer(line, line).view(1, 1, 3, 3), padding=1)
    return windows + amount.view(-1, 1, 1, 1) * (blurred - windows)


def random_windows(
    fields: torch.Tensor, classes: torch.Tensor, count: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows, float32 (count, 1, 28, 28) in 0..1, and their classes, int64 (count,).

    fields, float32 (n, 1, 28, 28) in 0..1, and classes are the digits to draw from. Three fifths of
    the windows have a digit within 3 pixels of their centre, with or without neighbours; the others
    are "no digit": gaps, digits cut by the border, pieces of two to four digits, plain noise.
    """
    on_centre = torch.rand(count, generator=random) < 0.6
    pitch = torch.stack([_uniform(random, count, 25, 44), _uniform(random, count, 25, 44)])
    near_x, near_y = _nearest(random, pitch, on_centre)
    crowd = _uniform(random, count, 0, 0.9)
    windows = torch.zeros(count, 1, FIELD, FIELD)
    labels = torch.full((count,), NO_DIGIT)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            x = near_x + column * pitch[0] + (row != 0) * _uniform(random, count, -6, 6)
            y = near_y + row * pitch[1] + (column != 0) * _uniform(random, count, -4, 4)
            centre = row == column == 0
            shown = torch.rand(count, generator=random) < (torch.where(on_centre, 1.0, 0.85) if centre else crowd)
            # A neighbour that jitter moved onto an off-centre window's middle would make its label wrong.
            shown &= torch.maximum(x.abs(), y.abs()) >= (0 if centre else _OFF_CENTRE)
            chosen = torch.randint(fields.shape[0], (count,), generator=random)
            ink = _uniform(random, count, 0.7, 1.0) * shown
            windows = torch.maximum(windows, _distort(fields[chosen], x, y, random) * ink.view(-1, 1, 1, 1))
            if centre:
                labels = torch.where(on_centre, classes[chosen], labels)
    windows = _blur(windows, _uniform(random, count, 0, 1) * (torch.rand(count, generator=random) < 0.5))
    strength = _uniform(random, count, 0, 0.06)
    loud = (torch.rand(count, generator=random) < 0.03) & ~on_centre
    strength = torch.where(loud, _uniform(random, count, 0.1, 0.5), strength).view(-1, 1, 1, 1)
    background = _uniform(random, count, 0, 0.08).view(-1, 1, 1, 1)
    noise = torch.randn(windows.shape, generator=random)
    return (torch.maximum(windows, background) + strength * noise).clamp(0, 1), labels
