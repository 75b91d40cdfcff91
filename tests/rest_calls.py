"""A client of the Open Inference Protocol over REST for tests, on nothing but the standard library."""

import http.client
import json
from typing import Any, NamedTuple

import numpy as np

__all__ = ["LONGEST_BODY", "Http", "Reply", "array_in", "binary_body", "json_body"]

LONGEST_BODY = 64 << 10
"""Of the server that tests of REST share."""

JSON_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}
DTYPES = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1"}


class Reply(NamedTuple):
    """Status, headers by their names in lower case, and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What the body says where it is JSON."""
        return json.loads(self.body)

    def refused(self, status: int, *texts: str) -> None:
        """Check that it is a refusal, in one line that has all of the texts."""
        assert self.status == status, self.body
        assert list(self.json) == ["error"]
        said = self.json["error"]
        for text in texts:
            assert text in said, said
        assert said
        assert said == said.strip()
        assert "\n" not in said
        assert "Traceback" not in said


class Http:
    """Requests to host:port, each over a connection of its own."""

    def __init__(self, address: str, context: Any = None) -> None:
        self._address, self._context = address, context

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._address, timeout=20)
        return http.client.HTTPSConnection(self._address, timeout=20, context=self._context)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """The answer to a request; underscores in headers' names stand for hyphens."""
        connection = self._connection()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """The answer to a GET."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Reply:
        """The answer to a POST; what is no bytes is sent as JSON."""
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)

    def infer(self, body: Any, model: str = "digits", **headers: str) -> Reply:
        """The answer to an inference."""
        return self.post(f"/v2/models/{model}/infer", body, **headers)


def json_body(name: str, contents: np.ndarray | list[str], *, nested: bool = False, **more: Any) -> dict[str, Any]:
    """A request with one input, all of it JSON."""
    if isinstance(contents, list):
        tensor = {"name": name, "datatype": "BYTES", "shape": [len(contents)], "data": contents}
    else:
        data = contents.tolist() if nested else contents.ravel().tolist()
        tensor = {
            "name": name, "datatype": DATATYPES[contents.dtype.name], "shape": list(contents.shape), "data": data
        }  # fmt: skip
    return {"inputs": [tensor], **more}


def binary_body(
    name: str, contents: np.ndarray | list[bytes], *, size: int | None = None, pad: str = "", **more: Any
) -> tuple[bytes, dict[str, str]]:
    """A request with one input as a binary tensor, and its headers. pad: white space at the end of its JSON."""
    if isinstance(contents, list):
        raw = b"".join(len(one).to_bytes(4, "little") + one for one in contents)
        datatype, shape = "BYTES", [len(contents)]
    else:
        raw, datatype, shape = contents.tobytes(), DATATYPES[contents.dtype.name], list(contents.shape)
    parameters = {"binary_data_size": len(raw) if size is None else size}
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], **more}).encode() + pad.encode()
    return head + raw, {JSON_LENGTH: str(len(head))}


def array_in(reply: Reply, name: str | None = None) -> np.ndarray:
    """An output of an answer, by default the only one, from JSON or behind it."""
    assert reply.status == 200, reply.body
    length = int(reply.headers.get(JSON_LENGTH.lower(), len(reply.body)))
    told, at = json.loads(reply.body[:length]), length
    found = {}
    for output in told["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], DTYPES.get(output["datatype"], object))
        else:
            array = np.frombuffer(reply.body[at : at + size], DTYPES[output["datatype"]])
            at += size
        found[output["name"]] = array.reshape(output["shape"])
    assert at == len(reply.body)
    assert name or len(found) == 1
    return found[name] if name else next(iter(found.values()))
