"""python docs/draw_dense.py: the drawings of docs/dense.md, from the geometry and graphs that maps are made with."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import convserve
from convserve.graph.ir import Graph
from convserve.graph.ops import infer_volumes, windows
from convserve.graph.restride import least_work
from convserve.graph.sharing import passages
from convserve.images.colours import class_colours
from convserve.model import Model

__all__ = ["draw_crops", "draw_ring", "draw_strides", "draw_windows"]

FOLDER = Path(__file__).parent
PAPER, INK, QUIET, RULE = (255, 255, 255), (31, 41, 51), (102, 114, 127), (214, 220, 226)
Colour = tuple[int, int, int]


def _colours(count: int) -> list[Colour]:
    return [(int(r), int(g), int(b)) for r, g, b in class_colours(count)]


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int = 17, fill: Colour = INK) -> None:
    draw.text(at, text, fill, ImageFont.load_default(size=size))


def draw_windows(model: Model) -> Image.Image:
    """Return an image with two of its windows, and the map with their two scores."""
    found = model.score_map(np.zeros((1, 1, 40, 52), np.float32), edge="none")
    picture, draw = _sheet(1180, 470)
    pixel, left, top = 10, 30, 50
    height, width = found.image
    _text(draw, (left, 14), f"the image, {height}x{width} pixels")
    draw.rectangle((left, top, left + width * pixel, top + height * pixel), (243, 245, 247), RULE)
    cell, map_left, map_top = 44, 680, 120
    _text(draw, (map_left, 14), f"the map: {found.rows}x{found.cols} scores of each class, stride {found.stride[0]}")
    for row in range(found.rows):
        for col in range(found.cols):
            x, y = map_left + col * cell, map_top + row * cell
            draw.rectangle((x, y, x + cell, y + cell), (243, 245, 247), RULE)
    for (row, col), colour in zip(((0, 1), (3, 4), (1, 6)), _colours(3), strict=True):
        box = found.box(row, col)
        corners = (left + box[1] * pixel, top + box[0] * pixel, left + box[3] * pixel, top + box[2] * pixel)
        draw.rectangle(corners, None, colour, 4)
        x, y = map_left + col * cell, map_top + row * cell
        draw.rectangle((x + 3, y + 3, x + cell - 3, y + cell - 3), colour)
        draw.line((corners[2], (corners[1] + corners[3]) / 2, x + 3, y + cell / 2), colour, 2)
    note = "each score is the network's on that window of 28x28"
    _text(draw, (map_left, map_top + found.rows * cell + 16), note, 15, QUIET)
    return picture


def _chain(draw: ImageDraw.ImageDraw, graph: Graph, pixels: int, at: tuple[int, int], offset: int, step: int) -> None:
    """Draw a chain of layers from above, one row of a tensor's positions each, and what the last ones read."""
    volumes = infer_volumes(graph, pixels, graph.input_volume.width)
    nodes, jump, rows = graph.nodes, 1, {graph.input_name: (at[1], 1)}
    for number, node in enumerate(nodes, 1):
        along = windows(node, 0, [volumes[node.inputs[0]]])[0]
        jump *= along.stride
        rows[node.output] = (at[1] + number * 66, jump)
    # the middle of what a position sees gives its place
    field = {graph.input_name: 0.0}
    for node in nodes:
        along = windows(node, 0, [volumes[node.inputs[0]]])[0]
        before = rows[node.inputs[0]][1]
        field[node.output] = field[node.inputs[0]] + before * ((along.extent - 1) / 2 - along.pad_begin)

    def place(tensor: str, position: int) -> tuple[float, float]:
        y, jump = rows[tensor]
        return at[0] + (position * jump + field[tensor] + offset) * step, y

    palette = _colours(4)
    count = volumes[nodes[-1].output].height or 0
    wanted = {nodes[-1].output: dict.fromkeys(range(count), palette[offset % 2])}
    lines = []
    for node in reversed(nodes):
        along = windows(node, 0, [volumes[node.inputs[0]]])[0]
        for position, colour in wanted[node.output].items():
            for tap in range(along.kernel):
                read = position * along.stride - along.pad_begin + tap * along.dilation
                wanted.setdefault(node.inputs[0], {}).setdefault(read, colour)
                lines.append((place(node.output, position), place(node.inputs[0], read), position == 0))
    for start, end, first in sorted(lines, key=lambda line: line[2]):
        draw.line((*start, *end), palette[offset % 2] if first else RULE, 2 if first else 1)
    for tensor in rows:
        for position in range(volumes[tensor].height or 0):
            x, y = place(tensor, position)
            used = position in wanted[tensor]
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), palette[offset % 2] if used else PAPER, QUIET)


