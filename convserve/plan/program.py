"""From a graph to what is scheduled: operations with their windows, and tensors with their rings.

A Concat is not an operation here: its inputs are written straight into channel slices of the joined
tensor's ring. An input that cannot lie there (it is joined twice) is copied by an Identity.
"""

from dataclasses import dataclass, field, replace

from convserve.formats.packing import WINOGRAD_REACH, is_winograd, winograd_tile
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import Window, infer_volumes, weight_shape, windows
from convserve.plan.in_place import lay_in_place

__all__ = ["WINOGRAD_GROUP", "WINOGRAD_POINTS", "Operation", "Program", "Tensor", "build_program"]


# As in kernels/winograd.pyx: products of a tile, floats between their runs of channels,
# tiles whose products lie in scratch at a time.
WINOGRAD_POINTS = 36
WINOGRAD_GAP = 16
WINOGRAD_GROUP = 56


@dataclass(slots=True, eq=False)
class Tensor:
    """One tensor of one image size, and the ring that holds its rows.

    root is the tensor whose ring it lies in (itself, the volume it is joined into, or one it overwrites),
    channel_offset its first channel there; parts are the tensors joined into it. rows_needed is how many of its rows
    anybody reads. For roots: ring_rows, pad_left/pad_right (pixels of zeros beside each row),
    first_use/last_use (segments), offset (bytes into the arena), spaced (pixels lie a line further apart than
    they are long), brief (whatever is written is read up before any step that has nothing to do with it, so that
    the brief rings of a segment may lie over one another).
    """

    index: int
    name: str
    volume: Volume
    root: int
    channel_offset: int = 0
    parts: tuple[int, ...] = ()
    rows_needed: int = 0
    ring_rows: int = 0
    pad_left: int = 0
    pad_right: int = 0
    first_use: int = -1
    last_use: int = -1
    offset: int = -1
    spaced: bool = False
    brief: bool = False

    @property
    def height(self) -> int:
        """Rows of the tensor."""
        assert self.volume.height is not None
        return self.volume.height

    @property
    def width(self) -> int:
        """Pixels of one row, without padding."""
        assert self.volume.width is not None
        return self.volume.width

    @property
    def pixel_pitch(self) -> int:
        """Floats from one pixel to the next: the channels, and a line more where `spaced`."""
        return self.volume.channels + (16 if self.spaced else 0)

    @property
    def row_pitch(self) -> int:
        """Floats from one ring row to the next: a whole number of 64-byte lines."""
        return -(-(self.pad_left + self.width + self.pad_right) * self.pixel_pitch // 16) * 16

    @property
    def ring_bytes(self) -> int:
        """Bytes of the ring for one image."""
        return self.ring_rows * self.row_pitch * 4


@dataclass(slots=True, eq=False)
class Operation:
    """One thing a step can do: "Read" the image, run a node, or "Write" output number `sink`."""

    index: int
    kind: str
    node: Node | None
    inputs: tuple[int, ...]
    output: int
    vertical: tuple[Window, ...]
    horizontal: tuple[Window, ...]
    sink: int = -1

    @property
    def name(self) -> str:
        """The node's name, or what the operation does at the border of the network."""
        return self.node.name if self.node else self.kind.lower()


@dataclass(slots=True)
class Program:
    """Operations in order, and the tensors between them; rows[i] is what output i delivers."""

    operations: list[Operation]
    tensors: list[Tensor]
    sink_rows: list[int] = field(default_factory=list)

    def forget(self) -> None:
        """Forget what a schedule said of the rings, to schedule anew."""
        for tensor in self.tensors:
            tensor.ring_rows, tensor.first_use, tensor.last_use, tensor.brief = 0, -1, -1, False

    def shown(self) -> list[Tensor]:
        """Return the tensor behind each output, in order."""
        writes = sorted((op for op in self.operations if op.kind == "Write"), key=lambda op: op.sink)
        return [self.tensors[op.inputs[0]] for op in writes]

    def leaves(self, index: int) -> list[int]:
        """Return the tensors that are written one by one to make up a tensor: itself, or the parts joined into it."""
        parts = self.tensors[index].parts
        return [leaf for part in parts for leaf in self.leaves(part)] if parts else [index]

    def rings(self) -> list[Tensor]:
        """Return the tensors that have a ring of their own."""
        return [tensor for tensor in self.tensors if tensor.root == tensor.index]

    def lives(self) -> list[tuple[int, int]]:
        """Return of each ring the first and the last operation that touches it; a Write belongs to the last of all."""
        last = sum(operation.kind != "Write" for operation in self.operations) - 1
        lives: dict[int, tuple[int, int]] = {}
        for operation in self.operations:
            for index in (*operation.inputs, operation.output):
                if index >= 0:
                    root = self.tensors[index].root
                    lives[root] = lives.get(root, (operation.index, 0))[0], min(operation.index, last)
        return [lives[tensor.index] for tensor in self.rings()]

    def rows_of(self, operation: Operation) -> int:
        """How many rows the operation has to produce."""
        if operation.kind == "Write":
            return self.sink_rows[operation.sink]
        return self.tensors[operation.output].rows_needed


def _join_once(graph: Graph) -> Graph:
    """Give every Concat inputs of its own: a tensor that is joined a second time is copied first."""
    joined: set[str] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "Concat":
            inputs = []
            for position, tensor in enumerate(node.inputs):
                if tensor in joined:
                    copy = f"{node.output}:{position}"
                    nodes.append(Node("Identity", copy, (tensor,), copy))
                    tensor = copy
                joined.add(tensor)
                inputs.append(tensor)
            node = node.changed(inputs=tuple(inputs))
        nodes.append(node)
    return replace(graph, nodes=nodes)


def build_program(
    graph: Graph, height: int, width: int, *, sink_rows: list[int] | None = None, in_place: bool = True
) -> Program:
    """Return the operations and tensors of a graph over one image size.

    sink_rows: rows that each output has to deliver (default: all that its tensor has). in_place: whether results
    may lie in the ring of an input that nobody reads any more.
    Raises ShapeError or ModelError where the image does not fit the network.
    """
    graph = _join_once(graph.showing(graph.outputs))
    volumes = infer_volumes(graph, height, width)
    tensors: list[Tensor] = []
    by_name: dict[str, int] = {}

    def add_tensor(name: str) -> int:
        by_name[name] = len(tensors)
        tensors.append(Tensor(len(tensors), name, volumes[name], len(tensors)))
        return by_name[name]

    operations: list[Operation] = []

    def add(kind: str, node: Node | None, inputs: tuple[int, ...], output: int, sink: int = -1) -> None:
        ins = [tensors[index].volume for index in inputs]
        pairs = [windows(node, number, ins) if node else (Window(), Window()) for number in range(len(ins))]
        operations.append(
            Operation(
                len(operations),
                kind,
                node,
                inputs,
                output,
                tuple(vertical for vertical, _ in pairs),
                tuple(horizontal for _, horizontal in pairs),
                sink,
            )
        )

    def add_winograd(node: Node, inputs: tuple[int, ...], output: int) -> None:
        # the tiles' transforms are a tensor of their own: it is banded, placed and counted like any other
        top, left, _, _ = node.attrs["pads"]
        tile = winograd_tile(node)
        height, width = (-(-size // tile) for size in (tensors[output].height, tensors[output].width))
        pitch = weight_shape(node)[1] * node.attrs["group"] + WINOGRAD_GAP
        tiles = len(tensors)
        tensors.append(Tensor(tiles, f"{node.output}:tiles", Volume(WINOGRAD_POINTS * pitch, height, width), tiles))
        down, across = Window(WINOGRAD_REACH, tile, top), Window(WINOGRAD_REACH, tile, left)
        operations.append(Operation(len(operations), "WinogradInput", node, inputs[:1], tiles, (down,), (across,)))
        read = (Window(repeat=tile), *(Window() for _ in inputs[1:]))
        operations.append(
            Operation(len(operations), "WinogradOutput", node, (tiles, *inputs[1:]), output, read, read)
        )

    def add_statistics(node: Node, inputs: tuple[int, ...], output: int) -> None:
        # what is normalized is read twice: whole for a factor and a shift per channel, then row by row
        found = len(tensors)
        x = tensors[inputs[0]]
        tensors.append(Tensor(found, f"{node.output}:statistics", Volume(2 * x.volume.channels, 1, 1), found))
        down, across = windows(node, 0, [x.volume])
        operations.append(Operation(len(operations), "GroupStatistics", node, inputs, found, (down,), (across,)))
        read = (Window(), Window(stride=0))
        operations.append(Operation(len(operations), "GroupNormalize", node, (*inputs, found), output, read, read))

    add("Read", None, (), add_tensor(graph.input_name))
    for node in graph.nodes:
        inputs = tuple(by_name[name] for name in node.inputs)
        output = add_tensor(node.output)
        if node.op == "Concat":
            tensors[output].parts = inputs
        elif is_winograd(node):
            add_winograd(node, inputs, output)
        elif node.op == "GroupNormalization":
            add_statistics(node, inputs, output)
        else:
            add(node.op, node, inputs, output)
    for number, shown in enumerate(graph.outputs):
        add("Write", None, (by_name[shown.tensor],), -1, number)

    rows = [tensors[by_name[shown.tensor]].height for shown in graph.outputs]
    program = Program(operations, tensors, [min(a, b) for a, b in zip(rows, sink_rows or rows, strict=True)])
    _place_parts(tensors)
    _find_rows_needed(program)
    if in_place:
        lay_in_place(program)
    _lay_out_rows(program)
    return program


def _place_parts(tensors: list[Tensor]) -> None:
    # a joined tensor comes after its parts, so going backwards settles the outer ones first
    for tensor in reversed(tensors):
        offset = tensor.channel_offset
        for part in tensor.parts:
            tensors[part].root = tensor.root
            tensors[part].channel_offset = offset
            offset += tensors[part].volume.channels


def _find_rows_needed(program: Program) -> None:
    tensors = program.tensors
    joined_into = {part: tensor for tensor in tensors for part in tensor.parts}
    for operation in reversed(program.operations):
        if operation.kind != "Write":
            # readers of a joined tensor come later, so they have said by now what they need
            output = tensors[operation.output]
            outer = joined_into.get(output.index)
            while outer is not None:
                output.rows_needed = max(output.rows_needed, outer.rows_needed)
                outer = joined_into.get(outer.index)
        rows = program.rows_of(operation)
        for index, window in zip(operation.inputs, operation.vertical, strict=True):
            needed = min(tensors[index].height, max(window.reads(0, rows)[1], 1)) if rows else 0
            tensors[index].rows_needed = max(tensors[index].rows_needed, needed)


def _lay_out_rows(program: Program) -> None:
    tensors = program.tensors
    for operation in program.operations:
        if operation.kind not in ("Conv", "WinogradInput"):
            continue
        window, x = operation.horizontal[0], tensors[operation.inputs[0]]
        root = tensors[x.root]
        last = (tensors[operation.output].width - 1) * window.stride - window.pad_begin + window.extent
        root.pad_left = max(root.pad_left, window.pad_begin)
        root.pad_right = max(root.pad_right, last - x.width)
        # pixels of a tile that lie a multiple of 4096 bytes apart would fall into the same places of the first cache
        if root.width > 1 and window.stride * root.volume.channels % 1024 == 0:
            root.spaced = True
