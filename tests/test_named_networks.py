"""The networks that are built in: their sizes, their layers' names, their answers, and the notes' table of VGGNet."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from onnx_writer import runtime_outputs

import convserve
from convserve.cli.main import main
from convserve.graph.assembly import no_parameters, random_parameters
from convserve.graph.ir import Graph
from convserve.graph.networks import NETWORKS, is_network, network_graph
from convserve.graph.ops import infer_volumes
from convserve.graph.rewrites import rewrite
from convserve.plan.describe import describe

DOCS = Path(__file__).parents[1] / "docs" / "patterns.md"

# by torchvision's own count where it has the network, else by arithmetic over the published layers
PARAMETERS = {
    "lenet": 431_080,
    "alexnet": 60_965_224,
    "alexnet-torchvision": 61_100_840,
    "zfnet": 62_357_608,
    "googlenet": 6_624_904,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def asked_parameters(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter that a network asks its source for."""
    asked: dict[str, tuple[int, ...]] = {}

    def note(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        asked[f"{layer}.{parameter}"] = shape
        return no_parameters(layer, parameter, shape, gain)

    network_graph(name, note)
    return asked


def sizes(graph: Graph) -> dict[str, str]:
    return {tensor: str(volume) for tensor, volume in infer_volumes(graph).items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_has_its_published_number_of_parameters(name: str) -> None:
    asked = asked_parameters(name)
    learned = sum(math.prod(shape) for key, shape in asked.items() if not key.endswith((".mean", ".var")))
    assert learned == PARAMETERS[name]
    text = DOCS.read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line]
    names, counts = re.findall(r"`([\w-]+)`", row.split("|")[1]), row.split("|")[2].split()
    assert counts[names.index(name)] == f"{learned:,}"


@pytest.mark.parametrize(
    ("name", "tensor", "volume"),
    [
        ("lenet", "features.3", "4x4x50"),
        ("alexnet", "features.0", "55x55x96"),
        ("alexnet", "features.14", "6x6x256"),
        ("alexnet-torchvision", "features.12", "6x6x256"),
        ("zfnet", "features.0", "110x110x96"),
        ("zfnet", "features.2", "55x55x96"),
        ("zfnet", "features.4", "26x26x256"),
        ("zfnet", "features.6", "13x13x256"),
        ("zfnet", "features.14", "6x6x256"),
        ("googlenet", "maxpool1", "56x56x64"),
        ("googlenet", "inception3a", "28x28x256"),
        ("googlenet", "inception4e", "14x14x832"),
        ("googlenet", "inception5b", "7x7x1024"),
        ("vgg16", "features.30", "7x7x512"),
        ("resnet34", "layer4.2.relu", "7x7x512"),
        ("resnet50", "maxpool", "56x56x64"),
        ("resnet50", "layer1.0.add", "56x56x256"),
        ("resnet50", "layer4.2.relu", "7x7x2048"),
    ],
)
def test_volumes_are_the_published_ones(name: str, tensor: str, volume: str) -> None:
    assert sizes(network_graph(name, no_parameters))[tensor] == volume


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("vgg16", {"features.0.weight": (64, 3, 3, 3), "features.28.bias": (512,), "classifier.6.bias": (1000,)}),
        ("alexnet-torchvision", {"features.10.weight": (256, 256, 3, 3), "classifier.1.weight": (4096, 9216)}),
        (
            "resnet50",
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.var": (64,),
                "layer1.0.conv3.weight": (256, 64, 1, 1),
                "layer2.0.downsample.0.weight": (512, 256, 1, 1),
                "layer2.0.downsample.1.mean": (512,),
                "layer4.2.bn3.scale": (2048,),
                "fc.bias": (1000,),
            },
        ),
        ("resnet18", {"layer2.0.conv1.weight": (128, 64, 3, 3), "layer4.1.bn2.bias": (512,)}),
        (
            "googlenet",
            {
                "conv1.conv.weight": (64, 3, 7, 7),
                "inception3a.branch1.bn.scale": (64,),
                "inception3a.branch2.1.conv.weight": (128, 96, 3, 3),
                "inception3a.branch3.1.conv.weight": (32, 16, 3, 3),
                "inception5b.branch4.1.conv.weight": (128, 832, 1, 1),
            },
        ),
    ],
)
def test_parameters_have_torchvisions_names(name: str, keys: dict[str, tuple[int, ...]]) -> None:
    asked = asked_parameters(name)
    assert {key: asked.get(key) for key in keys} == keys
    # a convolution before a normalization has no bias of its own
    assert not [key for key in asked if re.search(r"conv\d*\.bias$", key)]


