"""Calls a convserve server through tritonclient[http], in an environment that has it; prints "passed" and the count.

Run by tests/test_tritonclient.py as: python tritonclient_http_calls.py ADDRESS FILE.png EXPECTED.npz
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ADDRESS, FILE = sys.argv[1], Path(sys.argv[2])
EXPECTED = np.load(sys.argv[3])
X = EXPECTED["x"]


def refused(call: Callable[[], Any], status: int, text: str = "") -> None:
    found: Any = None
    try:
        call()
    except InferenceServerException as error:
        found = error
    assert found is not None, f"no {status}"
    assert found.status() == str(status), found
    assert text in found.message(), found


def values(x: np.ndarray = X, datatype: str = "FP32", *, binary: bool = True) -> list[Any]:
    tensor = triton.InferInput("image", list(x.shape), datatype)
    tensor.set_data_from_numpy(x, binary_data=binary)
    return [tensor]


def file() -> list[Any]:
    return values(np.array([FILE.read_bytes()], dtype=object), "BYTES")


def wanted(*, binary: bool = True, classes: int = 0) -> list[Any]:
    return [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=classes)]


def same(result: Any, name: str = "y") -> None:
    assert np.array_equal(result.as_numpy("probabilities"), EXPECTED[name])


def server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("cats")
    assert client.get_server_metadata()["name"] == "convserve"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 1, 28, 28]
    assert client.get_model_config("digits")["input"][0]["dims"] == [1, 28, 28]
    refused(lambda: client.get_model_metadata("cats"), 404, "cats")
    refused(lambda: client.get_model_metadata("digits", "x"), 400, "version")


def repository(client: Any) -> None:
    assert [one["name"] for one in client.get_model_repository_index()] == ["digits", "small"]
    client.unload_model("small")
    assert not client.is_model_ready("small")
    client.load_model("small")
    assert client.is_model_ready("small")
    refused(lambda: client.load_model("cats"), 404, "cats")
    refused(lambda: client.load_model("small", config="{}"), 400, "as its folder has it")
    refused(lambda: client.unload_model("digits"), 400, "digits")


def inference(client: Any) -> None:
    same(client.infer("digits", values()))
    same(client.infer("digits", values(binary=False)))
    for binary in (True, False):
        same(client.infer("digits", values(binary=binary), outputs=wanted(binary=not binary)))
    result = client.infer("digits", values(), "1", request_id="seven", headers={"x-request-id": "seven"})
    same(result)
    assert result.get_response()["id"] == "seven"
    same(client.infer("digits", values(X.astype(np.float16), "FP16")), "half")
    same(client.infer("digits", file()), "digit")
    same(client.infer("digits", values(EXPECTED["pixels"], "UINT8")), "digit")
    same(client.infer("digits", values(EXPECTED["pixels"], "UINT8", binary=False)), "digit")
    same(client.infer("digits", values(), outputs=wanted(), priority=2, timeout=30_000_000))
    same(client.infer("digits", values(), sequence_id=7, sequence_start=True, sequence_end=True))
    for algorithm in ("gzip", "deflate"):
        same(
            client.infer(
                "digits", values(), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
            )
        )
    for binary in (True, False):
        texts = client.infer("digits", file(), outputs=wanted(binary=binary, classes=2)).as_numpy("probabilities")
        assert texts.shape == (1, 2)
        best = texts[0, 0] if isinstance(texts[0, 0], str) else texts[0, 0].decode()
        assert best.split(":")[1:] == ["3", "3"]
    same(client.infer("digits", file(), parameters={"dense": True, "dense_stride": 2}), "map")
    refused(lambda: client.infer("cats", values()), 404)
    refused(lambda: client.infer("digits", values(X[:, :, 1:])), 400, "28, 28")
    refused(lambda: client.infer("digits", values(X.astype(np.float64), "FP64")), 400, "FP64")
    refused(lambda: client.infer("digits", values(), timeout=1), 504)


def asynchronous(client: Any) -> None:
    for call in [client.async_infer("digits", values()) for _ in range(8)]:
        same(call.get_result())


def in_two_steps(client: Any) -> None:
    body, length = client.generate_request_body(values(), outputs=wanted())
    assert length == body.index(b"}]}") + 3
    response = client._post("v2/models/digits/infer", body, {"Inference-Header-Content-Length": length}, None)
    told = int(response.get("Inference-Header-Content-Length"))
    same(client.parse_response_body(response.read(), header_length=told))


def statistics(client: Any) -> None:
    before = client.get_inference_statistics("digits")["model_stats"][0]["inference_count"]
    client.infer("digits", values())
    [told] = client.get_inference_statistics("digits", "1")["model_stats"]
    assert told["inference_count"] == before + len(X)
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} == {"digits", "small"}


def not_offered(client: Any) -> None:
    for call in (
        client.get_trace_settings,
        client.get_log_settings,
        lambda: client.get_trace_settings("digits"),
        lambda: client.update_trace_settings(settings={"trace_rate": "1"}),
        lambda: client.update_log_settings({"log_info": True}),
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        lambda: client.register_system_shared_memory("a", "/a", 8),
        lambda: client.register_cuda_shared_memory("a", b"aGFuZGxl", 0, 8),
        lambda: client.unregister_system_shared_memory("a"),
        lambda: client.unregister_cuda_shared_memory("a"),
    ):
        refused(call, 501)
    shared = triton.InferInput("image", [1, 1, 28, 28], "FP32")
    shared.set_shared_memory("a", 3136)
    refused(lambda: client.infer("digits", [shared]), 400, "shared memory")


PARTS = (server_and_models, repository, inference, asynchronous, in_two_steps, statistics, not_offered)

if __name__ == "__main__":
    with triton.InferenceServerClient(ADDRESS, concurrency=4) as shared_client:
        for part in PARTS:
            part(shared_client)
    print("passed", len(PARTS))
