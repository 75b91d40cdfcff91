"""The Open Inference Protocol over REST: the answers of every path, from JSON and from binary tensors."""

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_calls import Calls, calls_of
from model_folders import add_version
from rest_calls import JSON_LENGTH, Http, array_in, binary_body, json_body
from serving import running
from test_open_inference import two_outputs

import convserve
from convserve.images import decode
from convserve.server import ModelFolder, Repository, Server
from convserve.wire.open_inference import messages as oip

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = (BUNDLED / "digit.png").read_bytes(), (BUNDLED / "page.png").read_bytes()
X = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture(scope="module")
def server(model: convserve.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    add_version(folder / "models", "small", 1)
    add_version(folder / "models", "small", 2)
    models = Repository({"digits": model, "two": two_outputs()}, ModelFolder(folder / "models"))
    models.refresh()
    with running(models, {"http_port": 0}) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: Server) -> Http:
    return Http(server.http_address)


@pytest.fixture(scope="module")
def calls(server: Server) -> Iterator[Calls]:
    with calls_of(server.address) as calls:
        yield calls


@pytest.fixture(scope="module")
def digit(model: convserve.Model) -> np.ndarray:
    found: Any = model.classify(DIGIT, top=11)
    return np.array([[one.score for one in sorted(found, key=lambda one: one.index)]], np.float32)


# ---- the server and its models


def test_health(http: Http) -> None:
    for path, told in [("/healthz", {"live": True}), ("/readyz", {"ready": True})]:
        assert http.get(path).json == told
    assert http.get("/v2/health/live").json == {"live": True}
    assert http.get("/v2/health/ready").json == {"ready": True}
    assert http.get("/v2/models/digits/ready").json == {"name": "digits", "ready": True}
    assert http.get("/v2/models/digits/versions/1/ready").status == 200
    http.get("/v2/models/digits/versions/2/ready").refused(404, "2")
    http.get("/v2/models/cats/ready").refused(404, "cats")
    assert http.ask("HEAD", "/healthz")[::2] == (200, b"")


def test_what_is_told_is_what_grpc_tells(http: Http, calls: Calls) -> None:
    told = http.get("/v2").json
    assert told == {"name": "convserve", "version": convserve.__version__, "extensions": told["extensions"]}
    assert told["extensions"] == list(calls.ServerMetadata(oip.ServerMetadataRequest()).extensions)
    metadata = http.get("/v2/models/two/versions/1").json
    expected = calls.ModelMetadata(oip.ModelMetadataRequest(name="two"))
    assert metadata["name"] == expected.name == "two"
    assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 3, 12, 10]}
    assert [one["name"] for one in metadata["outputs"]] == [one.name for one in expected.outputs]
    config = http.get("/v2/models/digits/config").json
    assert config["input"][0]["dims"] == [1, 28, 28]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["format"] == "FORMAT_NCHW"
    assert config["parameters"]["input_files"] == {"string_value": "BYTES [N]"}
    http.get("/v2/models/cats").refused(404, "cats")
    http.get("/v2/models/digits/versions/x").refused(400, "version")


def test_statistics_count_what_both_protocols_ask(http: Http, calls: Calls) -> None:
    def counted() -> tuple[int, int]:
        [told] = http.get("/v2/models/digits/versions/1/stats").json["model_stats"]
        return told["inference_count"], told["inference_stats"]["success"]["count"]

    images, requests = counted()
    assert http.infer(json_body("image", X)).status == 200
    calls.infer("image", X)
    assert counted() == (images + 4, requests + 2)
    for path in ("/v2/models/stats", "/v2/models/digits/stats"):
        names = {one["name"] for one in http.get(path).json["model_stats"]}
        assert "digits" in names
        assert ("small" in names) == (path == "/v2/models/stats")


def test_models_come_and_go(http: Http) -> None:
    states = {(one["name"], one["version"]): one["state"] for one in http.post("/v2/repository/index").json}
    assert states["digits", "1"] == "READY"
    small = [key for key, state in states.items() if key[0] == "small" and state == "READY"]
    assert small
    parameters = {"parameters": {"unload_dependents": False}}
    assert http.post("/v2/repository/models/small/unload", parameters).json == {}
    http.get("/v2/models/small/ready").refused(404, "small")
    ready = {one["name"] for one in http.post("/v2/repository/index", {"ready": True}).json}
    assert ready == {"digits", "two"}
    assert http.post("/v2/repository/models/small/load").json == {}
    assert http.get("/v2/models/small/ready").status == 200
    http.post("/v2/repository/models/small/load", {"parameters": {"config": "{}"}}).refused(400, "as its folder")
    http.post("/v2/repository/models/cats/load").refused(404, "cats")
    http.post("/v2/repository/models/digits/unload").refused(400, "stays")


# ---- inference


@pytest.mark.parametrize("nested", [False, True])
def test_values_as_json(http: Http, model: convserve.Model, nested: bool) -> None:
    reply = http.infer(json_body("image", X, nested=nested, id="seven"))
    assert (reply.json["model_name"], reply.json["model_version"], reply.json["id"]) == ("digits", "1", "seven")
    assert reply.json["parameters"]["planned_bytes"] >= reply.json["parameters"]["measured_bytes"] > 0
    assert np.array_equal(array_in(reply), model.run(X))


