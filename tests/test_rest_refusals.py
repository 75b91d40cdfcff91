"""REST: bodies, models and paths that are none; each gets its status, and the server goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rest_calls import JSON_LENGTH, LONGEST_BODY, Http, binary_body, json_body

import convserve

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT = (BUNDLED / "digit.png").read_bytes()
X = np.zeros((1, 1, 28, 28), np.float32)
MOST = LONGEST_BODY


def tensor(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{**json_body("image", X)["inputs"][0], **fields}]}


DEEP = "[" * 100_000
BAD = [
    (b"", ["no JSON", "it ends"]),
    (b"\xff\xfe", ["UTF-8"]),
    (b"{", ["no JSON"]),
    (b"[]", ["JSON object"]),
    (b"nul", ["no JSON"]),
    (b'{"inputs": [}', ["no JSON"]),
    (b'{"id": "a", "id": "b"}', ["'id' twice"]),
    (b'{"id": "\\ud800"}', ["no JSON"]),
    (b'{"id": "a\nb"}', ["no JSON"]),
    (b"{}", ["no input"]),
    ({"inputs": {}}, ["array of objects"]),
    ({"inputs": [1]}, ["inputs"]),
    ({"inputs": [{}] * 65}, ["65 inputs"]),
    ({"inputs": [{}]}, ["name", "missing"]),
    ({"inputs": [{"name": 3}]}, ["name", "no text"]),
    ({"id": 7, "inputs": []}, ["id"]),
    ({"inputs": [], "outputs": [{}]}, ["name"]),
    ({"parameters": {"a": [1]}}, ["'a'"]),
    ({"parameters": {"a": None}}, ["'a'"]),
    ({"parameters": {"binary_data_output": "yes"}}, ["binary_data_output"]),
    ({**json_body("image", X), "parameters": {"timeout": 1.5}}, ["timeout"]),
    ({**json_body("image", X), "parameters": {"timeout": -1}}, ["timeout"]),
    ({**json_body("image", X), "parameters": {"priority": True}}, ["priority"]),
    ({**json_body("image", X), "outputs": [{"name": "nothing"}]}, ["nothing"]),
    (json_body("cat", X), ["cat"]),
    ({"inputs": json_body("image", X)["inputs"] * 2}, ["image"]),
    (tensor(datatype="FP128"), ["FP128"]),
    (tensor(datatype="INT64"), ["INT64"]),
    (tensor(datatype="FP16"), ["FP16", "binary"]),
    (tensor(shape=[1, 1, 28]), ["784", "28"]),
    (tensor(shape=[1, 1, 28, 27]), ["756", "784"]),
    (tensor(shape=[1, 1, -28, -28]), ["shape"]),
    (tensor(shape=[0, 1, 28, 28]), ["shape"]),
    (tensor(shape=[1 << 62, 4, 4]), ["784"]),
    (tensor(shape=[10**400]), ["784"]),
    (tensor(shape=[]), ["shape"]),
    (tensor(shape=[[1, 1], [28, 28]]), ["whole numbers"]),
    (tensor(shape=[1.5]), ["whole numbers"]),
    (tensor(shape="1,1,28,28"), ["shape"]),
    (tensor(data=None), ["neither data"]),
    (tensor(data="abc"), ["array of numbers"]),
    (tensor(data=["a"] * 784), ["array of numbers"]),
    (tensor(data=[True] * 784), ["array of numbers"]),
    (tensor(data=[[0.0] * 392] * 2), ["neither flat nor"]),
    (tensor(data=[0.0] * 783 + [1e39]), ["1e+39"]),
    (tensor(datatype="UINT8", shape=[1, 28, 28, 1], data=[0] * 783 + [256]), ["256"]),
    (tensor(datatype="UINT8", shape=[1, 28, 28, 1], data=[0] * 783 + [0.5]), ["0.5"]),
    (tensor(datatype="BYTES", shape=[2], data=["a"]), ["2 elements", "1 came"]),
    (tensor(datatype="BYTES", shape=[1], data=[7]), ["array of texts"]),
    (tensor(datatype="BYTES", shape=[1], data=["no image"]), ["image"]),
    (tensor(datatype="BYTES", shape=[1], data=["!"], parameters={"content_type": "base64"}), ["base64"]),
    (tensor(parameters={"shared_memory_region": "a"}), ["shared memory"]),
    (tensor(parameters={"binary_data_size": 3136}), ["data beside"]),
    (DEEP.encode()[:MOST], ["deep"]),
    (b'{"a":' * 10_000, ["deep"]),
    (b"[" + b"{}," * 20_000 + b"{}]", ["more than 8192 values"]),
]


@pytest.mark.parametrize(("body", "texts"), BAD, ids=range(len(BAD)))
def test_bad_bodies_are_named(http: Http, body: Any, texts: list[str]) -> None:
    http.infer(body).refused(400, *texts)


def test_a_body_of_broken_numbers(http: Http) -> None:
    whole = json.dumps(tensor(data=[1] * 784)).encode()
    for wrong in (b"1 1, 1", b"1,, 1", b"1e, 1", b"-, 1", b"01, 1", b"N, 1", b"1], [1", b"[1], 1", b".5, 1", b"+1, 1"):
        body = whole.replace(b"1, 1", wrong, 1)
        assert body != whole
        http.infer(body).refused(400)
    http.infer(whole.replace(b"1]}", b"1,]}")).refused(400)


def test_binary_tensors_that_do_not_fit(http: Http) -> None:
    body, headers = binary_body("image", X)
    length = int(headers[JSON_LENGTH])
    for size in (-1, 0, 3135, 3137, 1 << 70, True, "3136"):
        wrong, its = binary_body("image", X, size=size)  # type: ignore[arg-type]
        http.infer(wrong, **its).refused(400)
    for wrong_length in (length - 1, length + 1, len(body) + 1, 1 << 40):
        http.infer(body, **{JSON_LENGTH: str(wrong_length)}).refused(400)
    for text in ("-1", "abc", "1.5", "9" * 30, "", "٣"):
        reply = http.infer(body, **{JSON_LENGTH: text.encode().decode("latin-1")})
        assert reply.status == 400
    http.infer(body + b"x", **headers).refused(400, "1 bytes are left")
    http.infer(body[:-1], **headers).refused(400, "binary_data_size")
    files, headers = binary_body("image", [DIGIT])
    for length in (0, len(DIGIT) - 1, len(DIGIT) + 1, (1 << 32) - 1):
        wrong = files.replace(len(DIGIT).to_bytes(4, "little") + DIGIT, length.to_bytes(4, "little") + DIGIT)
        assert len(wrong) == len(files)
        http.infer(wrong, **headers).refused(400)


def test_models_and_paths_that_are_none(http: Http) -> None:
    body = json_body("image", X)
    http.infer(body, model="cats").refused(404, "cats")
    http.infer(body, model="digits/versions/9").refused(404, "9")
    http.infer(body, model="digits/versions/-1").refused(400, "version")
    http.infer(body, model="%00").refused(404)
    http.infer(body, model="%2e%2e").refused(404)
    http.infer(body, model="x" * 10_000).refused(404)
    http.post("/v2/repository/models/%2e%2e/load").refused(404)
    http.post("/v2/repository/index", b"[1]").refused(400, "object")
    http.post("/v2/repository/index", {"ready": 1}).refused(400, "ready")
    http.post("/v2/repository/index", b"[" * 50_000).refused(400, "no JSON")
    reply = http.infer(b"", **{"x" * 3: "y" * 40_000})
    assert reply.status == 400
