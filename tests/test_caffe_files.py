"""Caffe's files as they come: forms of layers, phases, weights in every encoding, damage, and what does not fit."""

import contextlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from caffe_files import Blobs, drawn_blobs, files, image, layer, network, weights
from caffe_networks import alexnet, older
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_caffe import evaluate

import convserve
from convserve.cli.main import main
from convserve.errors import ConvserveError, InputError, ModelFormatError, ModelNotFoundError, UnsupportedOpError
from convserve.formats import cache as cache_module
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.caffe.layers import LAYERS
from convserve.loading import import_network

TEXT = network(
    layer("Convolution", "x", "c", convolution="num_output: 4 kernel_size: 3"),
    layer("ReLU", "c", "c", "relu"),
    layer("InnerProduct", "c", "fc", inner_product="num_output: 5"),
)


def drawn(text: str = TEXT) -> tuple[dict[str, list[np.ndarray]], np.ndarray, np.ndarray]:
    """Return blobs for a network with the output "fc", an image, and what the network gives."""
    blobs, blob = drawn_blobs()
    x = image(text)
    return blobs, x, evaluate(text_format.Parse(text, pb.NetParameter()), {"x": x}, blob)["fc"]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A network whose weights lie beside it."""
    return files(tmp_path, TEXT, weights(drawn()[0]))


def loaded(path: Path, **options: object) -> convserve.Model:
    return convserve.load(path, cache=False, threads=1, **options)  # type: ignore[arg-type]


def refused(path: Path, message: str, error: type[Exception] = ModelFormatError) -> None:
    with pytest.raises(error, match=message):
        loaded(path)


# ---- weights


def field(number: int, content: bytes) -> bytes:
    """Return a field of bytes as protobuf writes it, by hand."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def floats(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()


def by_shape(array: np.ndarray) -> bytes:
    return field(7, field(1, b"".join(map(varint, array.shape)))) + field(5, floats(array))


def by_four_sizes(array: np.ndarray) -> bytes:
    sizes = enumerate((1,) * (4 - array.ndim) + array.shape, 1)
    return b"".join(varint(number << 3) + varint(size) for number, size in sizes) + field(5, floats(array))


def one_by_one(array: np.ndarray) -> bytes:
    return by_shape(array)[: -len(field(5, floats(array)))] + b"".join(
        varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.ravel()
    )


def in_two_runs(array: np.ndarray) -> bytes:
    values = floats(array)
    return field(7, field(1, b"".join(map(varint, array.shape)))) + field(5, values[:8]) + field(5, values[8:])


def as_doubles(array: np.ndarray) -> bytes:
    return field(7, field(1, b"".join(map(varint, array.shape)))) + field(8, array.astype("<f8").tobytes())


def with_differences(array: np.ndarray) -> bytes:
    return field(6, floats(array + 1)) + by_shape(array) + field(9, bytes(8))


# where layers lie in the network, and name and blobs in the layer, as Caffe numbers these fields


def in_layer(name: bytes, blobs: list[bytes]) -> bytes:
    return field(100, field(1, name) + field(2, b"Some") + b"".join(field(7, blob) for blob in blobs))


def in_layers(name: bytes, blobs: list[bytes]) -> bytes:
    type = varint(5 << 3) + varint(4)
    return field(2, field(4, name) + b"".join(field(6, blob) for blob in blobs) + type)


def as_in_2013(name: bytes, blobs: list[bytes]) -> bytes:
    return field(2, field(1, field(1, name) + b"".join(field(50, blob) for blob in blobs)))


ENCODINGS = [by_shape, by_four_sizes, one_by_one, in_two_runs, as_doubles, with_differences]


