"""Built-in networks with the parameters of a PyTorch state dict: what is taken, what is refused and how it is said."""

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from state_dicts import saved, state_dict

import convserve
from convserve.cli.main import main
from convserve.errors import InputError, ModelError, ModelFormatError, ModelNotFoundError
from convserve.formats.state_dict import StateDict, state_dict_graph
from convserve.formats.storage import narrowed, widened

PATTERN = "INPUT[12x12x3] -> CONV3-8 -> BN -> RELU -> POOL2 -> FC-16 -> RELU -> DROPOUT -> FC-5"
State = dict[str, np.ndarray]


def image(model: convserve.Model, batch: int = 1) -> np.ndarray:
    volume = model.graph.input_volume
    shape = (batch, volume.channels, volume.height or 0, volume.width or 0)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def answers(model: convserve.Model) -> np.ndarray:
    return np.asarray(model.run(image(model)))


def raw_file(path: Path, entries: list[tuple[str, str, tuple[int, ...], bytes]]) -> Path:
    """Write a safetensors file of any dtypes; its header may have any length."""
    header, data = {}, b""
    for name, dtype, shape, content in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("network", ["lenet", "resnet18", PATTERN])
def test_parameters_from_a_file_give_the_bits_of_the_same_parameters(network: str, tmp_path: Path) -> None:
    path = saved(tmp_path, state_dict(network, seed=3))
    read, drawn = convserve.build(network, parameters=path), convserve.build(network, seed=3)
    assert read.name == drawn.name
    np.testing.assert_array_equal(answers(read), answers(drawn))


def test_float32_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    state = StateDict(saved(tmp_path, state_dict("lenet")))
    graph = state_dict_graph("lenet", state)
    first, last = state.content.ctypes.data, state.content.ctypes.data + state.content.size
    for node in graph.nodes:
        for array in node.params.values():
            assert first <= array.ctypes.data < last
            assert not array.flags.writeable


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_halves_are_widened(dtype: str, tmp_path: Path) -> None:
    state = {name: array for name, array in state_dict(PATTERN).items() if array.dtype == np.float32}
    halves = {name: narrowed(array, dtype) for name, array in state.items()}
    safetensors_dtype = {"fp16": "F16", "bf16": "BF16"}[dtype]
    entries = [(name, safetensors_dtype, array.shape, array.tobytes()) for name, array in halves.items()]
    path = raw_file(tmp_path / "half.safetensors", entries)
    wide = saved(tmp_path, {name: widened(array) for name, array in halves.items()})
    half, same = convserve.build(PATTERN, parameters=path), convserve.build(PATTERN, parameters=wide)
    np.testing.assert_array_equal(answers(half), answers(same))


def test_tensors_may_lie_at_any_byte(tmp_path: Path) -> None:
    entries = [("flag", "U8", (1,), b"\1")]
    entries += [(name, "F32", array.shape, array.tobytes()) for name, array in state_dict("lenet").items()]
    for pad in range(4):
        path = raw_file(tmp_path / "net.safetensors", [("x" * pad + entries[0][0], *entries[0][1:]), *entries[1:]])
        state = StateDict(path)
        for name, _, shape, content in entries[1:]:
            array = state.array(name)
            assert array.flags.aligned
            assert array.shape == shape
            assert array.tobytes() == content


@pytest.mark.parametrize(("network", "classes"), [("lenet", 3), ("resnet18", 7), ("alexnet-torchvision", 2)])
def test_a_network_has_as_many_classes_as_the_file(network: str, classes: int, tmp_path: Path) -> None:
    state = StateDict(saved(tmp_path, state_dict(network, classes=classes)))
    graph = state_dict_graph(network, state)
    assert graph.outputs[0].shape == (classes,)
    assert graph.nodes[-1].params["weight"].shape[0] == classes


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_a_prefix_of_all_names_is_left_out(prefix: str, tmp_path: Path) -> None:
    state = state_dict("lenet")
    path = saved(tmp_path, {prefix + name: array for name, array in state.items()})
    assert sorted(StateDict(path).shapes) == sorted(state)


def test_a_prefix_of_some_names_is_no_prefix(tmp_path: Path) -> None:
    state = state_dict("lenet")
    state["module.features.0.bias"] = state.pop("features.0.bias")
    with pytest.raises(ModelError, match=r"it lacks features\.0\.bias \(20\); the network has no module\.features\.0"):
        convserve.build("lenet", parameters=saved(tmp_path, state))


def test_heads_that_only_training_needs_are_left_out(tmp_path: Path) -> None:
    state = state_dict("googlenet", classes=4)
    state["aux1.fc2.weight"] = state["aux2.fc2.weight"] = np.zeros((4, 8), np.float32)
    graph = state_dict_graph("googlenet", StateDict(saved(tmp_path, state)))
    assert graph.outputs[0].shape == (4,)
    other = state_dict("lenet") | {"aux1.fc2.weight": np.zeros((4, 8), np.float32)}
    with pytest.raises(ModelError, match=r"lenet: the network has no aux1\.fc2\.weight \(4x8\)"):
        convserve.build("lenet", parameters=saved(tmp_path, other))


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: array for name, array in state.items() if name not in names}


