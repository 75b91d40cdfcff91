"""The pattern language: what texts mean, where errors point, and networks built from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import evaluate_outputs

import convserve
from convserve.cli.main import main
from convserve.errors import InputError, MemoryBudgetError, ModelNotFoundError, PatternError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.assembly import no_parameters, random_parameters
from convserve.graph.ir import Graph
from convserve.graph.ops import infer_volumes
from convserve.graph.pattern_text import KINDS, read_pattern
from convserve.graph.patterns import pattern_graph

ROOT = Path(__file__).parents[1]
SMALL = "INPUT[32x32x3] -> [CONV3-32 -> RELU]*2 -> POOL2 -> [FC-128 -> RELU]*1 -> FC-10"


def graph_of(text: str, **options: Any) -> Graph:
    return pattern_graph(text, no_parameters, **options)


def layers(text: str, **options: Any) -> list[tuple[str, str]]:
    """Return (name, output volume) of each node."""
    graph = graph_of(text, **options)
    volumes = infer_volumes(graph)
    return [(node.name, str(volumes[node.output])) for node in graph.nodes]


def window(text: str, **options: Any) -> tuple[Any, ...]:
    """Return (kernel_shape, strides, pads, dilations) of a pattern's first layer."""
    attrs = graph_of(text, **options).nodes[0].attrs
    return tuple(attrs[name] for name in ("kernel_shape", "strides", "pads", "dilations"))


# ---- meaning


def test_the_notes_pattern_repeats_nests_and_names_layers() -> None:
    assert layers("INPUT[8x12x3] -> [[CONV3-4 -> RELU]*2 -> POOL2?]*2 -> [FC-9 -> RELU]*1 -> FC-5 -> SOFTMAX") == [
        ("features.0", "8x12x4"),
        ("features.1", "8x12x4"),
        ("features.2", "8x12x4"),
        ("features.3", "8x12x4"),
        ("features.4", "4x6x4"),
        ("features.5", "4x6x4"),
        ("features.6", "4x6x4"),
        ("features.7", "4x6x4"),
        ("features.8", "4x6x4"),
        ("features.9", "2x3x4"),
        ("classifier.0.flatten", "1x1x24"),
        ("classifier.0", "1x1x9"),
        ("classifier.1", "1x1x9"),
        ("classifier.2", "1x1x5"),
        ("classifier.3", "1x1x5"),
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("INPUT[1x1x4] -> FC-3", ["classifier.0"]),
        ("INPUT[1x1x4] -> RELU -> DROPOUT -> DROPOUT0.5 -> FC-3", ["features.0", "classifier.2"]),
        ("INPUT[1x1x4] -> RELU -> DROPOUT -> RELU -> FC-3", ["features.0", "features.2", "classifier.0"]),
        ("INPUT[4x4x4] -> BN -> GLOBALAVGPOOL", ["features.0", "features.1"]),
        ("INPUT[4x4x4] -> [RELU]*0 -> GLOBALPOOL", ["features.0"]),
    ],
)
def test_every_layer_that_is_written_counts_in_the_names(text: str, names: list[str]) -> None:
    assert [name for name, _ in layers(text)] == names


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("CONV3-8", ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
        ("CONV5-8", ((5, 5), (1, 1), (2, 2, 2, 2), (1, 1))),
        ("CONV3-8 D2", ((3, 3), (1, 1), (2, 2, 2, 2), (2, 2))),
        ("CONV2-8", ((2, 2), (1, 1), (0, 0, 0, 0), (1, 1))),
        ("CONV2-8 D2", ((2, 2), (1, 1), (1, 1, 1, 1), (2, 2))),
        ("CONV3x5-8", ((3, 5), (1, 1), (1, 2, 1, 2), (1, 1))),
        ("CONV3-8 S2", ((3, 3), (2, 2), (0, 0, 0, 0), (1, 1))),
        ("CONV3-8 S1x2", ((3, 3), (1, 2), (1, 0, 1, 0), (1, 1))),
        ("CONV3-8 P0", ((3, 3), (1, 1), (0, 0, 0, 0), (1, 1))),
        ("CONV3-8 P1x2 S2", ((3, 3), (2, 2), (1, 2, 1, 2), (1, 1))),
        ("CONV3-8P0,1,2,3", ((3, 3), (1, 1), (0, 1, 2, 3), (1, 1))),
        ("conv3-8 s2 p1", ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1))),
        ("POOL2", ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1))),
        ("POOL3 S2", ((3, 3), (2, 2), (0, 0, 0, 0), (1, 1))),
        ("POOL3x2 P1", ((3, 2), (3, 2), (1, 1, 1, 1), (1, 1))),
        ("AVGPOOL4 S1 D2", ((4, 4), (1, 1), (0, 0, 0, 0), (2, 2))),
    ],
)
def test_windows_are_what_the_text_says(layer: str, expected: tuple[Any, ...]) -> None:
    assert window(f"INPUT[32x32x3] -> {layer}") == expected


