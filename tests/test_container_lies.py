"""Every way in which a container's header can lie is refused, with a sentence that says how."""

import math
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import in_graph, rewrite_header, setting, small
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.errors import ModelFormatError
from convserve.formats.container import read_container
from convserve.formats.container_writer import write_container
from convserve.formats.packing import Packing
from convserve.formats.storage import WEIGHT_TYPES
from convserve.images import Preprocess


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "net.convserve"
    write_container(target, small(), preprocess=Preprocess(channels="gray", scale=1 / 255), labels=["a", "b", "ç"])
    return target


FIRST = "conv0.panels"
SECOND = "conv0.bias_panels"
HEADER_LIES: list[tuple[str, Callable[[Any], None], str]] = [
    ("no metadata", setting(..., "__metadata__"), "not a convserve container"),
    ("metadata no texts", setting(7, "__metadata__", "graph"), "values that are not texts"),
    ("another safetensors file", setting("pt", "__metadata__", "format"), "not a convserve container"),
    ("no version", setting(..., "__metadata__", "format_version"), "format_version is ''"),
    ("version no number", setting("1.5", "__metadata__", "format_version"), "format_version is '1.5'"),
    ("version 0", setting("0", "__metadata__", "format_version"), "format_version is '0'"),
    ("version from the future", setting("3", "__metadata__", "format_version"), "format version 3, from a newer"),
    ("no graph", setting(..., "__metadata__", "graph"), "metadata lack the graph"),
    ("tensor no object", setting(3, FIRST), "'conv0.panels' is no JSON object"),
    ("unknown dtype", setting("F8_E4M3", FIRST, "dtype"), "dtype 'F8_E4M3'; allowed in format version 1: F32, U8"),
    ("dtype no text", setting(["F32"], FIRST, "dtype"), "allowed in format version 1: F32, U8"),
    ("other dtype", setting("U8", FIRST, "dtype"), "takes 144 bytes, but has 576"),
    ("shape no list", setting(144, FIRST, "shape"), "shape 144; it must be"),
    ("shape negative", setting([-1, -1, 9, 16], FIRST, "shape"), "it must be at most 8 sizes above 0"),
    ("shape zero", setting([0, 1 << 62], FIRST, "shape"), "sizes above 0"),
    ("shape of truth values", setting([True, True, 9, 16], FIRST, "shape"), "sizes above 0"),
    ("shape of fractions", setting([1.0, 1, 9, 16], FIRST, "shape"), "sizes above 0"),
    ("shape of many dimensions", setting([1] * 9 + [144], FIRST, "shape"), "at most 8 sizes"),
    ("shape too large", setting([1, 1, 9, 17], FIRST, "shape"), "takes 612 bytes, but has 576"),
    ("shape that wraps", setting([1 << 32, 1 << 32, 9, 16], FIRST, "shape"), "takes .* bytes, but has 576"),
    ("offsets missing", setting(..., FIRST, "data_offsets"), "data_offsets None"),
    ("three offsets", setting([0, 576, 576], FIRST, "data_offsets"), "must be two whole numbers"),
    ("negative offsets", setting([-576, 0], FIRST, "data_offsets"), "must be two whole numbers"),
    ("offsets backwards", setting([576, 0], FIRST, "data_offsets"), "lies at bytes 576 to 0"),
    ("outside", setting([1 << 40, (1 << 40) + 576], FIRST, "data_offsets"), "lies at bytes 1099511627776"),
    ("overlap", setting([512, 576], SECOND, "data_offsets"), "'conv0.bias_panels' at byte 512 overlaps"),
    ("hole", setting(..., "filler.0"), "leaves a hole"),
    ("unaligned", setting([32, 608], FIRST, "data_offsets"), "begins at byte 32; tensors must begin at multiples"),
    ("labels not JSON", setting("[", "__metadata__", "labels"), "the list of labels is not JSON"),
    ("labels no texts", setting('["a", 1]', "__metadata__", "labels"), "labels must be a list of texts"),
    ("preprocessing no object", setting("[]", "__metadata__", "preprocessing"), "preprocessing is no JSON object"),
    (
        "preprocessing without its mean",
        setting('{"mean": {"tensor": "none"}}', "__metadata__", "preprocessing"),
        "takes its mean from the tensor 'none'",
    ),
    ("graph not JSON", setting("{", "__metadata__", "graph"), "the graph is not JSON"),
    ("graph too deep", setting("[" * 100_000, "__metadata__", "graph"), "the graph is not JSON"),
    ("graph with NaN", setting('{"name": NaN}', "__metadata__", "graph"), "the graph is not JSON"),
    ("graph no object", setting("[]", "__metadata__", "graph"), "must be a JSON object"),
]

