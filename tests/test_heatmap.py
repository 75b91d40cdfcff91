"""Pictures of score maps: colours, places, peaks, refusals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.errors import InputError, ShapeError
from convserve.images import argmax_map, heat_map
from convserve.images.colours import class_colours, colour_scale, from_oklab, to_oklab
from convserve.images.heatmap import _Axis
from convserve.images.peaks import find_peaks


def pattern(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def test_the_colour_scale_grows_steadily_in_lightness() -> None:
    lightness = to_oklab(colour_scale().astype(float))[:, 0]
    assert (np.diff(lightness) > -0.002).all()
    assert lightness[-1] - lightness[0] > 0.7
    colours = pattern(5, 5).astype(float)
    assert np.abs(from_oklab(to_oklab(colours)).astype(int) - colours).max() <= 1


def test_classes_have_colours_apart() -> None:
    lab = to_oklab(class_colours(10).astype(float))
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2) + np.eye(10)
    assert distances.min() > 0.06


GEOMETRY: dict[str, Any] = {"stride": (4, 4), "window": (28, 28), "offset": (0, 0)}


def test_a_heat_map_is_brightest_at_the_peak_s_window() -> None:
    image = np.full((100, 160, 1), 60, np.uint8)
    scores = np.zeros((19, 34), np.float32)
    scores[5, 20] = 7
    picture = np.asarray(heat_map(image, scores, label="seven", **GEOMETRY).convert("L"), np.float32)
    zoom = picture.shape[1] // 160
    centre = ((5 * 4 + 14) * zoom, (20 * 4 + 14) * zoom)
    place = np.unravel_index(np.argmax(picture[: 100 * zoom]), (100 * zoom, 160 * zoom))
    assert np.abs(np.subtract(place, centre)).max() <= zoom
    assert picture.shape[0] > 100 * zoom


def test_a_heat_map_of_anything_is_a_picture() -> None:
    image = pattern(40, 60)
    geometry = {"stride": (8, 8), "window": (16, 16)}
    for scores in (np.full((4, 6), np.nan), np.zeros((4, 6)), np.array([[np.inf, -np.inf]]), np.ones((1, 1))):
        picture = heat_map(image, scores.astype(np.float32), label="a very long label " * 9, **geometry)
        assert picture.mode == "RGB"
        assert picture.width % 60 == 0
    fixed = [heat_map(image, np.full((4, 6), v, np.float32), value_range=(0, 1), **geometry) for v in (0.2, 0.9)]
    means = [np.asarray(picture)[: 40 * fixed[0].width // 60].mean() for picture in fixed]
    assert means[1] > means[0] + 10


def test_a_huge_image_is_drawn_small_and_its_peak_in_place() -> None:
    image = np.full((1500, 6000, 1), 60, np.uint8)
    scores = np.zeros((46, 186), np.float32)
    scores[20, 100] = 1
    picture = np.asarray(heat_map(image, scores, stride=(32, 32), window=(64, 64)).convert("L"), np.float32)
    assert picture.shape[1] == 2560
    place = np.unravel_index(np.argmax(picture[:640]), (640, 2560))
    assert np.abs(np.subtract(place, ((20 * 32 + 32) * 2560 / 6000, (100 * 32 + 32) * 2560 / 6000))).max() <= 2
    labels = ["seen", "unseen"]
    drawn = argmax_map(image, np.zeros((46, 186), int), scores, labels, stride=(32, 32), window=(64, 64))
    assert drawn.width == 2560


def test_heat_maps_refuse_what_they_cannot_draw() -> None:
    image, scores = pattern(40, 60), np.zeros((4, 6), np.float32)
    geometry = {"stride": (8, 8), "window": (16, 16)}
    with pytest.raises(ShapeError, match="the scores have shape"):
        heat_map(image, np.zeros((4, 6, 2), np.float32), **geometry)
    with pytest.raises(ShapeError, match="the image is float64"):
        heat_map(image / 255, scores, **geometry)
    with pytest.raises(InputError, match="opacity is 2"):
        heat_map(image, scores, opacity=2, **geometry)
    with pytest.raises(InputError, match=r"value_range is \(1, 0\)"):
        heat_map(image, scores, value_range=(1, 0), **geometry)
    with pytest.raises(ShapeError, match=r"lie in 0\.\.1"):
        argmax_map(image, np.full((4, 6), 2), scores, ["a", "b"], **geometry)
    with pytest.raises(ShapeError, match="must both be"):
        find_peaks(np.zeros((4, 5), int), scores, distance=(1, 1))


def test_peaks_are_the_middles_of_plateaus_of_other_classes_than_the_background() -> None:
    classes = np.full((20, 30), 10)
    scores = np.full((20, 30), 0.99, np.float32)
    for row, col, digit, height in ((4, 6, 3, 0.8), (12, 20, 7, 0.9), (4, 14, 5, 0.3)):
        classes[row - 1 : row + 2, col - 1 : col + 2] = digit
        scores[row - 1 : row + 2, col - 1 : col + 2] = height
    scores[0, 29] = np.nan
    assert find_peaks(classes, scores, distance=(3, 3), background=10) == [(12, 20), (4, 6)]
    assert find_peaks(classes, scores, distance=(3, 3), threshold=0.2, background=10)[-1] == (4, 14)
    assert find_peaks(classes, scores, distance=(30, 30), background=10) == [(12, 20)]


def test_an_argmax_map_colours_winners_and_leaves_the_background_gray() -> None:
    image = np.full((100, 160, 1), 60, np.uint8)
    classes, scores = np.full((19, 34), 2), np.ones((19, 34), np.float32)
    classes[8:11, 5:8], classes[8:11, 25:28] = 0, 1
    picture = argmax_map(image, classes, scores, ["zero", "one", "none"], background=2, **GEOMETRY)
    pixels = np.asarray(picture).astype(int)
    zoom = picture.width // 160
    spread = np.ptp(pixels, axis=2)
    assert spread[(9 * 4 + 14) * zoom, (6 * 4 + 14) * zoom] > 30
    assert spread[(9 * 4 + 14) * zoom, (26 * 4 + 14) * zoom] > 30
    assert spread[: 20 * zoom].max() <= 20
    many = argmax_map(image, np.arange(19 * 34).reshape(19, 34), scores, [f"class {n}" for n in range(646)], **GEOMETRY)
    assert many.width == picture.width


@given(
    st.integers(1, 9), st.integers(0, 5), st.integers(5, 12), st.integers(1, 30), st.floats(0, 0.99), st.floats(1, 8)
)
def test_each_position_lies_around_its_windows_centre(
    count: int, begin: int, stride: int, window: int, nearer: float, zoom: float
) -> None:
    nearer = nearer * stride if count > 1 else 0
    end = begin + (count - 1) * stride - nearer
    axis = _Axis(count, begin * zoom, stride * zoom, window * zoom, end * zoom)
    places = axis.pixels(int((end + window + stride) * zoom) + 2)
    inside = places[places >= 0]
    assert (np.diff(inside) >= 0).all()
    for position in range(count):
        centre = axis.at(position) + axis.window / 2
        steps = stride / (stride - nearer) if position >= count - 2 else 1
        if centre >= 0:
            assert abs(places[int(centre)] - (position + 0.5) * axis.stride) <= 1.5 + 2 * steps