def test_options_reach_the_operations() -> None:
    text = "INPUT[9x9x4] -> CONV3-8 G2 -> LRN3 ALPHA1e-3 BETA0.5 BIAS2 -> LRN5 -> BN EPS0.001 -> POOL2 CEIL -> AVGPOOL2"
    graph = graph_of(text)
    conv, lrn, plain, norm, pool, average = (node.attrs for node in graph.nodes)
    assert conv["group"] == 2
    assert graph.nodes[0].params["weight"].shape == (8, 2, 3, 3)
    assert lrn == {"size": 3, "alpha": 1e-3, "beta": 0.5, "bias": 2.0}
    assert plain == {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    assert norm == {"epsilon": 0.001}
    assert (pool["ceil_mode"], average["ceil_mode"]) == (True, False)
    assert [node.op for node in graph.nodes[-2:]] == ["MaxPool", "AveragePool"]


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        # 7x7 cannot be halved, so it stays
        ("INPUT[28x28x3] -> [CONV3-4 -> POOL2?]*9", "7x7x4"),
        ("INPUT[32x32x3] -> [CONV3-4 -> POOL2?]*9", "1x1x4"),
        # the group is left out as a whole, and what it did until then with it
        ("INPUT[6x6x3] -> [CONV3-4 S1 P0 -> POOL3 -> RELU]? -> CONV1-5", "6x6x5"),
        ("INPUT[5x5x3] -> [CONV3-4 S1 P0 -> POOL3 -> RELU]? -> CONV1-5", "1x1x5"),
        ("INPUT[6x6x3] -> [[CONV3-4 -> POOL4?] -> POOL2]?*2", "3x3x4"),
        ("INPUT[6x6x3] -> RELU? -> POOL7? -> CONV1-2", "6x6x2"),
    ],
)
def test_what_is_optional_is_left_out_where_it_does_not_fit(text: str, volume: str) -> None:
    for fit in ("floor", "error"):
        assert layers(text, fit=fit)[-1][1] == volume


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_network_is_sized_by_its_fit(fit: str) -> None:
    text = "INPUT[7x7x3] -> POOL2 -> FC-5"
    rows = {"pad": 4, "crop": 3}[fit]
    assert layers(text, fit=fit)[0][1] == f"{rows}x{rows}x3"
    assert layers(text, fit=fit)[1][1] == f"1x1x{3 * rows * rows}"


def test_spaces_line_breaks_and_case_do_not_matter() -> None:
    loose = """
      input [ 32 x 32 x 3 ]
        -> [ conv3-32 -> Relu ] * 2
        -> pool2
        -> [FC-128->RELU]*1
        -> fc-10
    """
    assert layers(loose) == layers(SMALL)