GRAPH_LIES: list[tuple[str, Callable[[Any], None], str]] = [
    ("no nodes", setting(..., "nodes"), "the graph lacks the entry 'nodes'"),
    ("nodes no list", setting({}, "nodes"), "nodes = {}, which is of the wrong type"),
    ("node no object", setting(1, "nodes", 0), "node 0 of the graph is 1"),
    ("name no text", setting(3, "nodes", 0, "name"), "name = 3, which is of the wrong type"),
    ("unknown op", setting("Pickle", "nodes", 1, "op"), "is no operation that convserve knows"),
    ("missing tensor", setting("none", "nodes", 0, "params", "panels"), "tensor 'none', which is not there"),
    ("tensor no name", setting([1], "nodes", 0, "params", "panels"), "which is not there"),
    ("filler as a weight", setting("filler.0", "nodes", 0, "params", "panels"), "'filler.0', which is not there"),
    ("missing param", setting(..., "nodes", 0, "params", "bias_panels"), "it must have"),
    ("unpacked param", setting(FIRST, "nodes", 0, "params", "weight"), "it must have"),
    ("another's weights", setting("conv2.panels", "nodes", 0, "params", "panels"), "panels has shape"),
    ("short affine", setting(SECOND, "nodes", 3, "params", "scale"), r"scale has shape \(1, 16\); it must be \(3,\)"),
    ("missing attribute", setting(..., "nodes", 0, "attrs", "strides"), "lacks the attribute strides"),
    ("foreign attribute", setting(1, "nodes", 0, "attrs", "epsilon"), "attribute 'epsilon', which Conv does not have"),
    ("attribute of another type", setting("2", "nodes", 0, "attrs", "strides"), "strides = '2'; it must be two whole"),
    ("stride 0", setting([0, 1], "nodes", 0, "attrs", "strides"), r"strides = \(0, 1\)"),
    ("stride true", setting([True, 1], "nodes", 0, "attrs", "strides"), r"strides = \(True, 1\)"),
    ("pads negative", setting([0, 0, -1, 0], "nodes", 0, "attrs", "pads"), "four whole numbers from 0"),
    ("kernel too large", setting([1 << 31, 1], "nodes", 1, "attrs", "kernel_shape"), "kernel_shape"),
    ("kernel other than weights", setting([2, 2], "nodes", 0, "attrs", "kernel_shape"), "but weights"),
    ("group 0", setting(0, "nodes", 0, "attrs", "group"), "group = 0"),
    ("group 2", setting(2, "nodes", 0, "attrs", "group"), "do not fit an input of 1 channels"),
    ("activation", setting("gelu", "nodes", 0, "attrs", "activation"), "activation = 'gelu'"),
    ("activation no text", setting([[]], "nodes", 0, "attrs", "activation"), "it must be"),
    ("ceil_mode", setting(1, "nodes", 1, "attrs", "ceil_mode"), "ceil_mode = 1; it must be true or false"),
    ("inputs no texts", setting([5], "nodes", 0, "inputs"), "names the tensor 5"),
    ("no input", setting([], "nodes", 1, "inputs"), "reads 0 tensor"),
    ("two inputs", setting(["x", "x"], "nodes", 1, "inputs"), "reads 2 tensor"),
    ("residual of another size", setting(["x", "x"], "nodes", 0, "inputs"), "residual volume 12x12x1 does not fit"),
    ("reads ahead", setting(["affine3"], "nodes", 1, "inputs"), "which nothing before it writes"),
    ("written twice", setting("conv0", "nodes", 1, "output"), "which exists already"),
    ("volume of two", setting([1, 12], "input", "volume"), "it must be channels, height, width"),
    ("volume negative", setting([1, -12, 12], "input", "volume"), "it must be channels, height, width"),
    ("volume too small", setting([1, 2, 2], "input", "volume"), "contradicts itself"),
    ("input of more channels", setting([3, 12, 12], "input", "volume"), "do not fit an input of 3 channels"),
    ("no outputs", setting([], "outputs"), "has no output"),
    ("output of nothing", setting("none", "outputs", 0, "tensor"), "which nothing writes"),
    ("output of another shape", setting([4], "outputs", 0, "shape"), "declares 4 values, but has 3"),
    ("output shape no sizes", setting(["3"], "outputs", 0, "shape"), "must be whole numbers or null"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in HEADER_LIES], ids=[c[0] for c in HEADER_LIES])
