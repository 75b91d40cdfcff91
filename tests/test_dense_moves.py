"""Moves in score maps: what moves channels or whole blocks slides, rows of any number; what moves places does not."""

import numpy as np
import pytest
from builder import Builder
from reference import crops

import convserve
from convserve.errors import UnsupportedOpError
from convserve.graph.ir import Volume


def test_slices_of_channels_and_blocks_slide_while_rows_come():
    build = Builder(Volume(4, 6, 6))
    x = build.add_node("Slice", build.input, {"starts": (1, 0, 0), "ends": (0, 0, 0), "steps": (2, 1, 1)})
    x = build.add_node("Pad", x, {"pads": (1, 0, 0, 0, 0, 0), "mode": "constant", "value": 0.5})
    x = build.add_node("SpaceToDepth", x, {"blocksize": (2, 2), "mode": "DCR"})
    model = convserve.load(build.graph(build.conv(x, 5, 3)))
    image = np.random.default_rng(0).standard_normal((1, 4, 14, 10), np.float32)
    found = model.score_map(image)
    windows = crops(image, (6, 6), 2)
    wanted = np.array([[model.run(window[None])[0, :, 0, 0] for window in row] for row in windows])
    np.testing.assert_array_equal(found.scores, wanted)
    assert found.exactness == "exact"
    with model.row_stream(10, dtype="float32") as stream:
        pixels = image[0].transpose(1, 2, 0)
        blocks = [rows.copy() for part in np.split(pixels, 7) for _, rows in stream.feed(part)]
        blocks += [rows.copy() for _, rows in stream.finish()]
    np.testing.assert_array_equal(np.concatenate(blocks), wanted)


def test_what_moves_rows_cannot_slide():
    build = Builder(Volume(3, 6, 6))
    x = build.add_node("Pad", build.input, {"pads": (0, 1, 1, 0, 1, 1), "mode": "reflect", "value": 0.0})
    model = convserve.load(build.graph(build.conv(x, 5, 8)))
    image = np.zeros((1, 3, 9, 9), np.float32)
    with pytest.raises(UnsupportedOpError, match=r"Pad .* cannot slide"):
        model.score_map(image)
    assert model.score_map(image, method="crops").scores.shape == (1, 1, 5)