_ITEM = st.deferred(lambda: _LAYER | _GROUP)
_LAYER = st.tuples(
    st.sampled_from(["CONV3-4", "CONV1-2", "POOL2", "RELU", "DROPOUT", "LRN3", "BN"]),
    st.sampled_from(["", "?"]),
    st.sampled_from(["", "*1", "*2"]),
).map("".join)
_SEQUENCE = st.lists(_ITEM, min_size=1, max_size=3)
_GROUP = st.tuples(_SEQUENCE, st.sampled_from(["", "?"]), st.sampled_from(["", "*2"])).map(
    lambda parts: f"[{' -> '.join(parts[0])}]{parts[1]}{parts[2]}"
)


@settings(deadline=None, max_examples=40)
@given(items=st.lists(_ITEM, min_size=1, max_size=4))
def test_to_repeat_is_to_write_it_again(items: list[str]) -> None:
    def written_out(text: str) -> str:
        [item] = read_pattern(f"INPUT[32x32x2] -> {text}").items
        return " -> ".join([text[: text.rindex("*")]] * item.repeat) if item.repeat > 1 else text

    start = "INPUT[32x32x2] -> CONV1-2 -> "
    def found(text: str) -> list[tuple[str, str]] | str:
        try:
            return layers(text)
        except PatternError as error:
            return error.what

    assert found(start + " -> ".join(items)) == found(start + " -> ".join(map(written_out, items)))


# ---- errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("INPUT[32x32x3] -> [CONV^3 -> RELU]*2", None),
        ("^", "expected INPUT, with which a pattern begins, found the end"),
        ("^CONV3-4", "expected INPUT"),
        ("INPUT^", "expected the input's size, as in INPUT[32x32x3], found the end"),
        ("INPUT[32x32^]", "expected 'x' and the next of height, width and depth, as in INPUT[32x32x3], found ']'"),
        ("INPUT[^0x3x3] -> RELU", "0 is out of range; allowed: 1 to 1048576"),
        ("INPUT[3x3x3 ^-> RELU", "expected ']' behind height, width and depth, found '->'"),
        ("INPUT[3x3x3]^", "expected '->' and a layer, found the end"),
        ("INPUT[3x3x3] ^RELU", "expected '->' and a layer, or the end, found 'RELU'"),
        ("INPUT[3x3x3] -> ^CONVOLUTION3-4", "expected a layer (CONV, LOCAL, POOL,"),
        ("INPUT[3x3x3] -> CONV^-4", "expected its size, as in CONV3-64, found '-'"),
        ("INPUT[3x3x3] -> CONV3^", "expected '-' and how many, as in CONV3-64, found the end"),
        ("INPUT[3x3x3] -> CONV3^ -> RELU", "expected '-' and how many, as in CONV3-64, found a space"),
        ("INPUT[3x3x3] -> FC-^x", "expected how many, as in FC-4096, found 'x'"),
        ("INPUT[3x3x3] -> POOL2 ^X3", "expected S, P, D, CEIL or '->' behind POOL, found 'X'"),
        ("INPUT[3x3x3] -> LEAKYRELU^ -> RELU", "expected ALPHA and its value, as in LEAKYRELU ALPHA0.1"),
        ("INPUT[3x3x3] -> RELU ^S1", "expected '->' behind RELU, found 'S'"),
        ("INPUT[3x3x3] -> CONV3-4 S2 ^S2", "S is given twice"),
        ("INPUT[3x3x3] -> CONV3-4 P1,2^", "expected ',' and the rest of top, left, bottom and right padding"),
        ("INPUT[3x3x3] -> LRN5 ALPHA^,1", "expected a number, as in ALPHA2, found ','"),
        ("INPUT[3x3x3] -> [RELU -> ^]", "or '[', found ']'"),
        ("INPUT[3x3x3] -> [RELU^", "expected '->' and a layer, or ']', found the end"),
        ("INPUT[3x3x3] -> RELU*^x", "expected how many times, as in [CONV3-64 -> RELU]*2, found 'x'"),
        ("INPUT[3x3x3] -> ^" + "[" * 40 + "RELU", None),
        ("INPUT[3x3x3] -> ^[[RELU]*99]*99", "the pattern has 9,801 layers; allowed: 4,096"),
        ("INPUT[3x3x3] -> ^DROPOUT", "no layer is left that computes anything"),
        ("INPUT[2x2x3] ->\n  RELU ->\n  ^POOL3 S1\n  -> FC-2", "MaxPool 'POOL3 S1': the window covers 3 positions"),
        ("INPUT[9x9x3] -> ^CONV3-4 G2", "'CONV3-4 G2': 2 groups divide 3 channels and 4 filters unevenly"),
        ("INPUT[9x9x3] -> FC-99999 -> ^FC-99999", "up to 'FC-99999' the network has 10,0"),
    ],
)
def test_errors_point_at_the_character(text: str, said: str | None) -> None:
    place = text.index("^")
    text = text.replace("^", "", 1)
    with pytest.raises(PatternError) as wrong:
        graph_of(text)
    if said is None:
        assert wrong.value.position >= place
        return
    assert said in wrong.value.what
    assert wrong.value.position == place
    first, line, caret = str(wrong.value).split("\n")
    assert first == wrong.value.what
    assert line[2:] == text[: place].split("\n")[-1] + text[place:].split("\n")[0]
    assert len(caret) - 1 == 2 + place - (text.rfind("\n", 0, place) + 1)
    assert isinstance(wrong.value, ValueError)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from([*KINDS, "INPUT", *"[]?*x-32 SP,\n", "->"])))
