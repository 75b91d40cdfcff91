"""Score maps by the Open Inference Protocol: every parameter gives the arrays that the model gives here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_calls import Calls, calls_of, request_of
from serving import running_server

import convserve
from convserve import Reduction
from convserve.images import decode

BUNDLED = Path(convserve.__file__).parent / "bundled"
PAGE = (BUNDLED / "page.png").read_bytes()
PIXELS = decode(PAGE, channels="gray")[:120, :97]
DTYPES = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1", "INT32": "<i4"}

# parameters of a request, and what Model.score_map is told instead
PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the best": ({"dense_top": 3}, {"reduce": Reduction(top=3)}),
    "more than there are": ({"dense_top": 100}, {"reduce": Reduction(top=100)}),
    "the best of some": (
        {"dense_top": 2, "dense_classes": "7;1;3", "dense_stride": "4,8"},
        {"reduce": Reduction(top=2), "classes": [7, 1, 3], "stride": (4, 8)},
    ),
    "the best alone": ({"dense_argmax": True}, {"reduce": Reduction(argmax=True)}),
    "softmax": ({"dense_softmax": True, "dense_argmax": False}, {"reduce": Reduction(scores="softmax")}),
    "half precision": ({"dense_dtype": "float16"}, {"reduce": Reduction(dtype="float16")}),
    "bytes": (
        {"dense_dtype": "uint8", "dense_value_range": "-0.25,1.5"},
        {"reduce": Reduction(dtype="uint8", value_range=(-0.25, 1.5))},
    ),
    "all of it": (
        {"dense_top": 2, "dense_softmax": True, "dense_dtype": "uint8", "dense_stride": 2, "dense_edge": "align"},
        {"reduce": Reduction(top=2, scores="softmax", dtype="uint8"), "stride": 2, "edge": "align"},
    ),
    "zeros around": ({"dense_edge": "pad"}, {"edge": "pad"}),
    "the last ones moved": ({"dense_edge": "align"}, {"edge": "align"}),
    "nothing around": ({"dense_edge": "none", "dense_method": "auto", "dense_dtype": "float32"}, {}),
    "shifted passes": ({"dense_method": "shifted", "dense_stride": 2}, {"method": "shifted", "stride": 2}),
    "dilated layers": ({"dense_method": "atrous", "dense_stride": 2}, {"method": "atrous", "stride": 2}),
}


@pytest.fixture(scope="module")
def calls(address: str) -> Iterator[Calls]:
    with calls_of(address) as calls:
        yield calls


def arrays_of(response: Any) -> dict[str, np.ndarray]:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {one.name: np.frombuffer(raw, DTYPES[one.datatype]).reshape(one.shape) for one, raw in pairs}


def expected_of(local: Any) -> dict[str, np.ndarray]:
    arrays = {"probabilities": local.scores, "probabilities_indices": local.indices}
    # a map of indices alone has scores of no class
    return {name: array for name, array in arrays.items() if array is not None and array.size}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize("form", ["file", "pixels", "values"])
@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_gives_the_local_arrays(calls: Calls, model: convserve.Model, case: str, form: str) -> None:
    options, local_options = PARAMETERS[case]
    values = np.random.default_rng(8).random((1, 1, 75, 61), np.float32)
    contents, image = {"file": ([PAGE], PAGE), "pixels": (PIXELS[None], PIXELS), "values": (values, values)}[form]
    local = model.score_map(image, **local_options)
    response = calls.infer("image", contents, dense=True, **options)
    assert_same(arrays_of(response), expected_of(local))
    told = {name: one.string_param for name, one in response.parameters.items()}
    assert (told["edge"], told["method"], told["exactness"]) == (local.edge, local.method, local.exactness)
    assert told["stride"] == ",".join(map(str, local.stride))


def test_reduced_maps_come_in_blocks_too(calls: Calls, model: convserve.Model) -> None:
    request = request_of("image", PIXELS[None], dense=True, dense_top=2, dense_dtype="float16", dense_edge="pad")
    answers = [one.infer_response for one in calls.ModelStreamInfer(iter([request]), timeout=20)]
    blocks = [arrays_of(one) for one in answers[:-1]]
    assert len(blocks) > 1
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    assert_same(joined, expected_of(model.score_map(PIXELS, edge="pad", reduce=Reduction(top=2, dtype="float16"))))


def test_a_reduced_map_fits_an_answer_that_the_whole_does_not(model: convserve.Model) -> None:
    pixels = np.zeros((1, 600, 600, 1), np.uint8)
    with running_server({"digits": model}, message_bytes=1 << 19) as address, calls_of(address) as calls:
        with pytest.raises(Exception, match="fewer classes"):
            calls.infer("image", pixels, dense=True)
        response = calls.infer("image", pixels, dense=True, dense_argmax=True)
    assert arrays_of(response)["probabilities_indices"].shape == (144, 144)