def shaped(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("classifier.2.bias"), "it lacks classifier.2.bias (10)"),
        (shaped("ema", 4), "the network has no ema (4)"),
        (shaped("features.0.weight", 20, 3, 5, 5), "features.0.weight is 20x3x5x5 where 20x1x5x5 is wanted"),
        # the last layer's outputs are free, its inputs are not
        (shaped("classifier.2.weight", 10, 11), "classifier.2.weight is 10x11 where 10x500 is wanted"),
        (shaped("classifier.2.weight", 7, 500), "classifier.2.bias is 10 where 7 is wanted"),
        (shaped("classifier.2.weight", 0, 500), "classifier.2.weight is 0x500 where 10x500 is wanted"),
        (shaped("classifier.2.bias"), "classifier.2.bias is one value where 10 is wanted"),
        (lambda state: {}, "it lacks features.0.weight (20x1x5x5), features.0.bias (20), "
                           "features.2.weight (50x20x5x5), features.2.bias (50) and 4 more"),
    ],
)  # fmt: skip
def test_a_file_of_other_parameters_is_refused_in_one_sentence(
    change: Callable[[State], State], said: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, change(state_dict("lenet")))
    with pytest.raises(ModelError) as caught:
        convserve.build("lenet", parameters=path)
    assert str(caught.value) == f"'{path}' is no state dict of lenet: {said}"


def test_a_pattern_says_itself_how_many_classes_it_has(tmp_path: Path) -> None:
    path = saved(tmp_path, state_dict(PATTERN.replace("FC-5", "FC-6")))
    with pytest.raises(ModelError, match=r"of this pattern: classifier\.3\.weight is 6x16 where 5x16 is wanted"):
        convserve.build(PATTERN, parameters=path)


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("I64", 8), ("I8", 1), ("F8_E4M3", 1)])
def test_other_types_than_floats_of_32_and_16_bits_are_refused(dtype: str, size: int, tmp_path: Path) -> None:
    kinds = {name: (dtype, size) if name == "features.2.bias" else ("F32", 4) for name in state_dict("lenet")}
    entries = [
        (name, kinds[name][0], array.shape, bytes(array.size * kinds[name][1]))
        for name, array in state_dict("lenet").items()
    ]
    path = raw_file(tmp_path / "net.safetensors", entries)
    with pytest.raises(ModelFormatError, match=rf"the tensor 'features\.2\.bias' is {dtype}; allowed: F32, F16"):
        convserve.build("lenet", parameters=path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"fc.weight": [1.0]}, protocol=2))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({"fc.weight": [1.0]}))


@pytest.mark.parametrize("write", [pickled, zipped])
def test_a_pickle_is_refused_with_the_way_out(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    write(path)
    way_out = "safetensors.torch.save_file(torch.load('resnet50.pth', weights_only=True), 'resnet50.safetensors')"
    for read in (lambda: convserve.build("resnet50", parameters=path), lambda: convserve.load(path)):
        with pytest.raises(ModelFormatError, match=re.escape(way_out)):
            read()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not in the safetensors format, or truncated"),
        (b"\x01\0\0\0\0\0\0\0{", "is not in the safetensors format, or truncated"),
        (b"no tensors here, just text", "is not in the safetensors format, or truncated"),
        (save({"features.0.bias": np.zeros(20, np.float32)})[:-1], "is not in the safetensors format, or truncated"),
        (save({"features.0.bias": np.zeros(20, np.float32)}) + b"\0", "is not in the safetensors format, or truncated"),
    ],
    ids=["empty", "half a header", "text", "truncated", "too long"],
)
def test_what_is_no_safetensors_file_is_said(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=f"'{re.escape(str(path))}' {said}") as caught:
        convserve.build("lenet", parameters=path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        convserve.build("lenet", parameters=tmp_path / "absent.safetensors")
    with pytest.raises(ModelFormatError, match="is no file"):
        convserve.build("lenet", parameters=tmp_path)


def test_state_dicts_are_hinted_at_where_a_network_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, state_dict("lenet"))
    with pytest.raises(ModelFormatError, match=r"a state dict goes with the name of its network: build\('resnet50'"):
        convserve.load(path)


# ---- the cache


def test_a_file_is_packed_once_for_each_content_and_network(tmp_path: Path) -> None:
    path = saved(tmp_path, state_dict(PATTERN, seed=1))
    os.utime(path, (1_000_000_000, 1_000_000_000))
    first = convserve.build(PATTERN, parameters=path)
    assert first.storage.path is not None
    assert convserve.build(PATTERN, parameters=path).storage.path == first.storage.path
    deeper = PATTERN.replace("RELU -> POOL2", "TANH -> POOL2")
    assert convserve.build(deeper, parameters=path).storage.path != first.storage.path
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    assert convserve.build(PATTERN, parameters=copy).storage.path == first.storage.path
    saved(tmp_path, state_dict(PATTERN, seed=2))
    second = convserve.build(PATTERN, parameters=path)
    np.testing.assert_array_equal(answers(second), answers(convserve.build(PATTERN, seed=2)))
    private = convserve.build(PATTERN, parameters=path, cache=False)
    assert private.storage.path is None
    np.testing.assert_array_equal(answers(private), answers(second))


# ---- the command line


def test_import_writes_a_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = saved(tmp_path, state_dict("lenet", classes=4, seed=2)), tmp_path / "net.convserve"
    assert main(["import", "lenet", "--parameters", str(path), "-o", str(target)]) == 0
    model = convserve.load(target)
    np.testing.assert_array_equal(answers(model), answers(convserve.build("lenet", parameters=path)))
    assert "window 28x28" in capsys.readouterr().out


def test_import_refuses_parameters_that_are_not_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = saved(tmp_path, state_dict("lenet")), tmp_path / "net.convserve"
    assert main(["import", "resnet18", "--parameters", str(path), "-o", str(target)]) == 1
    assert "is no state dict of resnet18: it lacks conv1.weight (64x3x7x7)" in capsys.readouterr().err
    assert not target.exists()
    assert main(["import", str(path), "--parameters", str(path), "-o", str(target)]) == 1
    assert "parameters are for built-in networks and patterns" in capsys.readouterr().err
    with pytest.raises(InputError, match="built-in networks and patterns"):
        convserve.loading.import_network("net.onnx", target, parameters=path)
