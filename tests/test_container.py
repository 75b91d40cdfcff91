"""The native container: what is written comes back mapped and packed, and runs as it did from memory."""

import struct
from pathlib import Path

import numpy as np
import pytest
from container_files import every_operation, in_graph, rewrite_header, small
from safetensors import safe_open

import convserve
from convserve.errors import ModelFormatError, ModelNotFoundError
from convserve.formats import container
from convserve.formats.container import is_container, read_container
from convserve.formats.container_writer import write_container
from convserve.formats.onnx import load_onnx
from convserve.formats.packing import pack_graph, unpack_graph
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes
from convserve.images import Preprocess


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
    first = read.content.ctypes.data
    for node in read.graph.nodes:
        places = [array.ctypes.data - first for array in node.params.values()]
        assert all(place % 64 == 0 for place in places)
        assert all(0 < place < read.content.size for place in places)
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


def test_a_container_rewritten_without_a_lie_is_read(path: Path) -> None:
    rewrite_header(path, in_graph(lambda graph: None))
    assert_same(read_container(path).graph, pack_graph(small()))


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
    model = convserve.load(graph)
    write_container(target, model.graph)
    mapped = convserve.load(target)
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