@pytest.mark.parametrize("form", [in_layer, in_layers, as_in_2013])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_weights_written_by_hand_are_read(tmp_path: Path, form, encoding) -> None:
    blobs, x, wanted = drawn()
    parts = [form(name.encode(), [encoding(array) for array in arrays]) for name, arrays in blobs.items()]
    content = field(1, b"name") + b"".join(parts)
    y = loaded(files(tmp_path, TEXT, content)).run(x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("form", ["", "older", "legacy", "older legacy", "double"])
def test_the_message_writes_what_is_read_by_hand(tmp_path: Path, form: str) -> None:
    blobs, x, wanted = drawn()
    y = loaded(files(tmp_path, TEXT, weights(blobs, **dict.fromkeys(form.split(), True)))).run(x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4)


def changed(**layers: list[np.ndarray] | None) -> bytes:
    blobs: Blobs = {name: arrays for name, arrays in {**drawn()[0], **layers}.items() if arrays is not None}
    return weights(blobs)


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .caffemodel, it holds no layer with weights"),
        (b"no weights", "not a .caffemodel, or a truncated one"),
        (TEXT.encode(), "not a .caffemodel"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (changed(c=None), r"Convolution 'c': .*net.caffemodel' has no weights for a layer of that name"),
        (changed(c=None, conv=[ONES]), "it has weights for 'fc', 'conv'"),
        (
            changed(c=[np.ones((4, 3, 5, 5), np.float32), ONES]),
            r"weight, blob 0, must have the shape \(4, 3, 3, 3\); .* \(4, 3, 5, 5\)",
        ),
        (changed(c=[np.ones((4, 3, 3, 3), np.float32)]), "has 1 blob.* for it; its bias is blob 1"),
        (changed(c=[np.ones((4, 3, 3, 3), np.float32), ONES, ONES]), "has 2 blob.* of parameters, but .* has 3"),
        (changed(relu=[ONES]), "ReLU 'relu' has 0 blob"),
        (in_layer(b"c", [field(7, field(1, b"\5")) + field(5, floats(ONES))]), r"blob 0 of 'c' holds 4 values.*\(5,\)"),
        (in_layer(b"c", [field(5, b"abc")]), "or a truncated one"),
        (in_layer(b"c", [field(7, field(1, b"\4"))]), "blob 0 of 'c' holds 0 values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    refused(files(tmp_path, TEXT, content), message)


def test_two_layers_cannot_take_the_weights_of_one_name(tmp_path: Path) -> None:
    text = network(
        layer("Convolution", "x", "c", convolution="num_output: 3 kernel_size: 1"),
        layer("Convolution", "c", "fc", "c", convolution="num_output: 3 kernel_size: 1"),
    )
    blobs = {"c": [np.ones((3, 3, 1, 1), np.float32), np.ones(3, np.float32)]}
    refused(files(tmp_path, text, weights(blobs)), "two layers with weights have the name 'c'")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_are_refused(tmp_path: Path, part: float) -> None:
    content = weights(drawn()[0])
    refused(files(tmp_path, TEXT, content[: int(part * len(content))]), "truncated|no weights for a layer")


CONTENT = weights(drawn()[0])


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, len(CONTENT) + len(TEXT) - 1), bits=st.integers(1, 255), length=st.integers(0, 4))
def test_damaged_files_raise_only_our_exceptions(tmp_path: Path, place: int, bits: int, length: int) -> None:
    damaged = bytearray(CONTENT + TEXT.encode())
    damaged[place] ^= bits
    path = files(tmp_path, TEXT, bytes(damaged[: len(CONTENT)]))
    del damaged[place + 1 : place + 1 + length]
    if place >= len(CONTENT):
        path.write_bytes(damaged[len(CONTENT) :])
    with contextlib.suppress(ConvserveError):
        loaded(path)


# ---- the text


def test_the_older_form_says_the_same() -> None:
    text = older(alexnet(), 227)
    assert "type: CONVOLUTION" in text
    assert "input_dim: 227" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no layer|reads 0 inputs"),
        ("hello", r"net.prototxt', line 1, column 6: not the text of a Caffe network: .*Expected"),
        ("layer {\n  name: 3\n}", "line 2, column 9"),
        (TEXT.replace("kernel_size", "kernal_size"), '2, .*"ConvolutionParameter" has no field named "kernal_size"'),
        (TEXT.replace("num_output: 4", "num_output: -4"), "line 2, .*Value out of range: -4"),
        (TEXT.replace("dim: 9", "dim: 0"), r"the input 'x' has the shape \(1, 3, 0, 10\)"),
        (TEXT.replace("dim: 9", "dim: 999999999999"), "the input 'x' has the shape"),
        (TEXT.replace("dim: 9", ""), "the input 'x' has the shape"),
        (TEXT.replace('bottom: "x"', 'bottom: "z"'), "Convolution 'c' reads 'z', which no input"),
        (network(layer("ReLU", "b", "a"), layer("ReLU", "a", "b")), "ReLU 'a' reads 'b', which"),
        (network(layer("ReLU", "x", "a"), layer("ReLU", "x", "a")), "writes 'a', which exists already"),
        ("a {" * 100000, "nested too deep"),
        ('input: "x"\n' + TEXT, r"1 input\(s\), but 0 input_shape and 0 input_dim"),
        ("layers { layer { name: 'conv1' } }", "in the form of 2013"),
        (TEXT + "layers { name: 'a' type: RELU }", "has both 'layers' and 'layer'"),
        ("layers { name: 'a' type: RELLU }", "has no value named RELLU"),
        (TEXT + layer("ReLU", "c", "d").replace(" }\n", " include { } exclude { } }"), "for include and for exclude"),
        (network(), "reads 0 inputs"),
        (network(layer("Dropout", "x")), "has no layer that computes an output"),
    ],
)
def test_wrong_texts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    refused(files(tmp_path, text, CONTENT), message, ConvserveError)


