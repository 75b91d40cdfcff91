"""Caffe's networks as they come: both forms of layers, phases, wrong texts, and where their files lie."""

import re
from pathlib import Path

import numpy as np
import pytest
from caffe_files import TEXT, drawn, files, image, layer, loaded, network, refused, weights
from caffe_networks import alexnet, older

import convserve
from convserve.cli.main import main
from convserve.errors import ConvserveError, InputError, ModelFormatError, ModelNotFoundError, UnsupportedOpError
from convserve.formats import cache as cache_module
from convserve.formats.caffe.layers import LAYERS
from convserve.loading import import_network

CONTENT = weights(drawn()[0])


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A network whose weights lie beside it."""
    return files(tmp_path, TEXT, weights(drawn()[0]))


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
