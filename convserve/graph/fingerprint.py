"""A hash of a network: its operations, how they are joined, and every bit of its parameters."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from convserve.graph.ir import Graph

__all__ = ["fingerprint"]

_HASHED_AT_ONCE = 1 << 20


def fingerprint(graph: Graph, preprocessing: Mapping[str, Any] | None) -> str:
    """Return 32 hexadecimal digits, the same for the same network read from the same file by the same version.

    preprocessing: what is done to pixels before, as plain data and arrays. Reads all of the parameters.
    """
    found = hashlib.blake2b(digest_size=16)
    for key, value in (preprocessing or {}).items():
        found.update(repr((key, value.tolist() if isinstance(value, np.ndarray) else value)).encode())
    found.update(repr((graph.input_name, graph.input_volume, graph.outputs)).encode())
    for node in graph.nodes:
        found.update(repr((node.op, node.inputs, node.output, sorted(node.attrs.items()))).encode())
        for name in sorted(node.params):
            values = node.params[name]
            found.update(repr((name, values.dtype.str, values.shape)).encode())
            flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            for begin in range(0, len(flat), _HASHED_AT_ONCE):
                found.update(flat[begin : begin + _HASHED_AT_ONCE].data)
    return found.hexdigest()