def test_a_lying_header_is_refused(path: Path, change: Callable[[Any], None], message: str) -> None:
    rewrite_header(path, change)
    with pytest.raises(ModelFormatError, match=message):
        read_container(path)


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in GRAPH_LIES], ids=[c[0] for c in GRAPH_LIES])
def test_a_lying_graph_is_refused(path: Path, change: Callable[[Any], None], message: str) -> None:
    rewrite_header(path, in_graph(change))
    with pytest.raises(ModelFormatError, match=message):
        read_container(path)


def test_data_that_begin_off_a_page_are_refused(path: Path) -> None:
    rewrite_header(path, lambda header: None, pad=64)
    with pytest.raises(ModelFormatError, match="it must be a multiple of 4096"):
        read_container(path)


def test_a_layer_off_its_page_is_refused(path: Path) -> None:
    def swap(graph: dict[str, Any]) -> None:
        for number, other in ((0, "conv2"), (2, "conv0")):
            graph["nodes"][number]["params"]["bias_panels"] = f"{other}.bias_panels"

    def first_layer_shares(graph: dict[str, Any]) -> None:
        swap(graph)
        graph["nodes"][3]["params"]["scale"] = graph["nodes"][3]["params"]["shift"]

    rewrite_header(path, in_graph(first_layer_shares))
    with pytest.raises(ModelFormatError, match="layers begin at multiples of 4096"):
        read_container(path)


@pytest.mark.parametrize("length", [(16 << 20) + 1, 1 << 62, (1 << 64) - 1])
def test_a_huge_header_is_refused_before_it_is_read(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(ModelFormatError, match=f"the header claims {length} bytes; at most 16777216"):
        read_container(path)


def test_a_header_longer_than_the_file_is_refused(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 20) + path.read_bytes()[8:])
    with pytest.raises(ModelFormatError, match="claims 1048576 bytes, but the file has only"):
        read_container(path)


@pytest.mark.parametrize("text", [b"", b"{", b"nonsense", b"[]", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 9000])
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    target = tmp_path / "net.convserve"
    target.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelFormatError, match=r"the header is n(ot JSON|o JSON object)"):
        read_container(target)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    target = tmp_path_factory.mktemp("cut") / "net.convserve"
    write_container(target, small())
    content = target.read_bytes()
    target.write_bytes(content[: math.floor(share * len(content))])
    with pytest.raises(ModelFormatError):
        read_container(target)


def test_bytes_behind_the_last_tensor_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(64))
    with pytest.raises(ModelFormatError, match=r"tensors end at byte .* but the file has"):
        read_container(path)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    target = tmp_path / "half.convserve"
    preprocess = Preprocess(channels="gray", mean=np.ones((12, 12, 1), np.float32))
    write_container(target, small(), preprocess=preprocess, packing=Packing(weights="fp16"))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("1", "__metadata__", "format_version"), "dtype 'F16'; allowed in format version 1: F32, U8"),
        (setting("F32", FIRST, "dtype"), "takes 576 bytes, but has 288"),
        (setting("F16", SECOND, "dtype"), "takes 32 bytes, but has 64"),
        (in_graph(setting("conv2.bias_panels", "nodes", 0, "params", "panels")), "panels has shape"),
        (in_graph(setting(FIRST, "nodes", 0, "params", "bias_panels")), "bias_panels is float16; it must be float32"),
        (in_graph(setting(FIRST, "nodes", 3, "params", "scale")), "scale is float16; it must be float32"),
        (
            setting('{"mean": {"tensor": "conv0.panels"}}', "__metadata__", "preprocessing"),
            "mean is the tensor 'conv0.panels', which must be float32",
        ),
    ],
)
def test_lies_about_halves_are_refused(halves: Path, change: Callable[[Any], None], message: str) -> None:
    rewrite_header(halves, change)
    with pytest.raises(ModelFormatError, match=message):
        read_container(halves)


def test_halves_of_the_other_kind_are_a_change_of_values_and_no_lie(halves: Path) -> None:
    rewrite_header(halves, setting("BF16", FIRST, "dtype"))
    assert read_container(halves).graph.nodes[0].params["panels"].dtype == np.uint16


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_header_with_random_damage_is_read_or_refused_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    target = tmp_path_factory.mktemp("damage") / "net.convserve"
    write_container(target, small(), packing=Packing(weights=data.draw(st.sampled_from(list(WEIGHT_TYPES)))))
    content = bytearray(target.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + len(bytes(content[8 : 8 + length]).rstrip())))] = data.draw(
            st.sampled_from(b'0123456789"{}[],:-\\\x00\xffAe')
        )
    target.write_bytes(content)
    with suppress(ModelFormatError):
        read_container(target)
