"""Callers of a server, with tritonclient and in its environment: what is asked comes as JSON on argv, one JSON back.

{"address": text, "model": name, "input": name, "shape": [1, C, H, W], "send": "tensor" | "jpeg" | "decoded",
"seconds": s, and "callers": n, each of which asks again when it is answered, or "rate": requests a second, sent when
they are due whatever has become of others, with "deadline_s" each}
-> {"answered": n, "seconds": s, "latencies_s": [...], "refused": {status: n}, "said": {status: the first text}}.
"jpeg" sends a photograph's bytes, "decoded" decodes it here and sends float32. Of requests at a rate those count that
ended once the server was warm and before the last was sent; their latency counts from when they were due.
"""

import io
import json
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

__all__ = ["asked_again", "offered"]

WARM_SHARE = 0.1
PATIENCE_S = 60.0


def _photo(height: int, width: int) -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class _Question:
    """What every call sends; decoding, where it is the caller's, is done each time."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.model, self.name, self.shape, self.send = (asked[key] for key in ("model", "input", "shape", "send"))
        self.photo = _photo(*self.shape[2:])
        self.tensor = np.random.default_rng(0).standard_normal(self.shape, np.float32)

    def inputs(self) -> "list[triton.InferInput]":
        if self.send == "jpeg":
            encoded = triton.InferInput(self.name, [1], "BYTES")
            encoded.set_data_from_numpy(np.array([self.photo], object))
            return [encoded]
        x = self.tensor
        if self.send == "decoded":
            pixels = np.asarray(Image.open(io.BytesIO(self.photo)), np.float32)
            x = np.ascontiguousarray((pixels / 255).transpose(2, 0, 1)[None])
        tensor = triton.InferInput(self.name, list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        return [tensor]


class _Found:
    """What came of the calls; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latencies: list[float] = []
        self.refused: Counter[str] = Counter()
        self.said: dict[str, str] = {}

    def add(self, latency_s: float | None, error: "triton.InferenceServerException | None" = None) -> None:
        with self._lock:
            if error is not None:
                status = str(error.status()).removeprefix("StatusCode.")
                self.refused[status] += 1
                self.said.setdefault(status, str(error.message()))
            elif latency_s is not None:
                self.latencies.append(latency_s)

    def report(self, seconds: float) -> dict[str, Any]:
        with self._lock:
            counts = {"answered": len(self.latencies), "refused": dict(self.refused), "said": self.said}
            return {**counts, "seconds": seconds, "latencies_s": self.latencies}


def asked_again(asked: dict[str, Any]) -> dict[str, Any]:
    """Let callers ask for so many seconds, each again as soon as it is answered, and return what came."""
    question, found = _Question(asked), _Found()
    begin = time.perf_counter() + 0.2
    end = begin + asked["seconds"]

    def call() -> None:
        client = triton.InferenceServerClient(asked["address"])
        time.sleep(max(0.0, begin - time.perf_counter()))
        while (start := time.perf_counter()) < end:
            try:
                client.infer(question.model, question.inputs(), client_timeout=PATIENCE_S)
                found.add(time.perf_counter() - start)
            except triton.InferenceServerException as error:
                found.add(None, error)
        client.close()

    threads = [threading.Thread(target=call) for _ in range(asked["callers"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found.report(time.perf_counter() - begin)


def offered(asked: dict[str, Any]) -> dict[str, Any]:
    """Send requests at a rate for so many seconds, and return what came of those that ended once it was warm."""
    question, found, all_ended = _Question(asked), _Found(), threading.Semaphore(0)
    client = triton.InferenceServerClient(asked["address"])
    begin = time.perf_counter() + 0.2
    first, last = begin + WARM_SHARE * asked["seconds"], begin + asked["seconds"]
    count = int(asked["rate"] * asked["seconds"])

    def ended(due: float, result: Any, error: Any) -> None:
        now = time.perf_counter()
        if first <= now < last:
            found.add(now - due, error)
        all_ended.release()

    for number in range(count):
        due = begin + number / asked["rate"]
        time.sleep(max(0.0, due - time.perf_counter()))
        client.async_infer(
            question.model,
            question.inputs(),
            lambda result, error, due=due: ended(due, result, error),
            client_timeout=asked["deadline_s"],
        )
    for _ in range(count):
        all_ended.acquire(timeout=PATIENCE_S)
    client.close()
    return found.report(last - first)


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps(offered(wanted) if "rate" in wanted else asked_again(wanted)))
