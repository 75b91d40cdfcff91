"""Loading: from an ONNX file, a native container or a graph to a Model."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convserve.errors import InputError, ModelFormatError, ModelNotFoundError
from convserve.formats.algorithms import ALGORITHMS, choose_algorithms, without_winograd
from convserve.formats.container import is_container, read_container
from convserve.formats.onnx import load_onnx
from convserve.formats.packing import pack_graph
from convserve.graph.ir import Graph
from convserve.graph.rewrites import REWRITTEN_AWAY, rewrite
from convserve.images.preprocess import Preprocess
from convserve.model import Model
from convserve.settings import parse_budget

__all__ = ["load"]


def load(
    source: str | os.PathLike[str] | bytes | Graph,
    *,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    algorithm: str = "auto",
    threads: int | None = None,
    fit: str = "floor",
    memory_budget: int | str | None = None,
    window: tuple[int, int] | None = None,
) -> Model:
    """Return the Model of an ONNX file, a native container (memory-mapped), ONNX bytes or a Graph.

    preprocess, labels: what classify and score_map do to images and call classes (labels: a list, or a text
    file with one a line); default what the container holds. algorithm: "auto" or "gemm". threads: default
    CONVSERVE_THREADS, else all this process may use. fit: "floor", as ONNX rounds strides that do not fit.
    memory_budget: bytes or a text such as "64MiB" for arena, scratch and held scores of each run.
    window: (height, width) for an ONNX file that leaves its input size open.
    Raises ModelNotFoundError, ModelFormatError, UnsupportedOpError, InputError.
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm is {algorithm!r}; allowed: {', '.join(ALGORITHMS)}")
    if fit != "floor":
        raise InputError(f"fit is {fit!r}; allowed: floor")
    if threads is not None and not 1 <= threads <= 256:
        raise InputError(f"threads is {threads!r}; allowed: 1 to 256")
    budget = parse_budget(memory_budget)
    name = ""
    if isinstance(source, Graph):
        graph = choose_algorithms(pack_graph(rewrite(source, window=window)), algorithm)
    elif isinstance(source, bytes) or not is_container(_existing(source)):
        graph = rewrite(load_onnx(source, window=window), window=window)
        graph = choose_algorithms(pack_graph(graph), algorithm)
        name = "" if isinstance(source, bytes) else Path(source).stem
    else:
        container = read_container(source)
        graph = without_winograd(container.graph) if algorithm == "gemm" else container.graph
        for node in graph.nodes:
            if node.op in REWRITTEN_AWAY:
                raise ModelFormatError(f"'{os.fspath(source)}': {node} has no packed form; import the network again")
        if preprocess is None and container.preprocess is not None:
            preprocess = Preprocess.from_dict(container.preprocess)
        labels = container.labels if labels is None else labels
        name = Path(source).stem
    graph = replace(graph, name=name or graph.name)
    return Model(
        graph,
        name=graph.name,
        preprocess=preprocess,
        labels=_label_list(labels),
        threads=threads,
        memory_budget=budget,
    )


def _existing(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_file():
        raise ModelNotFoundError(f"no model file at {os.fspath(path)!r}")
    return Path(path)


def _label_list(labels: Sequence[str] | str | os.PathLike[str] | None) -> list[str] | None:
    if labels is None:
        return None
    if isinstance(labels, (str, os.PathLike)):
        try:
            return Path(labels).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the labels file {os.fspath(labels)!r} cannot be read: {error}") from error
    return [str(label) for label in labels]
