"""What a server says of its models: summaries and layer tables, to and from plain data as JSON has it."""

from collections.abc import Mapping, Sequence
from typing import Any

from convserve.wire import convserve_pb2 as pb

__all__ = ["description_from_message", "description_to_message", "summary_from_message", "summary_to_message"]

_PAIRS = ("receptive_field", "stride", "offset")
_COUNTS = ("values", "weights", "parameters", "flops")
_LAYER_FIELDS = ("name", "op", *_COUNTS, "slides", "cells", "clean_cells", "exactness")
_FIELDS = ("output", "exactness", "padded_by", "stuck_at", "activation_bytes", "weight_type", "weight_bytes", *_COUNTS)


def summary_to_message(
    name: str,
    *,
    version: str = "",
    window: tuple[int, int] | None,
    channels: int,
    classes: int,
    labels: Sequence[str] | None,
) -> pb.ModelSummary:
    """Return the message of what a model is; window None and classes 0 where its file leaves the size open."""
    return pb.ModelSummary(
        name=name, version=version, window=_extent(window), channels=channels, labels=labels or [], classes=classes
    )


def summary_from_message(message: pb.ModelSummary) -> dict[str, Any]:
    """Return name, version, state, reason, window [height, width], channels, classes, labels; None if not known."""
    return {
        "name": message.name,
        "version": message.version or None,
        "state": message.state or None,
        "reason": message.reason or None,
        "window": _pair(message.window) if message.HasField("window") else None,
        "channels": message.channels or None,
        "classes": message.classes or None,
        "labels": list(message.labels) or None,
    }


def description_to_message(
    summary: pb.ModelSummary,
    description: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None,
    fingerprint: str | None = None,
) -> pb.DescribeModelResponse:
    """Return the message of what Description.to_dict and Preprocess.to_dict give."""
    return pb.DescribeModelResponse(
        summary=summary,
        fingerprint=fingerprint,
        preprocessing=None if preprocess is None else _preprocessing_to_message(preprocess),
        output_stride=_extent(description["output_stride"]),
        receptive_field=_extent(description["receptive_field"]),
        layers=[_layer_to_message(layer) for layer in description["layers"]],
        **{name: description[name] for name in _FIELDS},
    )


def description_from_message(message: pb.DescribeModelResponse) -> dict[str, Any]:
    """Return the summary's entries, those of Description.to_dict, "preprocess" and "fingerprint", None if not known.

    A preprocessing that has a mean for each pixel comes with "mean_image": True and without the mean.
    """
    summary = summary_from_message(message.summary)
    known = message.HasField("preprocessing")
    return {
        **summary,
        "network": summary["name"],
        "fingerprint": message.fingerprint or None,
        **{name: getattr(message, name) for name in _FIELDS},
        "output_stride": _pair(message.output_stride),
        "receptive_field": _pair(message.receptive_field),
        "preprocess": _preprocessing_from_message(message.preprocessing) if known else None,
        "layers": [_layer_from_message(layer) for layer in message.layers],
    }


def _layer_to_message(layer: Mapping[str, Any]) -> pb.Layer:
    height, width, channels = layer["volume"]
    top, left, bottom, right = layer["padded"]
    return pb.Layer(
        height=height,
        width=width,
        channels=channels,
        padded=pb.Ring(top=top, left=left, bottom=bottom, right=right),
        receptive_field=_extent(layer["receptive_field"]),
        stride=_extent(layer["stride"]),
        offset=_extent(layer["offset"]),
        **{name: layer[name] for name in _LAYER_FIELDS},
    )


def _layer_from_message(message: pb.Layer) -> dict[str, Any]:
    padded = message.padded
    return {
        **{name: getattr(message, name) for name in _LAYER_FIELDS},
        "volume": [message.height, message.width, message.channels],
        "padded": [padded.top, padded.left, padded.bottom, padded.right],
        **{name: _pair(getattr(message, name)) for name in _PAIRS},
    }


def _preprocessing_to_message(fields: Mapping[str, Any]) -> pb.Preprocessing:
    mean_image = hasattr(fields["mean"], "shape")
    return pb.Preprocessing(
        resize=_numbers(fields["resize"]),
        crop=_numbers(fields["crop"]),
        channels=fields["channels"],
        scale=fields["scale"],
        mean=[] if mean_image else _numbers(fields["mean"]),
        std=_numbers(fields["std"]),
        mean_image=mean_image,
    )


def _preprocessing_from_message(message: pb.Preprocessing) -> dict[str, Any]:
    sizes = {name: list(getattr(message, name)) for name in ("resize", "crop")}
    return {
        **{name: (size[0] if len(size) == 1 else size) if size else None for name, size in sizes.items()},
        "channels": message.channels or None,
        "scale": message.scale,
        "mean": list(message.mean) or None,
        "std": list(message.std) or None,
        **({"mean_image": True} if message.mean_image else {}),
    }


def _numbers(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _extent(pair: Sequence[int] | None) -> pb.Extent | None:
    return None if pair is None else pb.Extent(vertical=pair[0], horizontal=pair[1])


def _pair(message: pb.Extent) -> list[int]:
    return [message.vertical, message.horizontal]