def draw_strides() -> Image.Image:
    """Return one small network along one axis: at its own stride, in two shifted passes, and à trous."""
    model = convserve.build("INPUT[8x8x1] -> CONV3-4 P0 -> POOL2 -> FC-2", cache=False)
    graph = model.graph
    picture, draw = _sheet(1180, 630)
    labels = ["image", "3 taps", "pool 2", "3 taps: score"]
    for x, title in (
        (30, "its own stride, 2"),
        (420, "two shifted passes, stride 1"),
        (810, "dilated layers, stride 1"),
    ):
        _text(draw, (x, 14), title, 19)
    for number, label in enumerate(labels):
        _text(draw, (30, 62 + number * 66), label, 13, QUIET)
        _text(draw, (420, 62 + number * 66), label, 13, QUIET)
        _text(draw, (810, 62 + number * 66), label, 13, QUIET)
    _chain(draw, graph, 12, (140, 70), 0, 20)
    _chain(draw, graph, 12, (530, 70), 0, 20)
    _chain(draw, graph, 11, (530, 400), 1, 20)
    _chain(draw, least_work(graph, (1, 1)), 12, (920, 70), 0, 20)
    notes = (
        (30, "every layer as it was trained"),
        (420, "the second pass begins one pixel later; its scores lie between the first's"),
        (810, "the pooling's stride is gone; what reads it steps over every other position"),
    )
    for x, note in notes:
        words, line, y = note.split(), "", 310
        for word in words:
            if len(line) + len(word) > 38:
                _text(draw, (x, y), line, 14, QUIET)
                line, y = "", y + 20
            line += word + " "
        _text(draw, (x, y), line, 14, QUIET)
    return picture


def draw_crops() -> Image.Image:
    """Return a crop's activations in a network of VGG-16's layers: what is the same in others, and what is its own."""
    net = "INPUT[224x224x3] -> [[CONV3-4 -> RELU]*2 -> POOL2]*2 -> [[CONV3-4 -> RELU]*3 -> POOL2]*3 -> FC-10"
    found = list(passages(convserve.build(net, cache=False).graph))
    picture, draw = _sheet(1180, 330)
    middle, (edge, corner) = (226, 232, 238), _colours(2)
    side, last = 190, {passage.size(0): passage for passage in found}
    shown = [last[size] for size in (224, 112, 56, 28, 14)]
    for number, passage in enumerate(shown):
        x, y, size = 30 + number * (side + 40), 50, passage.size(0)
        (low, high), cell = passage.clean[0], side / passage.size(0)
        _text(draw, (x, 14), f"{size}x{size}, stride {passage.stride[0]}")
        draw.rectangle((x, y, x + side, y + side), corner)
        draw.rectangle((x + low * cell, y, x + high * cell, y + side), edge)
        draw.rectangle((x, y + low * cell, x + side, y + high * cell), edge)
        draw.rectangle((x + low * cell, y + low * cell, x + high * cell, y + high * cell), middle)
    words = ("the same for all crops", "for those in its row, or in its column", "of this crop alone")
    for number, (colour, text) in enumerate(zip((middle, edge, corner), words, strict=True)):
        x = 30 + number * 370
        draw.rectangle((x, 275, x + 22, 297), colour, QUIET)
        _text(draw, (x + 32, 276), text, 16)
    return picture


def draw_ring() -> Image.Image:
    """Return the map of a padded network: where it has the bits of the same pixels in a larger image, and its ring."""
    net = "INPUT[24x24x3] -> [CONV3-8 -> RELU -> CONV3-8 -> RELU -> AVGPOOL2]*2 -> FC-4"
    model = convserve.build(net, algorithm="gemm", cache=False)
    large = np.random.default_rng(1).standard_normal((1, 3, 144, 160), np.float32)
    picture, draw = _sheet(1180, 430)
    same, ring = (226, 232, 238), _colours(3)[0]
    for x, method in ((30, "shifted"), (610, "atrous")):
        cut = np.ascontiguousarray(large[:, :, 40:89, 40:101])
        found, around = (model.score_map(part, stride=2, method=method) for part in (cut, large))
        there = around.scores[20 : 20 + found.rows, 20 : 20 + found.cols]
        differs = (found.scores != there).any(axis=2)
        _text(draw, (x, 14), f'method="{method}": ring {found.ring}', 17)
        cell = 22
        for row, col in np.ndindex(differs.shape):
            corner = x + col * cell, 56 + row * cell
            inside = found.ring[0] <= row < found.rows - found.ring[2]
            inside &= found.ring[1] <= col < found.cols - found.ring[3]
            fill = ring if differs[row, col] else same if inside else RULE
            draw.rectangle((*corner, corner[0] + cell, corner[1] + cell), fill, PAPER)
    note = "pale: the bits that the same pixels have in a larger image; coloured: other bits, all within the ring"
    _text(draw, (30, 390), note, 15, QUIET)
    return picture


def main() -> None:
    """Write the drawings beside docs/dense.md."""
    lenet = convserve.build("INPUT[28x28x1] -> CONV5-4 P0 -> POOL2 -> CONV5-4 P0 -> POOL2 -> FC-4", cache=False)
    drawings = {"windows": draw_windows(lenet), "strides": draw_strides(), "ring": draw_ring(), "crops": draw_crops()}
    for name, picture in drawings.items():
        picture.save(FOLDER / f"dense-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
