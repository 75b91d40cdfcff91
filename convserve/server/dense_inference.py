"""Score maps by the Open Inference Protocol: parameters of a request, parts of an answer."""

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convserve.errors import InputError, MemoryBudgetError, ShapeError
from convserve.images import decoding_bytes
from convserve.reduction import Reduction
from convserve.server.admission import Admission, Timed
from convserve.server.incoming import with_channels
from convserve.server.ledger import Reservation
from convserve.server.limits import Limits
from convserve.server.scoring import Scoring
from convserve.server.statistics import Record
from convserve.wire.codec import rows_from_message
from convserve.wire.infer import InferAnswer, InferRequest, InferTensor
from convserve.wire.scene import PIECE_BYTES, SceneHeader

if TYPE_CHECKING:
    from convserve.model import Model
    from convserve.wire import convserve_pb2 as pb

__all__ = ["dense_parts", "is_dense", "memory_limit", "whole_map"]

_TEXTS = {"dense_method": "auto", "dense_edge": "none", "dense_dtype": "float32"}
_FLAGS = ("dense_softmax", "dense_argmax")
_OWN = ("dense", "dense_stride", "dense_classes", "dense_top", "dense_value_range", *_FLAGS, *_TEXTS)
_DATATYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "int32": "INT32"}


def is_dense(request: InferRequest) -> bool:
    """Return whether a score map is asked for; InputError for parameters of score maps that cannot be meant."""
    dense = request.parameters.get("dense", False)
    if not isinstance(dense, bool):
        raise InputError(f"the parameter dense is {dense!r}; it must be true or false")
    for name in request.parameters:
        if name.startswith("dense") and name not in _OWN:
            raise InputError(f"there is no parameter {name[:100]!r}; there is: {', '.join(_OWN)}")
        if name.startswith("dense") and not dense:
            raise InputError(f"{name} is a parameter of score maps; they are asked for with dense: true")
    return dense


def memory_limit(request: InferRequest) -> int | None:
    """Return the bytes that the run may take, by the request's parameter memory_limit_bytes; InputError below 1."""
    limit = request.parameters.get("memory_limit_bytes")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"memory_limit_bytes is {limit!r}; it must be a whole number from 1")
    return limit


def _stride(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else str(value).split(",")
    numbers = [int(side) for side in sides if len(str(side)) < 10 and str(side).strip().isdigit()]
    if isinstance(value, bool) or len(sides) != 2 or len(numbers) != 2 or min(numbers) < 1:
        raise InputError(f"dense_stride is {str(value)[:100]!r}; it must be a number of pixels, or two: '16,16'")
    return numbers[0], numbers[1]


def _classes(value: Any) -> list[int | str] | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"dense_classes is {value!r}; it must be class indices and labels, separated by semicolons")
    parts = [part.strip() for part in str(value).split(";")]
    return [int(part) if part.isdigit() and len(part) < 10 else part for part in parts]


def _flag(request: InferRequest, name: str) -> bool:
    value = request.parameters.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"the parameter {name} is {str(value)[:100]!r}; it must be true or false")
    return value


def _text(request: InferRequest, name: str) -> str:
    value = request.parameters.get(name, _TEXTS[name])
    if not isinstance(value, str) or len(value) > 100:
        raise InputError(f"the parameter {name} is {str(value)[:100]!r}; it must be a text such as {_TEXTS[name]!r}")
    return value


def _value_range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except (AttributeError, ValueError):
        said = f"dense_value_range is {str(value)[:100]!r}; it must be two numbers, the lower first: '-4,16'"
        raise InputError(said) from None
    return low, high


def _reduction(request: InferRequest) -> Reduction:
    return Reduction(
        top=request.parameters.get("dense_top"),  # type: ignore[arg-type]
        argmax=_flag(request, "dense_argmax"),
        scores="softmax" if _flag(request, "dense_softmax") else "raw",
        dtype=_text(request, "dense_dtype"),
        value_range=_value_range(request.parameters.get("dense_value_range")),
    )


def _header(request: InferRequest, tensor: InferTensor, name: str) -> SceneHeader:
    header = SceneHeader(
        None,
        name,
        classes=_classes(request.parameters.get("dense_classes")),
        stride=_stride(request.parameters.get("dense_stride")),
        memory_budget=memory_limit(request) or 0,
        reduction=_reduction(request),
        method=_text(request, "dense_method"),
        edge=_text(request, "dense_edge"),
    )
    shape = tensor.shape
    if tensor.datatype == "BYTES":
        if shape not in ((1,), (1, 1)):
            raise ShapeError(f"a score map is of one image: [1] BYTES, but the shape {list(shape)} came")
        return header
    pixels = tensor.datatype == "UINT8"
    if len(shape) != 4 or shape[0] != 1:
        wanted = "[1, H, W, C] UINT8" if pixels else "[1, C, H, W] FP32 or FP16"
        raise ShapeError(f"a score map is of one image: {wanted}, but the shape {list(shape)} came")
    height, width, channels = shape[1:] if pixels else (shape[2], shape[3], shape[1])
    return replace(
        header, dtype="uint8" if pixels else "float32", height=height, width=width, channels=channels
    )