def test_any_text_is_a_network_or_a_pattern_error(parts: list[str]) -> None:
    for text in ("".join(parts), "INPUT[8x8x3] -> " + "".join(parts)):
        try:
            graph = graph_of(text)
        except PatternError as error:
            place = error.position
        else:
            place = len(infer_volumes(graph))
        assert 0 <= place <= len(text)


# ---- building


def test_a_built_network_computes_what_its_pattern_says() -> None:
    text = (
        "INPUT[21x19x3] -> CONV3-16 S2 P1 -> BN -> RELU -> LRN3 -> POOL3 S2 CEIL -> CONV3x1-8 G2 D1"
        " -> AVGPOOL2 S1 -> [FC-12 -> RELU -> DROPOUT]*2 -> FC-5 -> SOFTMAX"
    )
    x = np.random.default_rng(1).standard_normal((2, 3, 21, 19)).astype(np.float32)
    model = convserve.build(text, seed=7, threads=1, cache=False)
    [wanted] = evaluate_outputs(pattern_graph(text, random_parameters(7)), x).values()
    y = model.run(x)
    assert isinstance(y, np.ndarray)
    assert y.shape == (2, 5)
    np.testing.assert_allclose(y, np.asarray(wanted).reshape(2, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fit", ["floor", "pad", "crop"])
def test_locally_connected_layers_have_filters_for_every_position(fit: str) -> None:
    text = "INPUT[9x8x2] -> LOCAL3-4 S2 P1 G2 -> RELU -> LOCAL3-3 -> FC-5"
    x = np.random.default_rng(1).standard_normal((2, 2, 9, 8)).astype(np.float32)
    model = convserve.build(text, seed=3, fit=fit, threads=1, cache=False)
    rows, columns = {"floor": (5, 4), "pad": (5, 5), "crop": (5, 4)}[fit]
    graph = pattern_graph(text, random_parameters(3), fit=fit)
    local = next(node for node in graph.nodes if node.op == "LocallyConnected")
    assert local.params["weight"].shape == (rows, columns, 2, 9, 2)
    assert fit != "crop" or graph.nodes[0].name == "features.0.crop"
    cropped = x if fit != "crop" else np.ascontiguousarray(x[:, :, :, :7])
    if fit == "crop":
        graph.nodes = [graph.nodes[1].changed(inputs=(graph.input_name,)), *graph.nodes[2:]]
    [wanted] = evaluate_outputs(graph, cropped).values()
    np.testing.assert_allclose(model.run(x), np.asarray(wanted).reshape(2, 5), rtol=1e-4, atol=1e-5)


def test_every_activation_is_a_layer() -> None:
    x = np.random.default_rng(1).uniform(0.1, 2, (2, 3, 5, 4)).astype(np.float32)
    for name in ACTIVATIONS:
        text = f"INPUT[5x4x3] -> {KINDS[name.upper()].example} -> L2POOL2 S1 P1"
        graph = pattern_graph(text, no_parameters)
        [wanted] = evaluate_outputs(graph, x).values()
        np.testing.assert_allclose(convserve.build(text, threads=1, cache=False).run(x), wanted, rtol=1e-4, atol=1e-5)


def test_weights_are_those_of_the_seed_and_the_layers_name() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    first, same, other = (convserve.build(SMALL, seed=seed, threads=1).run(x) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, convserve.build(SMALL, seed=1, threads=1, cache=False).run(x))
    short = pattern_graph("INPUT[32x32x3] -> CONV3-32", random_parameters(1)).nodes[0]
    long = pattern_graph(SMALL, random_parameters(1)).nodes[0]
    np.testing.assert_array_equal(short.params["weight"], long.params["weight"])


def test_deep_networks_keep_their_values_near_one() -> None:
    model = convserve.build("INPUT[16x16x3] -> [CONV3-32 -> RELU]*30 -> GLOBALAVGPOOL -> FC-50", threads=1, cache=False)
    y = np.asarray(model.run(np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)))
    assert 0.02 < y.std() < 50


def test_a_built_network_is_packed_once_and_mapped() -> None:
    models = [convserve.build(SMALL, seed=11) for _ in range(2)]
    paths = {model.storage.path for model in models if model.storage is not None}
    assert len(paths) == 1
    assert None not in paths
    assert convserve.build(SMALL, seed=12).storage.path not in paths  # type: ignore[union-attr]
    assert convserve.build(SMALL, seed=11, cache=False).storage.path is None  # type: ignore[union-attr]


def test_what_build_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"'vgg17' is no built-in network; there are lenet, alexnet, .* and patterns"):
        convserve.build("vgg17")
    with pytest.raises(InputError, match="seed is -1; allowed: whole numbers from 0"):
        convserve.build(SMALL, seed=-1)
    with pytest.raises(InputError, match="algorithm is 'fast'"):
        convserve.build(SMALL, algorithm="fast")
    with pytest.raises(ModelNotFoundError, match=r"'vgg16'; the networks that convserve\.build knows are lenet, "):
        convserve.load("vgg16")