def test_bottlenecks_take_their_stride_in_the_3x3_convolution() -> None:
    nodes = {node.name: node for node in network_graph("resnet50", no_parameters).nodes}
    strides = [nodes[f"layer2.0.{part}"].attrs["strides"] for part in ("conv1", "conv2", "conv3", "downsample.0")]
    assert strides == [(1, 1), (2, 2), (1, 1), (2, 2)]


@pytest.mark.parametrize("name", ["lenet", "resnet18", "googlenet"])
def test_answers_are_those_of_onnx_runtime(name: str) -> None:
    model = convserve.build(name, threads=1, cache=False)
    assert model.name == name
    height, width = model.window or (0, 0)
    x = np.random.default_rng(0).standard_normal((1, model.graph.input_volume.channels, height, width))
    image = x.astype(np.float32)
    [wanted] = runtime_outputs(network_graph(name, random_parameters(0)), image)
    y = np.asarray(model.run(image))
    assert 0.01 < y.std() < 100
    np.testing.assert_allclose(y, wanted.reshape(y.shape), rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_class_scores_at_one_position(name: str) -> None:
    graph = network_graph(name, no_parameters)
    [output] = graph.outputs
    assert output.shape == (10 if name == "lenet" else 1000,)
    assert graph.nodes[-1].op == "Gemm"
    assert is_network(name)


def test_what_is_no_network_is_a_file() -> None:
    assert not any(map(is_network, ("vgg16.onnx", "./vgg16", "VGG16", "input.onnx", "INPUT", "")))
    assert all(map(is_network, (" input[1x1x1] -> RELU", "INPUT -> FC", "INPUT [ 1x1x1")))


# ---- the notes' table


def test_describe_has_the_notes_table_of_vggnet_with_right_totals() -> None:
    found = describe(rewrite(network_graph("vgg16", no_parameters), window=None))
    side, depth = 224, 3
    expected = [(f"{side}x{side}x{depth}", side * side * depth, 0)]
    for stage, depth_out in enumerate((64, 128, 256, 512, 512)):
        for _ in range(2 if stage < 2 else 3):
            expected.append((f"{side}x{side}x{depth_out}", side * side * depth_out, 3 * 3 * depth * depth_out))
            depth = depth_out
        side //= 2
        expected.append((f"{side}x{side}x{depth}", side * side * depth, 0))
    expected += [
        ("1x1x4096", 4096, 7 * 7 * 512 * 4096),
        ("1x1x4096", 4096, 4096 * 4096),
        ("1x1x1000", 1000, 4096 * 1000),
    ]
    assert [(str(layer.volume), layer.values, layer.weights) for layer in found.layers] == expected
    biases = 2 * (64 + 128) + 3 * (256 + 512 + 512) + 4096 + 4096 + 1000
    assert found.parameters == sum(weights for _, _, weights in expected) + biases == 138_357_544
    assert found.values == sum(values for _, values, _ in expected) == 15_237_608
    assert "values 15,237,608 = 58.13 MiB; parameters 138,357,544 = 527.79 MiB" in found.table()


def test_the_command_line_knows_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "lenet"]) == 0
    assert "parameters 431,080" in capsys.readouterr().out
    assert main(["describe", "lenet", "--fit", "error"]) == 0
    assert main(["plan", "lenet", "--json"]) == 0
    capsys.readouterr()
