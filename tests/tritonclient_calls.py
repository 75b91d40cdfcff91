"""Calls a convserve server through tritonclient[grpc], in an environment that has it; prints "passed" and the count.

Run by tests/test_tritonclient.py as: python tritonclient_calls.py ADDRESS FILE.png EXPECTED.npz
"""

import queue
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

ADDRESS, FILE = sys.argv[1], Path(sys.argv[2])
EXPECTED = np.load(sys.argv[3])
X = EXPECTED["x"]


def refused(call: Callable[[], Any], status: str, text: str = "") -> None:
    found: Any = None
    try:
        call()
    except InferenceServerException as error:
        found = error
    assert found is not None, f"no {status}"
    assert found.status() == f"StatusCode.{status}", found
    assert text in found.message(), found


def values(x: np.ndarray = X, datatype: str = "FP32") -> list[Any]:
    tensor = triton.InferInput("image", list(x.shape), datatype)
    tensor.set_data_from_numpy(x)
    return [tensor]


def file() -> list[Any]:
    return values(np.array([FILE.read_bytes()], dtype=object), "BYTES")


def same(result: Any, name: str = "y") -> None:
    assert np.array_equal(result.as_numpy("probabilities"), EXPECTED[name])


def server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("cats")
    assert client.get_server_metadata().name == "convserve"
    assert "statistics" in client.get_server_metadata(as_json=True)["extensions"]
    metadata = client.get_model_metadata("digits")
    assert [list(one.shape) for one in metadata.inputs] == [[-1, 1, 28, 28]]
    assert client.get_model_metadata("digits", as_json=True)["outputs"][0]["name"] == "probabilities"
    config = client.get_model_config("digits").config
    assert list(config.input[0].dims) == [1, 28, 28]
    assert config.max_batch_size > 1
    assert client.get_model_config("digits", as_json=True)["config"]["backend"] == "convserve"
    refused(lambda: client.get_model_metadata("cats"), "NOT_FOUND", "cats")
    refused(lambda: client.get_model_metadata("digits", "x"), "INVALID_ARGUMENT", "version")


def repository(client: Any) -> None:
    assert [one.name for one in client.get_model_repository_index().models] == ["digits", "small"]
    client.unload_model("small")
    assert not client.is_model_ready("small")
    assert client.get_model_repository_index(as_json=True)["models"][1]["state"] == "UNAVAILABLE"
    client.load_model("small")
    assert client.is_model_ready("small")
    refused(lambda: client.load_model("cats"), "NOT_FOUND")
    refused(lambda: client.load_model("small", config="{}"), "INVALID_ARGUMENT")


def inference(client: Any) -> None:
    result = client.infer("digits", values(), request_id="mine", model_version="1")
    same(result)
    assert result.get_response().id == "mine"
    assert result.get_response(as_json=True)["model_name"] == "digits"
    same(client.infer("digits", values(X.astype(np.float16), "FP16")), "half")
    same(client.infer("digits", file()), "digit")
    same(client.infer("digits", values(EXPECTED["pixels"], "UINT8")), "digit")
    wanted = [triton.InferRequestedOutput("probabilities")]
    same(client.infer("digits", values(), outputs=wanted, priority=2, timeout=30_000_000, client_timeout=30))
    same(client.infer("digits", values(), sequence_id=7, sequence_start=True, sequence_end=True))
    for algorithm in ("gzip", "deflate"):
        same(client.infer("digits", values(), compression_algorithm=algorithm))
    best = client.infer("digits", file(), outputs=[triton.InferRequestedOutput("probabilities", class_count=2)])
    texts = best.as_numpy("probabilities")
    assert texts.shape == (1, 2)
    assert texts[0, 0].decode().split(":")[1:] == ["3", "3"]
    dense = client.infer("digits", file(), parameters={"dense": True, "dense_stride": 2})
    same(dense, "map")
    refused(lambda: client.infer("cats", values()), "NOT_FOUND")
    refused(lambda: client.infer("digits", values(X[:, :, 1:])), "INVALID_ARGUMENT", "28, 28")
    refused(lambda: client.infer("digits", values(X.astype(np.float64), "FP64")), "INVALID_ARGUMENT", "FP64")
    refused(lambda: client.infer("digits", values(), timeout=1), "DEADLINE_EXCEEDED")


def asynchronous(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    calls = [
        client.async_infer("digits", values(), lambda result, error: answers.put((result, error))) for _ in range(8)
    ]
    for _ in calls:
        result, error = answers.get(timeout=30)
        assert error is None
        same(result)
    options = {"dense": True, "dense_stride": 1}
    client.async_infer("digits", file(), lambda result, error: None, parameters=options).cancel()


def streamed(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("digits", values(), request_id="a")
    client.async_stream_infer("digits", file(), parameters={"dense": True, "dense_stride": 2}, request_id="b")
    client.async_stream_infer("cats", values())
    client.async_stream_infer("digits", values(), enable_empty_final_response=True)
    same(answers.get(timeout=30)[0])
    blocks = []
    while True:
        result, error = answers.get(timeout=30)
        assert error is None
        response = result.get_response()
        assert response.id == "b"
        if response.parameters["triton_final_response"].bool_param:
            break
        blocks.append(result.as_numpy("probabilities"))
    assert np.array_equal(np.concatenate(blocks), EXPECTED["map"])
    result, error = answers.get(timeout=30)
    assert result is None
    assert "cats" in error.message()
    same(answers.get(timeout=30)[0])
    client.stop_stream()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("digits", file(), parameters={"dense": True, "dense_stride": 1})
    client.stop_stream(cancel_requests=True)


def statistics(client: Any) -> None:
    before = client.get_inference_statistics("digits").model_stats[0].inference_count
    client.infer("digits", values())
    [told] = client.get_inference_statistics("digits", "1", as_json=True)["model_stats"]
    assert int(told["inference_count"]) == before + len(X)
    assert {one.name for one in client.get_inference_statistics().model_stats} == {"digits", "small"}


def not_offered(client: Any) -> None:
    for call in (
        client.get_trace_settings,
        client.get_log_settings,
        lambda: client.update_trace_settings(settings={"trace_rate": "1"}),
        lambda: client.update_log_settings({"log_info": True}),
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        lambda: client.register_system_shared_memory("a", "/a", 8),
        lambda: client.register_cuda_shared_memory("a", b"aGFuZGxl", 0, 8),
        lambda: client.unregister_system_shared_memory("a"),
        lambda: client.unregister_cuda_shared_memory("a"),
    ):
        refused(call, "UNIMPLEMENTED")
    shared = triton.InferInput("image", [1, 1, 28, 28], "FP32")
    shared.set_shared_memory("a", 3136)
    refused(lambda: client.infer("digits", [shared]), "INVALID_ARGUMENT", "shared memory")


PARTS = (server_and_models, repository, inference, asynchronous, streamed, statistics, not_offered)

if __name__ == "__main__":
    with triton.InferenceServerClient(ADDRESS) as shared_client:
        for part in PARTS:
            part(shared_client)
    print("passed", len(PARTS))