def test_memory_that_is_refused_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("convserve.loading.random_parameters", lambda seed: refuse)
    with pytest.raises(MemoryBudgetError, match=r"refused 896 bytes for 'features\.0'"):
        convserve.build("INPUT[9x9x3] -> CONV3-8", cache=False)


# ---- the command line


def test_the_command_line_takes_a_pattern_wherever_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["describe", SMALL]) == 0
    assert capsys.readouterr().out == convserve.build(SMALL).describe().table() + "\n"
    assert main(["plan", SMALL, "--size", "64x64"]) == 0
    assert main(["bench", SMALL, "--runs", "1"]) == 0
    target = tmp_path / "small.convserve"
    assert main(["import", SMALL, "-o", str(target)]) == 0
    x = np.zeros((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(convserve.load(target).run(x), convserve.build(SMALL).run(x))
    capsys.readouterr()
    assert main(["plan", "INPUT[32x32x3] -> POOL"]) == 1
    assert capsys.readouterr().err == (
        "convserve: the pattern is wrong: expected its size, as in POOL2, found the end\n"
        "  INPUT[32x32x3] -> POOL\n"
        "                        ^\n"
    )
    assert main(["describe", "lenet", "--window", "32"]) == 1
    assert "a built network has its own" in capsys.readouterr().err


def test_every_kind_of_layer_is_documented() -> None:
    text = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
    for kind, rules in KINDS.items():
        assert f"`{rules.example}`" in text, kind
        assert kind in (convserve.build.__doc__ or "") or kind in map(str.upper, ACTIVATIONS), kind
        for option in rules.options:
            assert option in text