def test_bytes_that_are_no_text_are_refused(net: Path) -> None:
    net.write_bytes(b"\xff\xfe" + bytes(range(256)))
    refused(net, "is no text")
    net.write_bytes(b"# long\n" * (1 << 22))
    refused(net, "has 29,360,128 bytes; the text of a network has at most")


def test_the_network_that_trains_is_refused_with_a_hint(tmp_path: Path) -> None:
    data = 'layer { name: "data" type: "Data" top: "x" include { phase: TEST } data_param { source: "db" } }\n'
    text = data.replace("TEST", "TRAIN") + data + TEXT.split("\n", 1)[1]
    refused(files(tmp_path, text, CONTENT), r"Data 'data' feeds images .*deploy\.prototxt", UnsupportedOpError)


def test_an_unknown_layer_may_have_any_parameters(tmp_path: Path) -> None:
    text = TEXT + 'layer { name: "p" type: "Permute" bottom: "c" top: "p" permute_param { order: 0 order: 2 } }\n'
    refused(files(tmp_path, text, CONTENT), "Permute 'p' is not supported; supported are: AbsVal", UnsupportedOpError)


def test_only_what_runs_at_test_time_is_read(tmp_path: Path) -> None:
    blobs, x, wanted = drawn()
    label = layer("Input", "", "label", input="shape { dim: 10 }")
    rules = {
        "include { phase: TRAIN }": False,
        "exclude { phase: TEST }": False,
        "include { phase: TEST min_level: 1 }": False,
        "include { phase: TEST max_level: -1 }": False,
        'include { stage: "val" }': False,
        'exclude { stage: "val" }': True,
        'include { phase: TRAIN } include { phase: TEST not_stage: "val" max_level: 0 }': True,
    }
    more = "".join(
        layer("AbsVal", "fc", f"rule{number}").replace(" }\n", f" {rule} }}\n") for number, rule in enumerate(rules)
    )
    trained = layer("SoftmaxWithLoss", "fc label", "l", loss="normalize: false") + layer("Accuracy", "fc label", "a")
    model = loaded(files(tmp_path, label + TEXT + more + trained, weights(blobs)))
    there = [f"rule{number}" for number, kept in enumerate(rules.values()) if kept]
    assert [output.name for output in model.graph.outputs] == there
    np.testing.assert_allclose(model.run(x, there[0]), np.abs(wanted), rtol=1e-5, atol=1e-4)


def test_two_images_are_refused(tmp_path: Path) -> None:
    text = TEXT + layer("Input", "", "z", input="shape { dim: 1 dim: 3 dim: 2 dim: 2 }") + layer("ReLU", "z", "zz")
    refused(files(tmp_path, text, CONTENT), r"reads 2 inputs \('x', 'z'\)", UnsupportedOpError)


def test_names_may_repeat_where_no_weights_hang_on_them(tmp_path: Path) -> None:
    text = network(
        layer("ReLU", "x", "a", "act"), layer("TanH", "x", "b", "act"), layer("Eltwise", "a b", "fc", "x"),
    )
    y = loaded(files(tmp_path, text, CONTENT)).run(x := image(text))
    np.testing.assert_allclose(y, np.maximum(x, 0) + np.tanh(x), atol=1e-6)


# ---- where the files lie


