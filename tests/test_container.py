"""The native container: what is written comes back mapped and packed, and no lie in a header passes."""

import json
import math
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import convserve
from convserve.errors import ModelFormatError, ModelNotFoundError
from convserve.formats import container
from convserve.formats.container import is_container, read_container, write_container
from convserve.formats.onnx import load_onnx
from convserve.formats.packing import pack_graph, unpack_graph
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes
from convserve.graph.rewrites import rewrite
from convserve.images import Preprocess


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
    flat = b.gemm(b.flatten(b.simple("Identity", x)), 10)
    return b.graph(b.simple("Softmax", flat), b.simple("GlobalMaxPool", x))


def small() -> Graph:
    b = Builder(Volume(1, 12, 12), name="small")
    x = b.pool("MaxPool", b.conv(b.input, 5, 3, activation="relu"), 2, strides=2)
    return b.graph(b.affine(b.conv(x, 3, 5)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "net.convserve"
    write_container(target, small(), preprocess=Preprocess(channels="gray", scale=1 / 255), labels=["a", "b", "ç"])
    return target


def assert_same(left: Graph, right: Graph) -> None:
    assert (left.name, left.input_name, left.input_volume) == (right.name, right.input_name, right.input_volume)
    assert left.outputs == right.outputs
    assert len(left.nodes) == len(right.nodes)
    for a, b in zip(left.nodes, right.nodes, strict=True):
        assert (a.op, a.name, a.inputs, a.output, a.attrs) == (b.op, b.name, b.inputs, b.output, b.attrs)
        assert {name: type(value) for name, value in a.attrs.items()} == {n: type(v) for n, v in b.attrs.items()}
        assert list(a.params) == list(b.params)
        for name, array in a.params.items():
            assert array.dtype == b.params[name].dtype == np.float32
            assert np.array_equal(array, b.params[name])


def test_every_operation_comes_back_as_it_was_packed(tmp_path: Path) -> None:
    graph = every_operation()
    write_container(tmp_path / "net.convserve", graph)
    read = read_container(tmp_path / "net.convserve")
    assert_same(read.graph, pack_graph(graph))
    assert_same(unpack_graph(read.graph), graph)
    assert infer_volumes(read.graph) == infer_volumes(graph)
    assert read.labels is None
    assert read.preprocess is None


def test_an_open_input_size_and_a_declared_output_shape_come_back(tmp_path: Path) -> None:
    graph = small()
    graph.input_volume = Volume(1, None, None)
    graph.outputs = [graph.outputs[0].__class__("scores", graph.outputs[0].tensor, (3, None, 1))]
    write_container(tmp_path / "net.convserve", graph)
    assert_same(read_container(tmp_path / "net.convserve").graph, pack_graph(graph))


def test_labels_and_preprocessing_come_back(path: Path, tmp_path: Path) -> None:
    read = read_container(path)
    assert read.labels == ["a", "b", "ç"]
    assert read.preprocess is not None
    assert Preprocess.from_dict(read.preprocess) == Preprocess(channels="gray", scale=1 / 255)
    mean = np.random.default_rng(1).random((4, 5, 3), np.float32)
    preprocess = Preprocess(resize=(4, 5), mean=mean, std=(1, 2, 3))
    write_container(tmp_path / "mean.convserve", small(), preprocess=preprocess)
    fields = read_container(tmp_path / "mean.convserve").preprocess
    assert fields is not None
    assert Preprocess.from_dict(fields) == preprocess


def test_safetensors_reads_the_file_and_finds_the_same_tensors(tmp_path: Path) -> None:
    target = tmp_path / "net.convserve"
    write_container(target, every_operation())
    arrays = [array for node in read_container(target).graph.nodes for array in node.params.values()]
    with safe_open(target, framework="numpy") as opened:
        names = [name for name in opened.keys() if not name.startswith("filler.")]  # noqa: SIM118
        assert {"format", "format_version", "graph"} <= set(opened.metadata())
        assert len(names) == len(arrays)
        foreign = {opened.get_tensor(name).tobytes() for name in names}
    assert foreign == {array.tobytes() for array in arrays}


def test_places_are_aligned_and_arrays_are_views_of_the_mapping(tmp_path: Path) -> None:
    target = tmp_path / "net.convserve"
    write_container(target, every_operation())
    read = read_container(target)
    first = read.mapping.ctypes.data
    for node in read.graph.nodes:
        places = [array.ctypes.data - first for array in node.params.values()]
        assert all(place % 64 == 0 for place in places)
        assert all(0 < place < read.mapping.size for place in places)
        if places:
            assert min(places) % 4096 == 0
        for array in node.params.values():
            assert not array.flags.writeable
            assert not array.flags.owndata
    length = struct.unpack("<Q", target.read_bytes()[:8])[0]
    assert (8 + length) % 4096 == 0


def test_the_same_graph_gives_the_same_bytes_packed_or_not(tmp_path: Path) -> None:
    graph = every_operation()
    files = [tmp_path / name for name in "abc"]
    write_container(files[0], graph, labels=["x"])
    write_container(files[1], pack_graph(graph), labels=["x"])
    for node in graph.nodes:
        node.attrs = dict(reversed(node.attrs.items()))
    write_container(files[2], graph, labels=["x"])
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_nodes_of_one_name_keep_their_own_weights(tmp_path: Path) -> None:
    graph = small()
    for node in graph.nodes:
        node.name = "same"
    write_container(tmp_path / "net.convserve", graph)
    assert_same(read_container(tmp_path / "net.convserve").graph, pack_graph(graph))


def test_replacing_a_mapped_file_leaves_the_reader_its_old_weights(path: Path) -> None:
    read = read_container(path)
    before = read.graph.nodes[0].params["panels"].copy()
    other = small()
    other.nodes[0].params["weight"] = other.nodes[0].params["weight"] + 1
    write_container(path, other)
    assert np.array_equal(read.graph.nodes[0].params["panels"], before)
    assert not np.array_equal(read_container(path).graph.nodes[0].params["panels"], before)


def test_a_failed_write_leaves_the_old_file_and_no_draft(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_container(path, small())
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_container_is_known_by_its_first_bytes(path: Path, tmp_path: Path) -> None:
    assert is_container(path)
    (tmp_path / "short").write_bytes(b"abc")
    (tmp_path / "onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    assert not is_container(tmp_path / "short")
    assert not is_container(tmp_path / "onnx")
    assert not is_container(tmp_path / "absent")


def test_a_missing_file_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no model file '.*absent'"):
        read_container(tmp_path / "absent")


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], *, pad: int = 4096) -> None:
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


FIRST = "conv0.panels"
SECOND = "conv0.bias_panels"
HEADER_LIES: list[tuple[str, Callable[[Any], None], str]] = [
    ("no metadata", setting(..., "__metadata__"), "__metadata__ is missing"),
    ("metadata no texts", setting(7, "__metadata__", "graph"), "values that are not texts"),
    ("another safetensors file", setting("pt", "__metadata__", "format"), "not a convserve container"),
    ("no version", setting(..., "__metadata__", "format_version"), "format_version is ''"),
    ("version no number", setting("1.5", "__metadata__", "format_version"), "format_version is '1.5'"),
    ("version 0", setting("0", "__metadata__", "format_version"), "format_version is '0'"),
    ("version from the future", setting("2", "__metadata__", "format_version"), "format version 2, from a newer"),
    ("no graph", setting(..., "__metadata__", "graph"), "metadata lack the graph"),
    ("tensor no object", setting(3, FIRST), "'conv0.panels' is no JSON object"),
    ("unknown dtype", setting("F8_E4M3", FIRST, "dtype"), "dtype 'F8_E4M3'; allowed: F32, U8"),
    ("dtype no text", setting(["F32"], FIRST, "dtype"), "allowed: F32, U8"),
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
    rewritten(path, change)
    with pytest.raises(ModelFormatError, match=message):
        read_container(path)


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in GRAPH_LIES], ids=[c[0] for c in GRAPH_LIES])
def test_a_lying_graph_is_refused(path: Path, change: Callable[[Any], None], message: str) -> None:
    rewritten(path, in_graph(change))
    with pytest.raises(ModelFormatError, match=message):
        read_container(path)


def test_a_container_rewritten_without_a_lie_is_read(path: Path) -> None:
    rewritten(path, in_graph(lambda graph: None))
    assert_same(read_container(path).graph, pack_graph(small()))


def test_data_that_begin_off_a_page_are_refused(path: Path) -> None:
    rewritten(path, lambda header: None, pad=64)
    with pytest.raises(ModelFormatError, match="it must be a multiple of 4096"):
        read_container(path)


def test_a_layer_off_its_page_is_refused(path: Path) -> None:
    def swap(graph: dict[str, Any]) -> None:
        for number, other in ((0, "conv2"), (2, "conv0")):
            graph["nodes"][number]["params"]["bias_panels"] = f"{other}.bias_panels"

    def first_layer_shares(graph: dict[str, Any]) -> None:
        swap(graph)
        graph["nodes"][3]["params"]["scale"] = graph["nodes"][3]["params"]["shift"]

    rewritten(path, in_graph(first_layer_shares))
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


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_header_with_random_damage_is_read_or_refused_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    target = tmp_path_factory.mktemp("damage") / "net.convserve"
    write_container(target, small())
    content = bytearray(target.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + len(bytes(content[8 : 8 + length]).rstrip())))] = data.draw(
            st.sampled_from(b'0123456789"{}[],:-\\\x00\xffAe')
        )
    target.write_bytes(content)
    with suppress(ModelFormatError):
        read_container(target)


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "net.convserve"
    graph = small()
    graph.nodes.append(Node("Relu", "odd", (graph.outputs[0].tensor,), "odd", {"slope": 0.1}))
    with pytest.raises(ModelFormatError, match="attribute 'slope', which Relu does not have"):
        write_container(target, graph)
    graph = small()
    graph.nodes[-1].params["scale"] = graph.nodes[-1].params["scale"].astype(np.float64)
    with pytest.raises(ModelFormatError, match="scale is float64; it must be float32"):
        write_container(target, graph)
    with pytest.raises(ModelFormatError, match="labels must be a list of texts"):
        write_container(target, small(), labels=[1, 2])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def assert_loads_alike(graph: Graph, target: Path) -> None:
    """Assert that a network gives the same bits from memory and from a container, whose weights stay mapped."""
    write_container(target, rewrite(graph, window=None))
    model, mapped = convserve.load(graph), convserve.load(target)
    for node in mapped.graph.nodes:
        assert not any(array.flags.writeable or array.flags.owndata for array in node.params.values())
    volume = model.graph.input_volume
    images = np.random.default_rng(3).random((2, volume.channels, volume.height, volume.width), np.float32)
    expected, found = model.run(images), mapped.run(images)
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(expected) == list(found)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)
    else:
        assert np.array_equal(expected, found)


def test_a_network_of_every_operation_runs_alike_from_memory_and_from_its_container(tmp_path: Path) -> None:
    assert_loads_alike(every_operation(), tmp_path / "net.convserve")


@pytest.mark.xfail(raises=KeyError, reason="fold_affine reads params['weight'] of a Conv that is packed already")
def test_a_container_that_was_not_rewritten_is_loaded_all_the_same(path: Path) -> None:
    image = np.random.default_rng(3).random((1, 1, 12, 12), np.float32)
    found = convserve.load(path).run(image)
    assert np.allclose(found, convserve.load(small()).run(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["lenet/lenet", "mnist/mnist_ort", "cifar10/cifar10_quick", "cifar10/resnet20", "squeezenet/squeezenet1.1"]
)
def test_trained_networks_run_alike_from_onnx_and_from_their_container(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    assert_loads_alike(load_onnx(shared_data / f"{name}.onnx"), tmp_path / "net.convserve")
