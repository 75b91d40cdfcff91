"""Reads a .prototxt: its text as a message, the older form of its layers as the newer one, and what runs at test."""

import re
from collections.abc import Container, Iterator

from google.protobuf import text_format
from google.protobuf.message import Message

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.caffe.layer import Layer

__all__ = ["parse_network", "test_layers"]

MOST_BYTES = 1 << 24
"""The longest text of a network: published ones take some 100 KiB."""

# Fields of the older layers that say how they are trained, or are said in another way.
_LEFT_OUT = ("type", "layer", "blobs_lr", "weight_decay", "param", "blob_share_mode")
_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
"""Types of the older layers that are not spelled INNER_PRODUCT for InnerProduct."""


def parse_network(content: bytes, what: str, known: Container[str]) -> pb.NetParameter:
    """Return the network of a text. Its layers are all in `layer`, as the newer files have them.

    what: the file, for errors. known: the types of layers that are read; one of another type may have any field.
    Raises ModelFormatError, with line and column where the text is wrong there.
    """
    if len(content) > MOST_BYTES:
        raise ModelFormatError(f"{what} has {len(content):,} bytes; the text of a network has at most {MOST_BYTES:,}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelFormatError(f"{what} is no text, so no network of Caffe's; weights are given apart") from None
    try:
        net = _parsed(text, what, lenient=False)
    except ModelFormatError:
        # a field that is not known may belong to a layer that does not run anyway, whose type says more
        net = _parsed(text, what, lenient=True)
        for layer in test_layers(_renewed(net, what)):
            if layer.type not in known:
                return _renewed(net, what)
        raise
    return _renewed(net, what)


def _parsed(text: str, what: str, *, lenient: bool) -> pb.NetParameter:
    try:
        return text_format.Parse(text, pb.NetParameter(), allow_unknown_field=lenient)
    except text_format.ParseError as error:
        said = re.sub(r"^\d+:\d+ : (?:'.*': )?", "", str(error)).replace("convserve.caffe.", "")
        place = f", line {error.GetLine()}, column {error.GetColumn()}" if error.GetLine() is not None else ""
        raise ModelFormatError(f"{what}{place}: not the text of a Caffe network: {said}") from None
    except RecursionError:
        raise ModelFormatError(f"{what}: not the text of a Caffe network, its messages are nested too deep") from None


def _renewed(net: pb.NetParameter, what: str) -> pb.NetParameter:
    if not net.layers:
        return net
    if net.layer:
        raise ModelFormatError(f"{what} has both 'layers' and 'layer'; Caffe takes one of the two forms")
    renewed = pb.NetParameter()
    renewed.CopyFrom(net)
    renewed.ClearField("layers")
    for old in net.layers:
        if old.HasField("layer"):
            raise UnsupportedOpError(
                f"{what} has the layer '{old.layer.name}' in the form of 2013; Caffe's upgrade_net_proto_text renews it"
            )
        new = renewed.layer.add()
        for field, value in old.ListFields():
            if field.name not in _LEFT_OUT:
                _copy(new, field.name, value)
        spelled = pb.V1LayerParameter.LayerType.Name(old.type)
        new.type = _TYPES.get(spelled, spelled.title().replace("_", ""))
    return renewed


def _copy(message: Message, name: str, value: object) -> None:
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def test_layers(net: pb.NetParameter) -> Iterator[Layer]:
    """Yield the layers that the network has in phase TEST, at level 0 and without stages."""
    for proto in net.layer:
        layer = Layer(proto)
        if proto.include and proto.exclude:
            raise ModelFormatError(f"{layer} has rules for include and for exclude; Caffe takes one of the two")
        included = any(map(_met, proto.include)) if proto.include else not any(map(_met, proto.exclude))
        if included:
            yield layer


def _met(rule: pb.NetStateRule) -> bool:
    phase = not rule.HasField("phase") or rule.phase == pb.TEST
    level = rule.min_level <= 0 and (rule.max_level >= 0 if rule.HasField("max_level") else True)
    return phase and level and not rule.stage