def test_weights_are_those_given_or_those_beside(net: Path) -> None:
    _, x, wanted = drawn()
    np.testing.assert_allclose(loaded(net).run(x), wanted, rtol=1e-5, atol=1e-4)
    other = net.with_name("trained.caffemodel")
    net.with_suffix(".caffemodel").rename(other)
    refused(net, r"there is no 'net\.caffemodel' beside it: give its \.caffemodel as parameters", ModelNotFoundError)
    y = loaded(net, parameters=other).run(x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(convserve.build(str(net), parameters=other, cache=False).run(x), y)  # type: ignore[arg-type]
    text = net.rename(net.with_name("net.prototxt.txt"))
    np.testing.assert_array_equal(loaded(text, parameters=other).run(x), y)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        loaded(text, parameters=net.with_name("absent.caffemodel"))
    with pytest.raises(ModelFormatError, match=r"holds the weights of a Caffe network; give its \.prototxt"):
        loaded(other)
    with pytest.raises(ConvserveError, match="the file fixes it to 9x10"):
        loaded(text, parameters=other, window=(20, 20))


def test_parameters_are_refused_where_there_are_weights(net: Path, tmp_path: Path) -> None:
    container = tmp_path / "net.convserve"
    import_network(net, container)
    for source in (container, b"ONNX", loaded(net).graph):
        with pytest.raises(InputError, match="has weights of its own"):
            convserve.load(source, parameters="w.caffemodel")
    with pytest.raises(InputError, match="has weights of its own"):
        import_network(container, tmp_path / "new.convserve", parameters="w.caffemodel")


def test_a_network_without_weights_is_built_with_random_ones(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (convserve.build(str(net), seed=3).run(drawn()[1]) for _ in range(2))
    np.testing.assert_array_equal(first, again)  # type: ignore[arg-type]
    net.with_suffix(".caffemodel").unlink()
    for argv in (["describe", str(net)], ["plan", str(net), "--size", "9x10"]):
        assert main(argv) == 0
    assert "InnerProduct" not in (printed := capsys.readouterr().out)
    assert "fc" in printed
    assert main(["classify", "x.png", "--net", str(net)]) == 1
    assert "give its .caffemodel as parameters" in capsys.readouterr().err
    net.write_text(TEXT.replace("num_output: 5", "num_output: 7"))
    assert convserve.build(str(net), seed=3).run(drawn()[1]).shape == (2, 7)  # type: ignore[union-attr]


def test_the_command_line_imports_a_network(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, x, wanted = drawn()
    given = net.with_suffix(".caffemodel").rename(tmp_path / "trained.caffemodel")
    target = tmp_path / "target.convserve"
    argv = ["import", str(net), "--parameters", str(given), "-o", str(target)]
    assert main([*argv, "--channels", "bgr", "--mean", "104,117,123"]) == 0
    model = convserve.load(target)
    np.testing.assert_allclose(model.run(x), wanted, rtol=1e-5, atol=1e-4)
    assert model.preprocess is not None
    assert (model.preprocess.channels, model.preprocess.mean) == ("bgr", (104, 117, 123))
    assert main(["describe", str(net), "--parameters", str(given), "--json"]) == 0
    assert main(["describe", "lenet", "--parameters", str(given)]) == 1
    assert "safetensors" in capsys.readouterr().err


def test_the_cache_knows_both_files(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cache_module, "SETTLED_NS", 0)
    blobs, x, wanted = drawn()
    first = convserve.load(net)
    assert first.storage.path is not None
    assert convserve.load(net).storage.path == first.storage.path
    np.testing.assert_allclose(convserve.load(net).run(x), wanted, rtol=1e-5, atol=1e-4)
    net.with_suffix(".caffemodel").write_bytes(weights({name: [-a for a in arrays] for name, arrays in blobs.items()}))
    other = convserve.load(net)
    assert other.storage.path != first.storage.path
    net.write_text(TEXT.replace('type: "ReLU"', 'type: "AbsVal"'))
    third = convserve.load(net)
    assert third.storage.path not in (first.storage.path, other.storage.path)
    assert np.abs(third.run(x) - other.run(x)).max() > 0.1  # type: ignore[operator]


def test_the_documented_example_runs_and_no_type_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "caffe.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files(tmp_path, TEXT, CONTENT, "deploy").with_suffix(".caffemodel").rename("bvlc_alexnet.caffemodel")
    Path("synset_words.txt").write_text("\n".join("abcde"))
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    exec(compile(code, "caffe.md", "exec"), scope := {})
    assert scope["model"].labels == list("abcde")
    for type in LAYERS:
        assert re.search(rf"\b{type}\b", text), type