@pytest.mark.parametrize("pad", range(5))
def test_values_as_binary_tensors(http: Http, model: convserve.Model, pad: int) -> None:
    body, headers = binary_body("image", X, pad=" " * pad, parameters={"binary_data_output": True})
    reply = http.infer(body, **headers)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert "data" not in json.loads(reply.body[: int(reply.headers[JSON_LENGTH.lower()])])["outputs"][0]
    assert np.array_equal(array_in(reply), model.run(X))
    half, headers = binary_body("image", X.astype(np.float16), pad=" " * pad)
    assert np.array_equal(array_in(http.infer(half, **headers)), model.run(X.astype(np.float16).astype(np.float32)))


def test_pixels_and_image_files(http: Http, digit: np.ndarray) -> None:
    pixels = decode(DIGIT, channels="gray")[None]
    assert np.array_equal(array_in(http.infer(json_body("image", pixels))), digit)
    assert np.array_equal(array_in(http.infer(json_body("image", pixels, nested=True))), digit)
    for contents in (pixels, [DIGIT]):
        body, headers = binary_body("image", contents)
        assert np.array_equal(array_in(http.infer(body, **headers)), digit)
    text = json_body("image", [base64.b64encode(DIGIT).decode()])
    text["inputs"][0]["parameters"] = {"content_type": "base64"}
    assert np.array_equal(array_in(http.infer(text)), digit)
    text["inputs"][0].update(shape=[1, 1], data=[text["inputs"][0]["data"]])
    assert np.array_equal(array_in(http.infer(text)), digit)
    assert np.array_equal(array_in(http.infer(DIGIT, content_type="image/png")), digit)
    assert np.array_equal(array_in(http.infer(DIGIT, content_type="image/png", **{JSON_LENGTH: "0"})), digit)


def test_a_body_that_is_one_tensor(http: Http, model: convserve.Model) -> None:
    raw = {JSON_LENGTH: "0"}
    assert np.array_equal(array_in(http.infer(X.tobytes(), **raw)), model.run(X))
    http.infer(X.tobytes()[:-1], **raw).refused(400, "bytes")
    http.infer(b"", **raw).refused(400, "bytes")


def test_outputs_are_chosen_one_by_one(http: Http) -> None:
    image = np.random.default_rng(1).random((2, 3, 12, 10), np.float32)
    whole = http.infer(json_body("x", image), model="two")
    first, second = (one["name"] for one in whole.json["outputs"])
    for binary in ({first}, {second}, {first, second}):
        outputs = [{"name": one, "parameters": {"binary_data": one in binary}} for one in (second, first)]
        reply = http.infer(json_body("x", image, outputs=outputs), model="two")
        for name in (first, second):
            assert np.array_equal(array_in(reply, name), array_in(whole, name))
    only = http.infer(json_body("x", image, outputs=[{"name": second}]), model="two").json["outputs"]
    assert [one["name"] for one in only] == [second]


def test_classes_as_text(http: Http) -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": 2}}]
    body, headers = binary_body("image", [DIGIT, DIGIT], outputs=outputs)
    [output] = http.infer(body, **headers).json["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [text.split(":")[1:] for text in output["data"]] == [["3", "3"], ["1", "1"]] * 2


def test_score_maps(http: Http, model: convserve.Model) -> None:
    expected = model.score_map(PAGE, stride=2)
    parameters = {"dense": True, "dense_stride": 2}
    for binary in (False, True):
        asked = parameters | {"binary_data_output": binary}
        body, headers = binary_body("image", [PAGE], parameters=asked)
        reply = http.infer(body, **headers)
        assert np.array_equal(array_in(reply), expected.scores)
        length = int(reply.headers.get(JSON_LENGTH.lower(), len(reply.body)))
        told = json.loads(reply.body[:length])["parameters"]
        assert (told["rows"], told["cols"]) == expected.scores.shape[:2]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_may_be_compressed(http: Http, model: convserve.Model, encoding: str) -> None:
    squeeze = gzip.compress if encoding == "gzip" else zlib.compress
    body, headers = binary_body("image", X)
    reply = http.infer(squeeze(body), content_encoding=encoding, **headers)
    assert np.array_equal(array_in(reply), model.run(X))


def test_numbers_that_json_does_not_have(http: Http, model: convserve.Model) -> None:
    x = X.copy()
    x[0, 0, 0, 0], x[1, 0, 3, 3] = np.nan, np.inf
    with np.errstate(all="ignore"):
        assert np.array_equal(array_in(http.infer(json_body("image", x))), model.run(x), equal_nan=True)


def test_request_ids_come_back(http: Http) -> None:
    assert http.get("/v2", x_request_id="mine").headers["x-request-id"] == "mine"
    assert http.get("/nowhere", x_request_id="mine").headers["x-request-id"] == "mine"
    assert len(http.get("/v2", x_request_id="with space").headers["x-request-id"]) == 16


def test_what_there_is_not(http: Http) -> None:
    for path in ("/", "/v1", "/v2/", "/v2/models/digits/", "/v2/models/..%2Fdigits", "/v2/models//infer"):
        http.get(path).refused(404)
    http.get("/v2/trace/setting").refused(501, "traces")
    http.get("/v2/models/digits/trace/setting").refused(501, "traces")
    http.post("/v2/logging", {"log_info": True}).refused(501, "logs")
    for path in ("systemsharedmemory/status", "cudasharedmemory/region/a/register"):
        http.get(f"/v2/{path}").refused(501, "shared memory")
    http.post("/v2/health/live").refused(405, "POST")
    http.get("/v2/models/digits/infer").refused(405, "GET")
    http.ask("DELETE", "/v2/models/digits").refused(405, "DELETE")