def _blocks_of(tensor: InferTensor, header: SceneHeader) -> Iterator[np.ndarray]:
    assert isinstance(tensor.contents, np.ndarray)
    image = tensor.contents[0] if header.dtype == "uint8" else tensor.contents[0].transpose(1, 2, 0)
    step = max(1, PIECE_BYTES // (header.width * header.channels * 4))
    for row in range(0, header.height, step):
        yield np.ascontiguousarray(image[row : row + step], header.dtype)


async def dense_parts(
    first: InferAnswer,
    request: InferRequest,
    tensor: InferTensor,
    model: "Model",
    admission: Admission,
    context: Timed,
    held: Reservation,
    limits: Limits,
    record: Record,
    *,
    most_bytes: int | None = None,
) -> AsyncGenerator[InferAnswer, None]:
    """Yield a score map: blocks of rows from top to bottom, then a part without outputs.

    Each is first with outputs and parameters; the outputs are the arrays of the request's reduction.
    most_bytes: MemoryBudgetError for a map larger than that.
    """
    header = _header(request, tensor, first.model)
    output = _only_output(request, model)
    if header.dtype is not None:
        header = with_channels(header, model.graph.input_volume.channels, longest_bytes=limits.message_bytes)
    async with admission.score_map():
        before, decoding = held.bytes, 0
        if header.dtype is None:
            assert isinstance(tensor.contents, list)
            decoding = decoding_bytes(tensor.contents[0])
            await held.resize(before + decoding)
        scoring = Scoring(header, model, most_bytes=admission.ledger.room_bytes(before + decoding // 2))
        try:
            start = time.perf_counter_ns()
            if header.dtype is None:
                assert isinstance(tensor.contents, list)
                await admission.compute(context, scoring.cancel, scoring.open_image, tensor.contents[0])
            else:
                await admission.compute(context, scoring.cancel, scoring.open_rows)
            opened = time.perf_counter_ns()
            record.images = 1
            record.stage("prepare", start, opened)
            place = scoring.geometry
            size = header.reduction.bytes_of(place.rows * place.cols, len(place.classes))
            if most_bytes is not None and size > most_bytes:
                raise MemoryBudgetError(
                    f"the map of {place.rows}x{place.cols} positions, {len(place.classes)} classes takes {size} bytes;"
                    f" an answer has {most_bytes} at most: ask for fewer classes (dense_classes, dense_top), or for its"
                    " parts (ModelStreamInfer)"
                )
            # a whole answer is its parts, then one array, then its message
            await held.resize(before + scoring.taken_bytes + (0 if most_bytes is None else 3 * size))
            geometry = _parameters(scoring, chosen=header.classes is not None)
            for rows in [None] if header.dtype is None else _blocks_of(tensor, header):
                if rows is not None:
                    scoring.feed(rows)
                while messages := await admission.compute(context, scoring.cancel, scoring.next_rows):
                    for message in messages:
                        yield _part(first, output, geometry, scoring, header.reduction, message.rows)
            if header.dtype is not None:
                scoring.finish(header.height)
                while messages := await admission.compute(context, scoring.cancel, scoring.next_rows):
                    for message in messages:
                        yield _part(first, output, geometry, scoring, header.reduction, message.rows)
            record.stage("run", opened)
            record.batches.append(1)
            record.positions = place.rows * place.cols
            record.planned_bytes, record.measured_bytes = scoring.plan.total_bytes, scoring.measured_bytes
        finally:
            scoring.close()
    last = {"measured_bytes": record.measured_bytes, "triton_final_response": True}
    yield replace(first, parameters={**geometry, **last})


def _only_output(request: InferRequest, model: "Model") -> str:
    name = model.graph.outputs[0].name
    for one in request.outputs:
        if one.name != name:
            raise InputError(f"a score map is of the output {name!r}, but {one.name[:100]!r} is asked for")
        if one.classification:
            raise InputError("classification is of one image's classes; a score map has scores")
    return name


def _parameters(scoring: Scoring, *, chosen: bool) -> dict[str, Any]:
    place = scoring.geometry
    pairs = {name: getattr(place, name) for name in ("stride", "window", "offset", "ring")}
    texts = {name: ",".join(map(str, values)) for name, values in pairs.items()}
    classes = {"classes": ",".join(map(str, place.classes))} if chosen else {}
    return {
        "rows": place.rows,
        "cols": place.cols,
        **texts,
        **classes,
        "exactness": place.exactness,
        "edge": place.edge,
        "method": place.method,
        "planned_bytes": scoring.plan.total_bytes,
    }


def _part(
    first: InferAnswer,
    output: str,
    parameters: dict[str, Any],
    scoring: Scoring,
    reduction: Reduction,
    rows: "pb.ScoreRows",
) -> InferAnswer:
    arrays = rows_from_message(rows, scoring.geometry, reduction)
    names = {"scores": output, "indices": f"{output}_indices"}
    return replace(
        first,
        parameters={**parameters, "first_row": rows.first_row},
        outputs=[
            InferTensor(names[kind], _DATATYPES[array.dtype.name], array.shape, array)
            for kind, array in arrays.items()
        ],
    )


def whole_map(parts: Sequence[InferAnswer]) -> InferAnswer:
    """Return the answer that the parts of a score map are together."""
    *blocks, last = parts
    outputs = []
    for number, one in enumerate(blocks[0].outputs):
        arrays = [np.asarray(block.outputs[number].contents) for block in blocks]
        whole = np.concatenate(arrays)
        outputs.append(replace(one, shape=whole.shape, contents=whole))
    parameters = {name: value for name, value in last.parameters.items() if name != "triton_final_response"}
    return replace(last, parameters=parameters, outputs=outputs)
