"""The built-in networks with branches: residual networks and GoogLeNet, layers named as torchvision names them."""

from convserve.graph.assembly import Assembler, Parameters
from convserve.graph.ir import Graph, Volume

__all__ = ["RESIDUAL_NETWORKS", "googlenet", "resnet"]

RESIDUAL_NETWORKS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
"""Blocks of each stage, and whether they are bottlenecks of 1x1, 3x3 and 1x1."""

_BRANCH_GAIN = 0.2
"""Power of a drawn branch that is summed, small, so that many sums in a row do not grow."""


def _normalized(build: Assembler, x: str, conv: str, norm: str, filters: int, kernel: int, *, stride: int = 1,
                gain: float = 1.0, epsilon: float = 1e-5) -> str:
    """Add a convolution that keeps the size divided by its stride, and its normalization."""
    pads = ((kernel - 1) // 2,) * 4
    x = build.conv(x, conv, filters, (kernel, kernel), strides=(stride, stride), pads=pads, bias=False)
    return build.batch_normalization(x, norm, epsilon=epsilon, gain=gain)


def _block(build: Assembler, x: str, name: str, width: int, *, stride: int, bottleneck: bool) -> str:
    filters = 4 * width if bottleneck else width
    layers = ((width, 1), (width, 3), (filters, 1)) if bottleneck else ((width, 3), (filters, 3))
    branch = x
    for number, (count, kernel) in enumerate(layers, 1):
        # the stride is taken by the first 3x3 convolution
        step = stride if kernel == 3 and (bottleneck or number == 1) else 1
        last = number == len(layers)
        norm, gain = f"{name}.bn{number}", _BRANCH_GAIN if last else 1.0
        branch = _normalized(build, branch, f"{name}.conv{number}", norm, count, kernel, stride=step, gain=gain)
        if not last:
            branch = build.add("Relu", f"{name}.relu{number}", branch)
    if stride > 1 or build.volumes[x].channels != filters:
        x = _normalized(build, x, f"{name}.downsample.0", f"{name}.downsample.1", filters, 1, stride=stride)
    x = build.add("Add", f"{name}.add", (branch, x), {"activation": ""})
    return build.add("Relu", f"{name}.relu", x)


def resnet(name: str, parameters: Parameters, *, fit: str = "floor", classes: int = 1000) -> Graph:
    """Return a residual network of RESIDUAL_NETWORKS over 224x224x3, giving class scores."""
    depths, bottleneck = RESIDUAL_NETWORKS[name]
    build = Assembler(name, Volume(3, 224, 224), parameters, fit=fit)
    x = build.add("Relu", "relu", _normalized(build, build.input, "conv1", "bn1", 64, 7, stride=2))
    x = build.pool("MaxPool", x, "maxpool", (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    for stage, depth in enumerate(depths, 1):
        for number in range(depth):
            stride = 2 if stage > 1 and number == 0 else 1
            x = _block(build, x, f"layer{stage}.{number}", 32 << stage, stride=stride, bottleneck=bottleneck)
    x = build.add("GlobalAveragePool", "avgpool", x)
    return build.graph(build.fully_connected(x, "fc", classes))


_INCEPTIONS = (
    ("3a", 64, 96, 128, 16, 32, 32),
    ("3b", 128, 128, 192, 32, 96, 64),
    ("4a", 192, 96, 208, 16, 48, 64),
    ("4b", 160, 112, 224, 24, 64, 64),
    ("4c", 128, 128, 256, 24, 64, 64),
    ("4d", 112, 144, 288, 32, 64, 64),
    ("4e", 256, 160, 320, 32, 128, 128),
    ("5a", 256, 160, 320, 32, 128, 128),
    ("5b", 384, 192, 384, 48, 128, 128),
)
"""Module, and its filters: 1x1; 1x1 before 3x3, 3x3; 1x1 before the second 3x3, that; 1x1 behind the pooling."""


def _basic(build: Assembler, x: str, name: str, filters: int, kernel: int, *, stride: int = 1) -> str:
    x = _normalized(build, x, f"{name}.conv", f"{name}.bn", filters, kernel, stride=stride, epsilon=1e-3)
    return build.add("Relu", f"{name}.relu", x)


def _ceil_pool(build: Assembler, x: str, name: str, kernel: int) -> str:
    return build.pool("MaxPool", x, name, (kernel, kernel), strides=(2, 2), ceil_mode=True)


def googlenet(parameters: Parameters, *, fit: str = "floor", classes: int = 1000) -> Graph:
    """Return GoogLeNet over 224x224x3, giving class scores, without the heads that only training needs.

    As torchvision has it: normalized, and with 3x3 filters where the paper has 5x5.
    """
    build = Assembler("googlenet", Volume(3, 224, 224), parameters, fit=fit)
    x = _ceil_pool(build, _basic(build, build.input, "conv1", 64, 7, stride=2), "maxpool1", 3)
    x = _basic(build, _basic(build, x, "conv2", 64, 1), "conv3", 192, 3)
    x = _ceil_pool(build, x, "maxpool2", 3)
    for module, one, reduced, three, thin, second, pooled in _INCEPTIONS:
        if module in ("4a", "5a"):
            x = _ceil_pool(build, x, "maxpool3" if module == "4a" else "maxpool4", 3 if module == "4a" else 2)
        name = f"inception{module}"
        branches = [_basic(build, x, f"{name}.branch1", one, 1)]
        for number, (before, filters) in enumerate(((reduced, three), (thin, second)), 2):
            inner = _basic(build, x, f"{name}.branch{number}.0", before, 1)
            branches.append(_basic(build, inner, f"{name}.branch{number}.1", filters, 3))
        inner = build.pool("MaxPool", x, f"{name}.branch4.0", (3, 3), strides=(1, 1), pads=(1, 1, 1, 1))
        branches.append(_basic(build, inner, f"{name}.branch4.1", pooled, 1))
        x = build.add("Concat", name, tuple(branches))
    x = build.add("GlobalAveragePool", "avgpool", x)
    return build.graph(build.fully_connected(x, "fc", classes))
