"""Makes a Graph of a pattern: repeats, leaves out what is optional and does not fit, names and assembles the layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from convserve.errors import ModelError, PatternError, ShapeError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.assembly import Assembler, Parameters, no_parameters
from convserve.graph.ir import Graph
from convserve.graph.pattern_text import Group, Layer, Pattern, read_pattern

__all__ = ["pattern_graph"]

MOST_LAYERS = 4096

PLAIN = {
    "SOFTMAX": "Softmax",
    "GLOBALPOOL": "GlobalMaxPool",
    "GLOBALAVGPOOL": "GlobalAveragePool",
}
"""Layers that are one operation without attributes."""

_POOLS = {"POOL": "MaxPool", "AVGPOOL": "AveragePool", "L2POOL": "LpPool"}
_ACTIVATIONS = {name.upper(): name for name in ACTIVATIONS}


def pattern_graph(text: str, parameters: Parameters, *, name: str = "pattern", fit: str = "floor") -> Graph:
    """Return the graph of a pattern, as docs/patterns.md describes the language.

    Layers are named as torchvision names those of its sequential networks: features.0, features.1, ... and, from the
    first FC on (or a DROPOUT right before it), classifier.0 and so on; every layer that is written counts. fit: as
    graph.fit has it. Raises PatternError, pointing at the place, for a text that is wrong and for a layer that does
    not fit.
    """
    pattern = read_pattern(text)
    chosen = _chosen(pattern, fit)
    build = Assembler(name, pattern.volume, parameters, fit=fit)
    tensor = build.input
    for layer, layer_name in zip(chosen, _names(chosen), strict=True):
        tensor = _add(build, tensor, layer, layer_name)
    return build.graph(tensor)


@dataclass(slots=True)
class _Trial:
    """The network so far, without parameters, and the layers that it has."""

    build: Assembler
    tensor: str
    layers: list[Layer]


def _chosen(pattern: Pattern, fit: str) -> list[Layer]:
    """Return the pattern's layers one after another, those that are optional only where they fit."""
    count = sum(_count(item) for item in pattern.items)
    if count > MOST_LAYERS:
        raise PatternError(
            f"the pattern has {count:,} layers; allowed: {MOST_LAYERS:,}", pattern.text, pattern.items[0].position
        )
    build = Assembler("pattern", pattern.volume, no_parameters, fit=fit)
    trial = _Trial(build, build.input, [])
    for item in pattern.items:
        _try(trial, item, pattern.text)
    if trial.tensor == build.input:
        raise PatternError("no layer is left that computes anything", pattern.text, pattern.items[0].position)
    return trial.layers


def _count(item: Layer | Group) -> int:
    inner = sum(_count(part) for part in item.items) if isinstance(item, Group) else 1
    return inner * item.repeat


def _try(trial: _Trial, item: Layer | Group, text: str) -> None:
    for _ in range(item.repeat):
        if not item.optional:
            _try_once(trial, item, text)
            continue
        build = trial.build
        before = build.fit, len(build.nodes), dict(build.volumes), build.parameter_count, trial.tensor
        kept = len(trial.layers)
        build.fit = "error"
        try:
            _try_once(trial, item, text)
        except PatternError as error:
            if not isinstance(error.__cause__, ShapeError):
                raise
            build.fit, count, build.volumes, build.parameter_count, trial.tensor = before
            del build.nodes[count:]
            del trial.layers[kept:]
        build.fit = before[0]


def _try_once(trial: _Trial, item: Layer | Group, text: str) -> None:
    if isinstance(item, Group):
        for part in item.items:
            _try(trial, part, text)
        return
    try:
        trial.tensor = _add(trial.build, trial.tensor, item, f"{item.text} #{len(trial.layers)}")
    except (ShapeError, ModelError) as error:
        raise PatternError(str(error).replace(f" #{len(trial.layers)}'", "'"), text, item.position) from error
    trial.layers.append(item)


def _names(layers: list[Layer]) -> Iterator[str]:
    first = next((number for number, layer in enumerate(layers) if layer.kind == "FC"), len(layers))
    while 0 < first < len(layers) and layers[first - 1].kind == "DROPOUT":
        first -= 1
    for number in range(len(layers)):
        yield f"features.{number}" if number < first else f"classifier.{number - first}"


def _pair(layer: Layer, option: str, default: tuple[int, int]) -> tuple[int, int]:
    values = layer.options.get(option, default)
    return int(values[0]), int(values[-1])


def _pads(layer: Layer, default: tuple[int, int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = layer.options.get("P", default * 2)
    return int(top), int(left), int(bottom), int(right)


def _conv(build: Assembler, x: str, layer: Layer, name: str) -> str:
    strides, dilations = _pair(layer, "S", (1, 1)), _pair(layer, "D", (1, 1))
    # (F - 1)/2 keeps the size where the stride is 1 and a window has a middle
    keeps = [
        dilation * (size - 1) // 2 if stride == 1 and dilation * (size - 1) % 2 == 0 else 0
        for size, stride, dilation in zip(layer.size, strides, dilations, strict=True)
    ]
    group = int(layer.options.get("G", (1,))[0])
    pads = _pads(layer, (keeps[0], keeps[1]))
    add = build.conv if layer.kind == "CONV" else build.locally_connected
    return add(x, name, layer.count, layer.size, strides=strides, pads=pads, dilations=dilations, group=group)


def _pool(build: Assembler, x: str, layer: Layer, name: str) -> str:
    op = _POOLS[layer.kind]
    strides, dilations = _pair(layer, "S", layer.size), _pair(layer, "D", (1, 1))
    pads, ceil_mode = _pads(layer, (0, 0)), "CEIL" in layer.options
    return build.pool(
        op, x, name, layer.size, strides=strides, pads=pads, dilations=dilations, ceil_mode=ceil_mode
    )


def _real(layer: Layer, option: str, default: float) -> float:
    return layer.options.get(option, (default,))[0]


def _add(build: Assembler, x: str, layer: Layer, name: str) -> str:
    """Add a layer and return the tensor that it writes, x where it computes nothing."""
    match layer.kind:
        case "CONV" | "LOCAL":
            return _conv(build, x, layer, name)
        case kind if kind in _POOLS:
            return _pool(build, x, layer, name)
        case "FC":
            return build.fully_connected(x, name, layer.count)
        case "LRN":
            attrs = {"alpha": _real(layer, "ALPHA", 1e-4), "beta": _real(layer, "BETA", 0.75)}
            return build.add("LRN", name, x, {"size": layer.size[0], **attrs, "bias": _real(layer, "BIAS", 1.0)})
        case "BN":
            return build.batch_normalization(x, name, epsilon=_real(layer, "EPS", 1e-5))
        case "DROPOUT":
            return x
        case kind if kind in _ACTIVATIONS:
            given = {parameter.lower(): values[0] for parameter, values in layer.options.items()}
            return build.add(_ACTIVATIONS[kind], name, x, given)
        case kind:
            return build.add(PLAIN[kind], name, x)
