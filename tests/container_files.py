"""Networks to put into native containers, and ways to change the header of one that is written."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builder import Builder

from convserve.graph.ir import Graph, Volume


def every_operation() -> Graph:
    """Return a graph with each operation and each attribute the container can hold."""
    b = Builder(Volume(3, 20, 18))
    x = b.conv(b.input, 20, 3, pads=1, activation="relu")
    x = b.lrn(x, 5)
    shortcut = x
    x = b.conv(x, 20, (3, 2), group=20, auto_pad="SAME_UPPER")
    x = b.conv(x, 20, 1, residual=shortcut, activation="relu")
    x = b.affine(x, activation="relu")
    x = b.batch_normalization(x)
    x = b.simple("ChannelShuffle", x, group=4)
    x = b.conv(x, 8, 3, group=4, dilations=2)
    x = b.join(
        "Concat",
        b.pool("MaxPool", x, 3, strides=2, ceil_mode=True),
        b.pool("AveragePool", x, 3, strides=2, ceil_mode=True),
    )
    scale = b.conv(b.simple("GlobalAveragePool", x), 16, 1)
    x = b.join("Mul", x, scale)
    x = b.join("Add", x, b.simple("Relu", x), activation="relu")
    x = b.add_node("Pad", x, {"pads": (0, 1, 1, 0, 0, -1), "mode": "edge", "value": 0.0})
    x = b.add_node("Slice", x, {"starts": (0, 0, 0), "ends": (0, 1, 0), "steps": (1, 1, -1)})
    resize = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor", "roi": ()}
    resize |= {"antialias": False, "exclude_outside": False, "cubic_coeff_a": -0.75, "extrapolation_value": 0.0}
    x = b.add_node("Resize", x, resize | {"scales": (2.0, 0.0), "sizes": (0, 10)})
    x = b.add_node("SpaceToDepth", x, {"blocksize": (2, 2), "mode": "DCR"})
    x = b.add_node("DepthToSpace", x, {"blocksize": (1, 2), "mode": "CRD"})
    flat = b.gemm(b.flatten(b.simple("Identity", x)), 10)
    return b.graph(b.simple("Softmax", flat), b.simple("GlobalMaxPool", x))


def small() -> Graph:
    b = Builder(Volume(1, 12, 12), name="small")
    x = b.pool("MaxPool", b.conv(b.input, 5, 3, activation="relu"), 2, strides=2)
    return b.graph(b.affine(b.conv(x, 3, 5)))


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None], *, pad: int = 4096) -> None:
    """Change a container's header in place; the data stay, behind a header padded again."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def changed(header: dict[str, Any]) -> None:
        graph = json.loads(header["__metadata__"]["graph"])
        change(graph)
        header["__metadata__"]["graph"] = json.dumps(graph)

    return changed


def setting(value: Any, *keys: str | int) -> Callable[[Any], None]:
    """Return a change that sets the entry behind these keys, or deletes it where value is `...`."""

    def change(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        if value is ...:
            del record[keys[-1]]
        else:
            record[keys[-1]] = value

    return change
