"""Writes the native container: to a file, or into memory of its own; weights are packed piece by piece."""

import json
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from convserve.errors import MemoryBudgetError, ModelFormatError
from convserve.formats.container import (
    FORMAT,
    LAYER_ALIGNMENT,
    MAX_HEADER_BYTES,
    MEAN,
    Container,
    checked_labels,
    dtype_entry,
    parse_container,
)
from convserve.formats.graph_json import check_graph, graph_to_json
from convserve.formats.packing import Packing
from convserve.formats.storage import ALIGNMENT
from convserve.graph.ir import Graph

__all__ = ["container_bytes", "hold_container", "write_container"]


class _HasFields(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class _Layout:
    """Places tensors one behind the other and fills the holes."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.places: list[tuple[int, int]] = []
        self.end = 0
        self.version = 1
        self._fillers = 0

    def align(self, alignment: int) -> None:
        hole = -self.end % alignment
        if hole:
            self._entry(f"filler.{self._fillers}", "U8", (hole,), hole)
            self._fillers += 1

    def add(self, name: str, array: np.ndarray) -> None:
        self.align(ALIGNMENT)
        self.places.append((self.end, array.nbytes))
        dtype, since = dtype_entry(array.dtype)
        self.version = max(self.version, since)
        self._entry(name, dtype, array.shape, array.nbytes)

    def _entry(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        self.entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self.end, self.end + size]}
        self.end += size


def _lay_out(graph: Graph, mean: np.ndarray | None) -> tuple[_Layout, dict[tuple[int, str], str]]:
    layout, names = _Layout(), {}
    taken = {MEAN}
    for number, node in enumerate(graph.nodes):
        if not node.params:
            continue
        layout.align(LAYER_ALIGNMENT)
        for param, array in node.params.items():
            name = f"{node.name or node.output}.{param}"
            if name in taken:
                name = f"{name}#{number}"
            taken.add(name)
            names[number, param] = name
            layout.add(name, array)
    if mean is not None:
        layout.align(LAYER_ALIGNMENT)
        layout.add(MEAN, mean)
    return layout, names


class _Draft:
    """A container that is about to be written: its header and its size are known, its weights not packed yet."""

    def __init__(
        self,
        graph: Graph,
        preprocess: "Mapping[str, Any] | _HasFields | None",
        labels: Sequence[str] | None,
        packing: Packing,
    ) -> None:
        outline = packing.outline(graph)
        check_graph(outline)
        fields = None
        if preprocess is not None:
            fields = dict(preprocess if isinstance(preprocess, Mapping) else preprocess.to_dict())
        self._mean: np.ndarray | None = None
        if fields is not None and isinstance(fields.get("mean"), np.ndarray):
            self._mean, fields["mean"] = fields["mean"], {"tensor": MEAN}
        self._layout, names = _lay_out(outline, self._mean)
        metadata = {
            "format": FORMAT,
            "format_version": str(self._layout.version),
            "graph": _json_text(graph_to_json(outline, names)),
        }
        if fields is not None:
            metadata["preprocessing"] = _json_text(fields)
        if labels is not None:
            metadata["labels"] = _json_text(checked_labels(list(labels)))
        header = _json_text({"__metadata__": metadata, **self._layout.entries}).encode()
        self._header = header + b" " * (-(8 + len(header)) % LAYER_ALIGNMENT)
        if len(self._header) > MAX_HEADER_BYTES:
            raise ModelFormatError(
                f"the header would take {len(self._header)} bytes; at most {MAX_HEADER_BYTES} are allowed"
            )
        self._graph, self._packing = graph, packing
        self.size_bytes = 8 + len(self._header) + self._layout.end

    def _pieces(self) -> Iterator[np.ndarray]:
        for node in self._graph.nodes:
            yield from self._packing.pieces(node)
        if self._mean is not None:
            yield self._mean

    def write(self, stream: "BinaryIO | mmap.mmap") -> None:
        """Write header and data, packing piece by piece."""
        stream.write(len(self._header).to_bytes(8, "little"))
        stream.write(self._header)
        position = 0
        pieces = self._pieces()
        for begin, size in self._layout.places:
            stream.write(bytes(begin - position))
            position = begin
            while position < begin + size:
                values = np.ascontiguousarray(next(pieces))
                stream.write(values.reshape(-1).view(np.uint8).data)
                position += values.nbytes
        assert next(pieces, None) is None, "more values than the header says"


def write_container(
    path: str | os.PathLike[str],
    graph: Graph,
    *,
    preprocess: Mapping[str, Any] | _HasFields | None = None,
    labels: Sequence[str] | None = None,
    packing: Packing | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Write a rewritten graph, packed or not yet, as a container; the same graph gives the same bytes.

    preprocess is an images.Preprocess or what its to_dict gives; packing: default as the graph is. Weights are packed
    while they are written, piece by piece. An existing file is replaced at once, by renaming: who has it mapped keeps
    the old one. check: called when all weights were read; where it raises, the existing file stays. Raises
    ModelFormatError for what the container cannot hold, OSError where the folder cannot be written.
    """
    made = _Draft(graph, preprocess, labels, packing or Packing())
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        with draft.open("xb") as stream:
            made.write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if check is not None:
            check()
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def container_bytes(graph: Graph, *, packing: Packing | None = None) -> int:
    """Return the size of the container that a rewritten graph makes, without labels and preprocessing."""
    return _Draft(graph, None, None, packing or Packing()).size_bytes


def hold_container(graph: Graph, *, packing: Packing | None = None) -> Container:
    """Return a rewritten graph as a container in memory of its own, one allocation, instead of a mapped file.

    Raises ModelFormatError for what a container cannot hold, MemoryBudgetError where memory is refused.
    """
    made = _Draft(graph, None, None, packing or Packing())
    try:
        memory = mmap.mmap(-1, made.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryBudgetError(f"the operating system refused {made.size_bytes:,} bytes for weights") from None
    with suppress(OSError):  # a kernel without huge pages refuses the hint
        memory.madvise(mmap.MADV_HUGEPAGE)
    made.write(memory)
    content = np.frombuffer(memory, np.uint8)
    content.flags.writeable = False
    return parse_container(content)
